"""What instant-ngp-hardmine adds to nerfstudio's viewer: mining's settings, and outputs beside the colour."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.viewer.viewer_elements import ViewerDropdown, ViewerSlider
from torch import Tensor

from hardmine_ns.marching import OccupancyGrid, composite
from hardmine_ns.marching.occupancy import locate
from hardmine_ns.mining import HardSampleMining, MiningRule
from hardmine_ns.rendering.fraction_map import FractionMap
from hardmine_ns.rendering.visibility import Rays, Visible
from ns_support.viewer.controls import SlicePlane, ViewerRun, stop_if_unwanted
from ns_support.viewer.normals import normal_picture, surface_normals
from ns_support.viewer.outputs import Extra

HARD_SAMPLES = "hard_samples"
OfRays: TypeAlias = Callable[[RayBundle], dict[str, Tensor]]
"""Maps a bundle of n rays to tensors [n, C] by name."""
_NORMAL_SHIFT = 2.0
"""By how much `normals` moves rays aside, in steps."""


class HardMineRun(ViewerRun):
    """The folder of the controls that act on the training: the stop button, the mining rule and its fractions.

    They are training settings: the next step is trained with them, in every process, and `config.yml` keeps what the
    run began with. Two fractions in the wrong order swap their parts.

    Args:
        mining: whose settings they are.
        plane: of `density_slice`, whose controls stand beside them, if it has any.
    """

    trained_only = ("stop", "rule", "least", "greatest")

    def __init__(self, mining: HardSampleMining, plane: SlicePlane | None = None) -> None:
        super().__init__()
        if plane is not None:
            self.picture_controls = plane.controls
        self._set = mining_setter(mining)
        rules = list(mining.rules)
        self.rule = ViewerDropdown(
            "Mining rule", mining.rule, rules, cb_hook=self._take_over, hint="Which samples training learns from"
        )
        self.least = ViewerSlider(
            "Least fraction",
            mining.min_fraction,
            0.0,
            1.0,
            0.01,
            cb_hook=self._take_over,
            hint="Least part of the samples that training learns from (b / B)",
        )
        self.greatest = ViewerSlider(
            "Greatest fraction",
            mining.max_fraction,
            0.0,
            1.0,
            0.01,
            cb_hook=self._take_over,
            hint="Greatest part of the samples that training learns from (b / B)",
        )
        self.fractions: FractionMap | None = None
        """Where the hard samples are; None until the viewer has shown them."""

    def _take_over(self, _: Any) -> None:
        self._set(self.rule.value, float(self.least.value), float(self.greatest.value))

    @property
    def has_training(self) -> bool:
        """Whether a viewer shows a training, whose hard samples there are to be seen."""
        return self.viewer is not None and self.viewer.trainer is not None

    def watcher(self, unit_positions: Tensor) -> Callable[[Tensor | None], None] | None:
        """What mining is to tell its choice among samples at [B, 3]; None while nobody looks."""
        if not self.has_training or HARD_SAMPLES not in self.shown():
            return None
        if self.fractions is None:
            self.fractions = FractionMap(device=unit_positions.device)
        fractions = self.fractions
        return lambda rows: fractions.add(unit_positions, rows)


def mining_setter(mining: HardSampleMining) -> Callable[[MiningRule, float, float], None]:
    """A function of (rule, one fraction, another fraction) that requests them, the lesser fraction as the least.

    As a closure and not an attribute: nerfstudio would look for controls in a module, and the checkpoint hold it twice.
    """

    def setter(rule: MiningRule, fraction: float, other: float) -> None:
        # b / B of exactly 0 would train nothing.
        mining.request(rule, *sorted(max(f, 1e-3) for f in (fraction, other)))

    return setter


def visible_distance(visible: Visible) -> Tensor:
    """Expected distance [R] along each ray; 0 where nothing is met."""
    densities = visible.densities
    sums = composite(densities, densities.new_zeros(len(densities), 3), visible.samples)
    return sums.distance / sums.accumulation.clamp(min=1e-6)


def visible_fractions(visible: Visible, fractions: FractionMap | None) -> Tensor:
    """Fraction [R, 1] of hard samples along each ray, each by the weight with which it is seen; 0 without a map."""
    densities = visible.densities
    if fractions is None:
        return densities.new_zeros(visible.samples.num_rays, 1)
    values = fractions.at(visible.unit_positions).to(densities.dtype)
    return composite(densities, values[:, None].expand(-1, 3).contiguous(), visible.samples).color[:, :1]


@torch.no_grad()
def in_pieces(rays: RayBundle, function: OfRays, most: int, device: torch.device) -> dict[str, Tensor]:
    """Apply a function of rays to an image of them, a bounded number at a time.

    Args:
        rays: [H, W].
        function: maps a bundle [n] to tensors [n, C] by name.
        most: rays at a time, > 0.
        device: where the function wants its rays.

    Returns:
        Tensors [H, W, C], on the rays' device.
    """
    height, width = rays.origins.shape[:2]
    pieces = []
    for first in range(0, len(rays), most):
        stop_if_unwanted()
        found = function(rays.get_row_major_sliced_ray_bundle(first, first + most).to(device))
        pieces.append({name: tensor.to(rays.origins.device) for name, tensor in found.items()})
    return {name: torch.cat([piece[name] for piece in pieces]).view(height, width, -1) for name in pieces[0]}


class Scene(NamedTuple):
    """What of a model the extra outputs are computed from.

    Attributes:
        bounds: gives the distances [R] at which rays begin and end.
        found: gives the visible samples of rays, in groups with their rays.
        densities: gives the density [n] at points [n, 3].
        grid: whose empty cells no ray looks into.
        step_size: dt (scene units).
        plane: where `density_slice` lies.
        fractions: where the hard samples are, if that is to be shown.
    """

    bounds: Callable[[RayBundle], tuple[Tensor, Tensor]]
    found: Callable[[RayBundle], Iterator[tuple[Rays, Visible]]]
    densities: Callable[[Tensor], Tensor]
    grid: OccupancyGrid
    step_size: float
    plane: SlicePlane
    fractions: Callable[[], FractionMap | None] | None

    def normals(self, rays: RayBundle) -> Tensor:
        """[R, 3] normals of the surface of the expected distance."""
        nears, fars = self.bounds(rays)

        def distance_of(origins: Tensor, directions: Tensor) -> Tensor:
            area, ends = torch.ones_like(origins[:, :1]), (nears.repeat(4)[:, None], fars.repeat(4)[:, None])
            shifted = RayBundle(origins, directions, area, nears=ends[0], fars=ends[1])
            return torch.cat([visible_distance(visible) for _, visible in self.found(shifted)])

        return surface_normals(distance_of, rays.origins, rays.directions, _NORMAL_SHIFT * self.step_size)

    def density_slice(self, rays: RayBundle) -> Tensor:
        """[R, 1] density where a ray meets the plane; 0 where it does not, or where the grid is empty."""
        nears, fars = self.bounds(rays)
        distances = self.plane.distances(rays.origins, rays.directions)
        met = (distances >= nears) & (distances < fars)
        points = rays.origins + torch.where(met, distances, 0.0)[:, None] * rays.directions
        cells, inside = locate(points, self.grid)
        rows = torch.nonzero(met & inside & self.grid.binaries.view(-1)[cells])[:, 0]
        densities = points.new_zeros(len(points), 1)
        densities[rows, 0] = self.densities(points[rows])
        return densities

    def hard_samples(self, rays: RayBundle) -> Tensor:
        """[R, 1] fraction of hard samples along each ray."""
        fractions = None if self.fractions is None else self.fractions()
        return torch.cat([visible_fractions(visible, fractions) for _, visible in self.found(rays)])


def extra_outputs(
    scene: Scene, accumulation: Tensor, everywhere: Callable[[OfRays], dict[str, Tensor]]
) -> dict[str, Extra]:
    """What can be looked up beside colour, depth and accumulation; costs nothing until then.

    Args:
        scene: of a model in evaluation.
        accumulation: [*, 1] of the rays.
        everywhere: applies a function to all of the rays: maps bundles [n] to tensors [n, C], here to [*, C].

    Returns:
        "normals" [*, 3] as colours in [0, 1]; "density_slice" [*, 1]; and if hard samples are to be shown,
        "hard_samples" [*, 1], the fraction of samples along a ray that mining chose in the latest steps.
    """

    def normals() -> Tensor:
        found = everywhere(lambda rays: {"normals": scene.normals(rays)})["normals"]
        return normal_picture(found.reshape(-1, 3), accumulation.reshape(-1)).view(*accumulation.shape[:-1], 3)

    def density_slice() -> Tensor:
        return everywhere(lambda rays: {"density": scene.density_slice(rays)})["density"]

    def hard_samples() -> Tensor:
        return everywhere(lambda rays: {"fractions": scene.hard_samples(rays)})["fractions"]

    extras = {"normals": Extra(normals, 3), "density_slice": Extra(density_slice)}
    return extras if scene.fractions is None else extras | {HARD_SAMPLES: Extra(hard_samples)}
