"""Morton codes against bits set one by one, and against the codes that the BVH on a CPU sorts by."""

import pytest
import torch

from raygauss_ns.casting import whitening_matrices
from raygauss_ns.casting.cpu.bvh import build_bvh
from raygauss_ns.casting.morton import MAX_BITS, interleave, morton_codes


def spelled_out(cells, bits):
    return [sum((int(cell[i]) >> b & 1) << (3 * b + i) for b in range(bits) for i in range(3)) for cell in cells]


@pytest.mark.parametrize("bits", [1, 10, 16, MAX_BITS])
def test_interleave(bits):
    cells = torch.randint(1 << bits, (50, 3), generator=torch.Generator().manual_seed(0))
    cells[0], cells[1] = 0, (1 << bits) - 1
    assert interleave(cells).tolist() == spelled_out(cells, bits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bits", [1, 10, MAX_BITS])
def test_codes_of_a_grid(bits, dtype):
    """Points at the corners of cells of a stretched and shifted box."""
    cells = torch.randint(1 << bits, (50, 3), generator=torch.Generator().manual_seed(1))
    cells[0], cells[1] = 0, (1 << bits) - 1  # the box's corners
    scale, shift = torch.tensor([1.0, 4.0, 0.5], dtype=dtype), torch.tensor([-2.0, 0.0, 8.0], dtype=dtype)
    points = cells.to(dtype) * scale + shift if bits < 20 else cells.to(dtype) * scale
    assert morton_codes(points, bits).tolist() == spelled_out(cells, bits)


def test_what_is_not_finite_or_does_not_count_comes_last():
    points = torch.tensor([[0.0, 0, 0], [torch.nan, 0, 0], [1, 1, 1], [torch.inf, 0, 0], [9, 9, 9]])
    codes = morton_codes(points, 10)
    assert codes[[1, 3]].tolist() == [1 << 30] * 2
    assert codes[4] == (1 << 30) - 1
    codes = morton_codes(points, 10, torch.tensor([True, False, True, False, False]))
    assert codes.tolist() == [0, 1 << 30, (1 << 30) - 1, 1 << 30, 1 << 30]
    assert morton_codes(points[1:2]).tolist() == [(1 << 63) - 1]


def test_a_side_of_no_length_and_no_points():
    points = torch.tensor([[0.5, 2.0, 1.0], [0.5, 3.0, 1.0], [0.5, 2.5, 1.0]])
    assert morton_codes(points, 2).tolist() == [0, 0b010010, 0b000010]
    assert morton_codes(points[:1]).tolist() == [0]
    assert morton_codes(points[:0]).tolist() == []


def test_neighbours_in_the_order_are_neighbours_in_space():
    points = torch.rand(4000, 3, generator=torch.Generator().manual_seed(2))
    distance = lambda order: points[order].diff(dim=0).norm(dim=-1).mean()  # noqa: E731
    assert distance(morton_codes(points).argsort()) < 0.2 * distance(torch.arange(4000))


@pytest.mark.parametrize("count", [1, 17, 1000])
def test_the_hierarchy_on_a_cpu_sorts_by_the_same_codes(count, random_scene):
    scene = random_scene(count)
    scene.means[count // 3 : count // 2] = scene.means[count // 3].clone()  # equal codes
    whitenings = whitening_matrices(scene.scales, scene.quats)
    arrays = [tensor.numpy() for tensor in (scene.means, whitenings, scene.densities, scene.colors)]
    order = torch.argsort(morton_codes(scene.means, 10), stable=True)
    assert build_bvh(*arrays, 0.1).order.tolist() == order.tolist()


@pytest.mark.parametrize("points", [torch.zeros(3), torch.zeros(4, 2), torch.zeros(4, 3, dtype=torch.int64)])
def test_points_of_another_kind(points):
    with pytest.raises(ValueError, match=r"points must be \[N, 3\] and floating point, got \["):
        morton_codes(points)


@pytest.mark.parametrize("bits", [0, 22])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match=rf"bits must be in \[1, 21\], got {bits}"):
        morton_codes(torch.zeros(2, 3), bits)
