"""What the interpreted tests share."""

import pytest
import torch

from raygauss_ns.casting import CastSettings

OUTPUT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
SETTINGS = CastSettings(
    step=0.08, density_threshold=0.02, sample_offset=0.5, transmittance_threshold=0.0, samples_per_slab=8
)


@pytest.fixture
def agree(random_scene, differentiate, touches_border, gradient_errors):
    """`agree(n, rays, width, ...)`: cast n Gaussians with both, compare everything, return what the reference gave.

    The cotangent is zero on rays that touch a support's border, where float32 may land on the other side.
    """

    def run(n, rays, width, settings=SETTINGS, scene=None, tolerance=GRADIENT_TOLERANCE):
        scene = scene or random_scene(n)
        count = len(rays.origins)
        border = touches_border(scene, rays, settings) if n else torch.zeros(count, dtype=torch.bool)
        assert border.double().mean() < 0.3, "too few rays are left to compare"
        cotangent = torch.randn(count, 5, generator=torch.Generator().manual_seed(7))
        cotangent[border] = 0
        expected = differentiate(scene, rays, settings, cotangent, "reference")
        actual = differentiate(scene, rays, settings, cotangent, "gpu", width)
        assert actual.finite
        error = (actual.outputs - expected.outputs).abs().amax(-1)[~border]
        assert bool((error < OUTPUT_TOLERANCE).all()), f"largest error {float(error.max()):.2e}"
        for name, gradient_error in gradient_errors(actual.gradients, expected.gradients).items():
            assert gradient_error.below(tolerance), f"{name}: {gradient_error}"
        return expected

    return run
