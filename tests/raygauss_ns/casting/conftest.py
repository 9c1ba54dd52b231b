"""Scenes, rays and comparisons that the caster's tests share, as fixtures that give functions."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from raygauss_ns.casting import CastSettings, Gaussians, RayOutputs, Rays, cast, whitening_matrices

PARAMETERS = ("means", "scales", "quats", "densities", "colors")


class Scene(NamedTuple):
    """Gaussians and their colours, in the order of `PARAMETERS`."""

    means: Tensor
    scales: Tensor
    quats: Tensor
    densities: Tensor
    colors: Tensor

    def apply(self, change) -> "Scene":
        return Scene(*(change(tensor) for tensor in self))

    def leaves(self, dtype: torch.dtype = torch.float32) -> "Scene":
        return self.apply(lambda tensor: tensor.detach().to(dtype).clone().requires_grad_())

    @property
    def gaussians(self) -> Gaussians:
        return Gaussians(*self[:4])


class RaySet(NamedTuple):
    """What `cast` takes of the rays."""

    origins: Tensor
    directions: Tensor
    nears: Tensor
    fars: Tensor

    def apply(self, change) -> "RaySet":
        return RaySet(*(change(tensor) for tensor in self))


class Differentiated(NamedTuple):
    """The outputs [R, 5], red, green, blue, transmittance and depth, and a gradient for each of `PARAMETERS`."""

    outputs: Tensor
    gradients: dict[str, Tensor]

    @property
    def finite(self) -> bool:
        return all(bool(tensor.isfinite().all()) for tensor in (self.outputs, *self.gradients.values()))


class GradientError(NamedTuple):
    """How far a gradient is off: the length of the error, the angle, and whether it leans to one side."""

    relative_l2: float
    cosine: float
    bias: float

    def below(self, tolerance: float) -> bool:
        return self.relative_l2 < tolerance and self.cosine > 1 - tolerance and abs(self.bias) < tolerance


@pytest.fixture(scope="session")
def random_scene():
    """`random_scene(n, seed)`: anisotropic Gaussians in the cube [-1, 1]; a ray through 1000 of them turns opaque."""

    def make(n: int, seed: int = 0) -> Scene:
        generator = torch.Generator().manual_seed(seed)
        uniform = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
        large = 0.3 if n < 100 else 0.15
        return Scene(
            means=2 * uniform(n, 3) - 1,
            scales=0.04 + large * uniform(n, 3),
            quats=torch.randn(n, 4, generator=generator),
            densities=0.2 + 2 * uniform(n),
            colors=uniform(n, 3),
        )

    return make


@pytest.fixture(scope="session")
def image_rays():
    """`image_rays(width, height)`: a pinhole camera 3 before the origin that sees the whole cube, row by row."""

    def make(width: int, height: int) -> RaySet:
        y, x = torch.meshgrid(torch.linspace(-0.4, 0.4, height), torch.linspace(-0.4, 0.4, width), indexing="ij")
        directions = torch.stack([x + 0.013, y - 0.007, torch.ones_like(x)], -1).reshape(-1, 3)
        count = width * height
        return RaySet(
            origins=torch.tensor([[0.0, 0.0, -3.0]]).repeat(count, 1),
            directions=torch.nn.functional.normalize(directions, dim=-1),
            nears=torch.full((count,), 0.5),
            fars=torch.full((count,), 6.0),
        )

    return make


def stack_outputs(outputs: RayOutputs) -> Tensor:
    return torch.cat([outputs.rgb, outputs.transmittance[:, None], outputs.depth[:, None]], dim=1)


@pytest.fixture(scope="session")
def cast_scene():
    """`cast_scene(scene, rays, settings, ...)`: the outputs as one [R, 5] tensor."""

    def run(scene: Scene, rays: RaySet, settings: CastSettings, backend: str = "cpu", image_width: int = 0) -> Tensor:
        outputs = cast(scene.gaussians, scene.colors, Rays(*rays, image_width), settings, backend=backend)
        return stack_outputs(outputs)

    return run


@pytest.fixture(scope="session")
def differentiate(cast_scene):
    """`differentiate(scene, rays, settings, cotangent, ...)`: outputs and gradients; the reference in float64."""

    def run(
        scene: Scene,
        rays: RaySet,
        settings: CastSettings,
        cotangent: Tensor,
        backend: str = "cpu",
        image_width: int = 0,
        dtype: torch.dtype | None = None,
    ) -> Differentiated:
        dtype = dtype or (torch.float64 if backend == "reference" else torch.float32)
        leaves = scene.leaves(dtype)
        outputs = cast_scene(leaves, rays.apply(lambda tensor: tensor.to(dtype)), settings, backend, image_width)
        gradients = torch.autograd.grad(outputs, leaves, cotangent.to(outputs), allow_unused=True)
        filled = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, gradients, strict=True)]
        return Differentiated(
            outputs.detach().double(), {k: g.double() for k, g in zip(PARAMETERS, filled, strict=True)}
        )

    return run


@pytest.fixture(scope="session")
def gradient_errors():
    """`gradient_errors(actual, expected)`: a `GradientError` for each parameter; exactly zero twice is no error."""

    def compare(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, GradientError]:
        errors = {}
        for name, wanted in expected.items():
            got, size = actual[name], wanted.norm()
            if wanted.numel() == 0 or float(size) == 0:
                errors[name] = GradientError(float(got.norm()), 1.0, 0.0)
                continue
            cosine = (got * wanted).sum() / (got.norm() * size)
            bias = (got - wanted).sum() / wanted.abs().sum()
            errors[name] = GradientError(float((got - wanted).norm() / size), float(cosine), float(bias))
        return errors

    return compare


@pytest.fixture(scope="session")
def touches_border():
    """`touches_border(scene, rays, settings)`: rays [R] with a sample within rounding of the border of a support.

    There the field jumps from eps to 0, and float32 may land on the other side than float64: worth up to eps dt.
    """

    def find(scene: Scene, rays: RaySet, settings: CastSettings, margin: float = 1e-4) -> Tensor:
        scene, rays = scene.apply(Tensor.double), rays.apply(Tensor.double)
        whitenings = whitening_matrices(scene.scales, scene.quats)
        reach = 2 * torch.log(scene.densities / settings.density_threshold)
        start = torch.einsum("nij,rnj->rni", whitenings, rays.origins[:, None] - scene.means)
        along = torch.einsum("nij,rj->rni", whitenings, rays.directions)
        near = torch.zeros(len(rays.origins), dtype=torch.bool)
        for k in range(int(torch.ceil((rays.fars - rays.nears).max() / settings.step))):
            t = rays.nears + (k + settings.sample_offset) * settings.step
            squared = ((start + t[:, None, None] * along) ** 2).sum(-1)
            near |= ((squared / reach - 1).abs() < margin).any(-1)
        return near

    return find


@pytest.fixture
def torch_threads():
    """Sets torch's number of threads, the caster's too, and restores it after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
