"""The kernels that prepare Gaussians and rays, and lead back to their parameters: interpreted, and built."""

import pytest
import torch

from raygauss_ns.casting import CastSettings, Rays, whitening_matrices
from raygauss_ns.casting.gpu.hierarchy import build_gpu_hierarchy
from raygauss_ns.casting.moments import moments_to_gradients
from raygauss_ns.casting.types import far_ends, sample_counts

pytest.importorskip("triton")

EPS = 0.02


@pytest.mark.interpreted
@pytest.mark.parametrize("n", [1, 300])
def test_hierarchy(n, random_scene):
    """As of PyTorch's operations; a third is below the threshold, some are not finite."""
    from raygauss_ns.casting.gpu.building import hierarchy_of

    scene = random_scene(n)
    scene.quats[:] *= 3.0
    scene.densities[1::3] = 0.01
    whitenings = whitening_matrices(scene.scales, scene.quats)
    broken = scene.apply(torch.Tensor.clone)
    dead = torch.arange(n) % 3 == 1
    for tensor, value, row in zip(
        broken, (torch.nan, 0.0, torch.inf, torch.nan, torch.inf), range(0, n, 37), strict=False
    ):
        tensor[row], dead[row] = value, n > 1
    broken.means[0] = scene.means[0] if n == 1 else torch.nan
    densities = torch.where(dead, 0.0, scene.densities)
    expected = build_gpu_hierarchy(scene.means, whitenings, densities, scene.colors, EPS)
    found = hierarchy_of(tuple(broken if n > 1 else scene), EPS)
    alive = int((~dead).sum())
    assert found.sizes == expected.sizes
    assert torch.equal(found.order, expected.order)
    torch.testing.assert_close(found.records[:alive], expected.records[:alive], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.squared_cutoff, expected.squared_cutoff, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.blocks, expected.blocks, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.bounds, expected.bounds, rtol=1e-5, atol=1e-5)
    assert found.records.isfinite().all()


@pytest.mark.interpreted
def test_nothing_alive(random_scene):
    from raygauss_ns.casting.gpu.building import hierarchy_of

    scene = random_scene(40)
    hierarchy = hierarchy_of(tuple(scene._replace(densities=0 * scene.densities)), EPS)
    assert bool((hierarchy.blocks[:, :3] > 1e38).all())
    assert bool((hierarchy.blocks[:, 3:] < -1e38).all())
    assert bool((hierarchy.bounds > 1e38).all())


@pytest.mark.interpreted
def test_more_blocks_at_the_top_than_a_program_holds():
    """As many Gaussians would be too slow here; so the boxes below are made up. The last block is not full."""
    from raygauss_ns.casting.gpu.building import level_kernel

    corners = torch.randn(600, 6, generator=torch.Generator().manual_seed(1))
    blocks, bounds, unused = torch.full((20, 6, 32), torch.nan), torch.zeros(6), torch.zeros(1)
    level_kernel[(1,)](
        corners, *(unused,) * 5, blocks, unused, bounds, 600, 1, LOWEST=False, HIGHEST=True, GROUP=8, num_warps=4
    )
    boxes = blocks[1:].transpose(1, 2).reshape(-1, 6)
    signs = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    assert torch.equal(boxes[:600], corners * signs)
    assert torch.equal(boxes[600:], 3e38 * signs.expand(8, 6))
    assert torch.equal(bounds, corners.amin(0) * signs)
    assert blocks[0].isnan().all()


