"""From rays to pixels: the visibility pass, and the rendering of what is visible.

The visibility pass evaluates the density of every marched sample, front to back and without autograd, and stops at the
first opaque one. nerfstudio does so to drop the invisible samples; here its results are also the first half of the
forward pass that mining needs. A mined step costs one visibility pass, one cheap colour network, and one run with a
graph on b samples. On a CPU, `rendering/cpu` has kernels for all of it but the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from hardmine_ns.marching import Composite, PackedSamples, composite, visible_samples
from hardmine_ns.mining import HardSampleMining, Padded, told
from hardmine_ns.rendering.cpu import networks
from hardmine_ns.rendering.cpu import search as cpu
from hardmine_ns.rendering.field import GEOMETRY_DIM, HashField, UnitCube, spherical_harmonics, truncated_exp
from ns_support.kernels.arrays import FloatArray, as_array

FIRST_ROUND = 16
"""Samples that each ray gets in the first round of a visibility pass, by default."""


@dataclass(frozen=True)
class Rays:
    """R rays; `image_indices` matter to a field with appearances only."""

    origins: Tensor
    """[R, 3]."""
    directions: Tensor
    """[R, 3] of unit length."""
    image_indices: Tensor | None = None
    """[R] int64."""

    def __getitem__(self, own: slice) -> Rays:
        """Some of the rays."""
        images = None if self.image_indices is None else self.image_indices[own]
        return Rays(self.origins[own], self.directions[own], images)


@dataclass(frozen=True)
class Visible:
    """The visible samples."""

    samples: PackedSamples
    """The B visible samples."""
    unit_positions: Tensor
    """[B, 3] in the unit cube of the field."""
    geometry: Tensor
    """[B, 16] outputs of the density network."""
    features: Tensor | None
    """[B, L F] the encoding at those positions, if it was to be kept."""
    searched: tuple[Tensor, Tensor] | None = None
    """Positions [n, 3] in the scene and densities [n] of all samples that were evaluated, visible or not; None where
    they have been noted in the grid."""
    searched_rows: Tensor | None = None
    """[B] int64, which of the n the visible ones are."""

    @property
    def densities(self) -> Tensor:
        """[B] of the visible samples, float32."""
        return truncated_exp(self.geometry[:, 0].float())


@dataclass(frozen=True)
class SampleCounts:
    """How many samples the latest training step had at each stage."""

    marched: int = 0
    searched: int = 0
    visible: int = 0


class Evaluated(NamedTuple):
    """Samples whose density has been evaluated.

    Attributes:
        rows: [n] int64, their indices among all marched samples.
        positions: [n, 3] in the scene.
        unit: [n, 3] the same in the field's unit cube.
        geometry: [n, 16] outputs of the density network.
        features: [n, L F] the encoding, if it is to be kept.
    """

    rows: Tensor
    positions: Tensor
    unit: Tensor
    geometry: Tensor
    features: Tensor | None

    @classmethod
    def cat(cls, parts: Sequence[Evaluated]) -> Evaluated:
        """The samples of all parts, one part after the other."""
        rows, positions, unit, geometry = (
            torch.cat(column) for column in zip(*(part[:4] for part in parts), strict=True)
        )
        features = [part.features for part in parts if part.features is not None]
        return cls(rows, positions, unit, geometry, torch.cat(features) if features else None)

    def take(self, own: Tensor) -> Evaluated:
        """Some of the samples.

        Args:
            own: [m] int64 indices.
        """
        rows, positions, unit, geometry = (column[own] for column in self[:4])
        return Evaluated(rows, positions, unit, geometry, None if self.features is None else self.features[own])


@torch.no_grad()
def search(
    field: HashField,
    samples: PackedSamples,
    rays: Rays,
    to_unit: Callable[[Tensor], Tensor],
    early_stop: float = 1e-4,
    alpha_threshold: float = 0.0,
    *,
    first_round: int = FIRST_ROUND,
    keep_features: bool = False,
) -> Visible:
    """The visibility pass: evaluate densities front to back, in rounds, and keep the visible samples; without a graph.

    Args:
        field: gives densities.
        samples: M marched samples.
        rays: that they lie on.
        to_unit: maps positions [n, 3] to the field's unit cube.
        early_stop: transmittance in [0, 1] below which the rest of a ray is hidden; 0 searches everything.
        alpha_threshold: opacity in [0, 1] below which a sample is dropped.
        first_round: samples that each ray gets in the first round, >= 1; each further round doubles it.
        keep_features: whether to keep the encoding of the visible samples, for a run that resumes from it.
    """
    if isinstance(to_unit, UnitCube) and field.has_kernels and field.encoding.has_cpu_kernels:
        limits = cpu.Limits(early_stop, alpha_threshold)
        return _search_on_cpu(field, samples, rays, to_unit, limits, first_round, keep_features)
    device = samples.t_starts.device
    limit = -math.log(early_stop) if early_stop > 0 else math.inf
    length, middles = samples.t_ends - samples.t_starts, samples.midpoints
    rank = torch.arange(len(samples), device=device) - samples.offsets[:-1][samples.ray_indices]
    density = torch.zeros_like(length)
    depth = torch.zeros(samples.num_rays, dtype=torch.float64, device=device)
    found: list[Evaluated] = []
    for begin, end in _rounds(samples, first_round):
        wanted = (rank >= begin) & (rank < end) & (depth <= limit)[samples.ray_indices]
        rows = torch.nonzero(wanted)[:, 0]
        ray = samples.ray_indices[rows]
        positions = torch.addcmul(rays.origins[ray], rays.directions[ray], middles[rows, None])
        unit = to_unit(positions)
        features = field.encoding(unit)
        geometry = field.geometry(unit, features)
        density[rows] = truncated_exp(geometry[:, 0].float())
        depth.index_add_(0, ray, (density[rows] * length[rows]).to(torch.float64))
        found.append(Evaluated(rows, positions, unit, geometry, features if keep_features else None))
    if not found:
        nowhere, nothing = length.new_empty(0, 3), length.new_empty(0, GEOMETRY_DIM)
        return Visible(samples, nowhere, nothing, None, (nowhere, length), length.new_empty(0, dtype=torch.int64))
    evaluated = Evaluated.cat(found)
    place = torch.full((len(samples),), -1, device=device)
    place[evaluated.rows] = torch.arange(len(evaluated.rows), device=device)
    keep = visible_samples(density, samples, early_stop, alpha_threshold) & (place >= 0)
    kept = torch.nonzero(keep)[:, 0]
    own = place[kept]
    visible = evaluated.take(own)
    everything = (evaluated.positions, density[evaluated.rows])
    return Visible(samples.select(kept), visible.unit, visible.geometry, visible.features, everything, own)


def _search_on_cpu(
    field: HashField,
    samples: PackedSamples,
    rays: Rays,
    cube: UnitCube,
    limits: cpu.Limits,
    first_round: int,
    keep_features: bool,
) -> Visible:
    """The same by the kernels of `rendering/cpu`."""
    along = (samples.offsets, samples.t_starts, samples.t_ends, samples.midpoints)
    arrays = cpu.RayArrays(*map(as_array, (rays.origins, rays.directions, *along)))
    space = cpu.CubeArrays(as_array(cube.center), as_array(cube.half_extent.reciprocal()), cube.contracts)
    network = networks.packed(field.density_net.weights)

    def evaluate(unit: FloatArray, features: FloatArray, geometry: FloatArray) -> None:
        field.encoding.write(unit, features)
        networks.run(features, network, geometry)

    widths = field.encoding.out_dim, GEOMETRY_DIM
    found, count = cpu.search(arrays, space, _rounds(samples, first_round), evaluate, limits, widths)
    positions, densities = torch.from_numpy(found.positions[:count]), torch.from_numpy(found.densities[:count])
    kept, unit, outputs, features = cpu.visible(arrays, found, limits)
    own = torch.from_numpy(found.places[found.places >= 0])
    return Visible(kept, unit, outputs, features if keep_features else None, (positions, densities), own)


def _rounds(samples: PackedSamples, first_round: int) -> Iterator[tuple[int, int]]:
    """First and last sample of a ray that each round looks at; the rounds double until the longest ray is done."""
    longest = samples.longest
    if longest is None:
        longest = int(samples.offsets.diff().max()) if samples.num_rays else 0
    begin, end = 0, first_round
    while begin < longest:
        if longest < 1.5 * end:  # a last round that would be almost empty joins this one
            end = longest
        yield begin, end
        begin, end = end, 2 * end


def render_visible(
    field: HashField,
    visible: Visible,
    rays: Rays,
    mining: HardSampleMining | None = None,
    to_unit: Callable[[Tensor], Tensor] | None = None,
    padded: Padded | None = None,
    tell: Callable[[Tensor], None] | None = None,
) -> Composite:
    """Colour and composite the visible samples.

    Args:
        field: the one that found them.
        visible: the visible samples.
        rays: that they lie on.
        mining: how gradients are to be computed; None for an image without gradients.
        to_unit: maps positions [n, 3] to the field's unit cube, if the rays are to have a gradient too.
        padded: how many of the visible samples there are, where only a GPU knows.
        tell: gets the hardness [B] of the visible samples in the backward pass.

    Returns:
        Per ray colour (without background), accumulation, summed distance; per sample weights.
    """
    samples = visible.samples
    harmonics = spherical_harmonics(rays.directions)

    def evaluate(
        unit: Tensor, ray: Tensor, directions: Tensor | None = None, features: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        geometry = field.geometry(unit, features)
        appearance = None if rays.image_indices is None else field.appearance_of(rays.image_indices[ray])
        of_rows = harmonics[ray] if directions is None else spherical_harmonics(directions)
        return geometry[:, 0], field.color(geometry, of_rows, appearance)

    from_search = partial(_known_outputs, field, visible, rays, harmonics)
    if mining is None:
        log_density, raw_color = from_search()
    else:
        inputs = {"unit": visible.unit_positions, "ray": samples.ray_indices}
        if to_unit is not None:
            # The gradient reaches the rays through what the field gets of them, on its own rows.
            inputs["directions"] = rays.directions[samples.ray_indices]
            middles = samples.midpoints[:, None]
            inputs["unit"] = to_unit(rays.origins[samples.ray_indices] + middles * inputs["directions"])
        # Features that the visibility pass kept save the second run the look-ups: it gets those of its own rows.
        if visible.features is not None:
            inputs["features"] = visible.features

        def named(*rows: Tensor) -> tuple[Tensor, Tensor]:
            return evaluate(**dict(zip(inputs, rows, strict=True)))

        tensors = tuple(inputs.values())
        log_density, raw_color = mining(
            named, field.parameters(), tensors, search=lambda *_: from_search(), padded=padded
        )
    if tell is not None:
        log_density, raw_color = told((log_density, raw_color), tell)
    # float32 from here on, whatever precision the networks ran in.
    return composite(truncated_exp(log_density.float()), torch.sigmoid(raw_color.float()), samples)


def _known_outputs(field: HashField, visible: Visible, rays: Rays, harmonics: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the densities, which the search has found, and colours before the sigmoid; without a graph."""
    of_rays = None if rays.image_indices is None else field.appearance_of(rays.image_indices)
    colors = field.color_on_rays(visible.geometry, visible.samples.ray_indices, harmonics, of_rays)
    return visible.geometry[:, 0].contiguous(), colors


def groups_of_rays(samples: PackedSamples, most: int) -> Iterator[tuple[slice, PackedSamples]]:
    """Split samples by rays into groups of at most `most` samples (or of one ray), to bound memory.

    Yields:
        (the rays of the group, their samples).
    """
    offsets = samples.offsets.cpu()
    first = 0
    while first < samples.num_rays:
        last = int(torch.searchsorted(offsets, offsets[first] + most, right=True)) - 1
        last = max(last, first + 1)
        own = slice(int(offsets[first]), int(offsets[last]))
        yield (
            slice(first, last),
            PackedSamples(
                samples.t_starts[own],
                samples.t_ends[own],
                samples.ray_indices[own] - first,
                samples.offsets[first : last + 1] - samples.offsets[first],
                None if samples.t_middles is None else samples.t_middles[own],
            ),
        )
        first = last
