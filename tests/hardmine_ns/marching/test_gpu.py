"""The marching kernels: in Triton's interpreter the same samples as the PyTorch twin, and built for absent GPUs."""

import sys

import pytest
import torch

from hardmine_ns.marching import OccupancyGrid
from hardmine_ns.marching.lattice import RayLattices
from hardmine_ns.marching.rays import march_rays_triton
from hardmine_ns.marching.reference import march_rays_torch

pytest.importorskip("triton")

UNIT_BOX = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("levels", "cone", "occupied", "step"),
    [(1, 0.0, 0.3, 0.021), (1, 0.0, 1.0, 0.05), (3, 0.0, 0.3, 0.1), (3, 0.02, 0.5, 0.03), (1, 0.0, 0.0, 0.05)],
)
def test_agrees_with_pytorch(levels, cone, occupied, step):
    torch.manual_seed(1)
    grid = OccupancyGrid(UNIT_BOX * torch.tensor([1.0, 0.7, 1.3, 1.0, 0.7, 1.3]), resolution=12, levels=levels)
    grid.binaries.copy_(torch.rand(grid.binaries.shape) < occupied)
    origins = 3 * torch.randn(63, 3)
    directions = torch.nn.functional.normalize(0.7 * torch.randn(63, 3) - origins, dim=-1)
    directions[:3], origins[2] = torch.eye(3), torch.tensor([0.1, 0.2, -4.0])
    starts = 0.1 + torch.rand(63) * step
    fars = torch.full((63,), 7.0)
    fars[5] = 0.0
    rays = RayLattices(origins, directions, starts, fars, step, cone)
    actual, expected = march_rays_triton(rays, grid), march_rays_torch(rays, grid)
    assert (len(expected) > 200) == (occupied > 0)
    assert torch.equal(actual.offsets, expected.offsets)
    assert torch.equal(actual.ray_indices, expected.ray_indices)
    tolerance = 0 if cone == 0 else 1e-6  # powers differ in the last bit between libraries
    torch.testing.assert_close(actual.t_starts, expected.t_starts, rtol=tolerance, atol=0)
    torch.testing.assert_close(actual.t_ends, expected.t_ends, rtol=tolerance, atol=0)


@pytest.mark.interpreted
def test_no_rays():
    empty = torch.zeros(0, 3)
    rays = RayLattices(empty, empty, empty[:, 0], empty[:, 0], 0.1, 0.0)
    samples = march_rays_triton(rays, OccupancyGrid(UNIT_BOX, 8))
    assert len(samples) == 0
    assert samples.offsets.tolist() == [0]


def test_triton_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "hardmine_ns.marching.gpu.marching", None)
    zero = torch.zeros(1, 3)
    rays = RayLattices(zero, zero, zero[:, 0], zero[:, 0], 0.1, 0.0)
    with pytest.raises(ImportError, match=r'needs Triton 3.2 or newer .*pip install "triton>=3.2"'):
        march_rays_triton(rays, OccupancyGrid(UNIT_BOX, 8))


@pytest.mark.parametrize("cone", [False, True])
@pytest.mark.parametrize("write", [False, True])
def test_builds_without_spilling(write, cone, capability, triton_build):
    from hardmine_ns.marching.gpu import marching as gpu

    floats = ["origins", "directions", "starts", "fars", "box", "t_starts", "t_ends"]
    types = dict.fromkeys(floats, "*fp32") | dict.fromkeys(["t_switches", "log2_growth"], "*fp64")
    types |= dict.fromkeys(["firsts", "lasts", "switches", "counts", "offsets", "ray_indices"], "*i64")
    types |= {"binaries": "*u8", "levels": "i32", "resolution": "i32", "step": "fp32"}
    build = triton_build(gpu.march_kernel, types, {"CONE": cone, "WRITE": write, "BLOCK": 128}, capability)
    assert build.spilled == 0


def test_merging_builds_without_spilling(capability, triton_build):
    from hardmine_ns.marching.gpu import marching as gpu

    types = dict.fromkeys(["t_starts", "t_ends", "thickness"], "*fp32") | {"offsets": "*i64", "firsts": "*u8"}
    build = triton_build(gpu.merge_kernel, types | {"limit": "fp32", "most": "i32"}, {}, capability)
    assert build.spilled == 0