@pytest.mark.interpreted
def test_gradients(random_scene):
    """Of whitening and normalisation, in float64; the third Gaussian is culled, the fourth has no moments."""
    from raygauss_ns.casting.gpu.geometry import geometry_gradients

    scene = random_scene(150)
    generator = torch.Generator().manual_seed(2)
    quats = scene.quats * (0.1 + 3 * torch.rand(150, 1, generator=generator))
    sums, order = torch.randn(150, 16, generator=generator), torch.randperm(150, generator=generator)
    cutoffs = torch.ones(150)
    cutoffs[2], sums[3, :13] = -1.0, 0.0
    scales, turns = (tensor.double().requires_grad_() for tensor in (scene.scales, quats))
    whitenings = whitening_matrices(scales, turns)
    moments = torch.zeros(150, 13, dtype=torch.float64)
    moments[order] = torch.where(cutoffs[:, None] > 0, sums[:, :13], 0.0).double()
    of_means, of_whitenings, of_densities, of_colors = moments_to_gradients(
        moments, whitenings.detach(), scene.densities.double()
    )
    of_scales, of_quats = torch.autograd.grad(whitenings, (scales, turns), of_whitenings)
    flat = whitenings.detach().float().reshape(-1, 9)
    records = torch.cat([scene.means, flat, scene.densities[:, None], scene.colors], 1)[order]
    found = geometry_gradients(sums, order, records, cutoffs, scene.scales, quats)
    for gradient, wanted in zip(found, (of_means, of_scales, of_quats, of_densities, of_colors), strict=True):
        assert float((gradient - wanted).norm()) < 1e-5 * float(wanted.norm())
        assert not gradient[order[2:4]].any()


@pytest.mark.interpreted
@pytest.mark.parametrize("growth", [{}, {"step_growth": 0.01}, {"step_growth": 0.01, "max_step": 0.2}])
def test_ends_of_rays(growth):
    from raygauss_ns.casting.gpu.geometry import BROKEN, ray_ends

    generator = torch.Generator().manual_seed(3)
    directions = torch.nn.functional.normalize(torch.randn(140, 3, generator=generator), dim=-1)
    nears = torch.rand(140, generator=generator)
    fars = nears + 3 * torch.rand(140, generator=generator)
    nears[1], fars[2], fars[3], fars[4] = torch.inf, torch.inf, -1.0, nears[4]
    nears[5] = fars[5] = torch.inf
    directions[6] *= 1.1
    settings = CastSettings(step=0.07, density_threshold=EPS, sample_offset=0.5, **growth)
    rays = Rays(torch.rand(3, 4, generator=generator)[:, 3].expand(140, 3), directions, nears, fars)
    origins, along, starts, ends = ray_ends(rays, settings)
    expected = (nears, sample_counts(nears, fars, settings)) if not growth else far_ends(nears, fars, settings)
    assert torch.equal(origins, rays.origins)
    assert torch.equal(along, directions)
    assert torch.equal(starts, expected[0])
    expected[1][6] = BROKEN.value
    assert torch.equal(ends, expected[1])
    rays = rays._replace(nears=nears[:1].expand(140), fars=fars[:1].expand(140))
    assert torch.equal(ray_ends(rays, settings)[3][:6], ends[:1].expand(6))


FLOATS = (
    "means scales quats densities colors records corners cutoffs boxes box sums of_means of_scales of_quats "
    "of_densities of_colors origins directions nears fars out_origins out_nears ordered_records ordered_cutoffs blocks "
    "unions bounds"
)
TYPES = (
    dict.fromkeys(FLOATS.split(), "*fp32")
    | {"order": "*i64", "codes": "*i64", "out_ends": "*i32"}
    | dict.fromkeys(["number", "children", "first", "origin_stride", "axis_stride", "near_stride", "far_stride"], "i32")
    | dict.fromkeys(["eps", "step", "step_rest", "offset", "reach", "most"], "fp32")
)
KERNELS = [
    ("supports_kernel", {"BLOCK": 128}, 64),
    ("geometry_gradient_kernel", {"BLOCK": 128}, 96),
    ("rays_kernel", {"BLOCK": 128, "GROWS": False}, 64),
    ("codes_kernel", {"BLOCK": 128}, 64),
    ("level_kernel", {"GROUP": 8, "LOWEST": True, "HIGHEST": False}, 64),
    ("level_kernel", {"GROUP": 8, "LOWEST": False, "HIGHEST": True}, 64),
]


@pytest.mark.parametrize(("name", "constants", "registers"), KERNELS)
def test_builds_without_spilling(name, constants, registers, capability, triton_build):
    from raygauss_ns.casting.gpu import building, geometry

    kernel = getattr(geometry, name, None) or getattr(building, name)
    build = triton_build(kernel, TYPES, constants, capability, num_warps=4)
    assert build.spilled == 0
    assert build.registers <= registers
