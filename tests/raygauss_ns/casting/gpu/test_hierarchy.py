"""The block hierarchy over all Gaussians, built from PyTorch operations."""

from itertools import pairwise

import pytest
import torch

from raygauss_ns.casting import whitening_matrices
from raygauss_ns.casting.cpu.bvh import build_bvh
from raygauss_ns.casting.gpu.hierarchy import build_gpu_hierarchy

EPS = 0.02


@pytest.mark.parametrize("n", [1, 2, 32, 33, 1000, 33_000])
def test_blocks(n, random_scene):
    """Every box is the union of its children's; those of the lowest level are the records' in order."""
    scene = random_scene(n)
    scene.means[n // 3 : n // 2] = scene.means[n // 3].clone()  # equal codes
    scene.densities[1::7] = 0.01
    whitenings = whitening_matrices(scene.scales, scene.quats)
    inputs = (scene.means, whitenings, scene.densities, scene.colors)
    hierarchy = build_gpu_hierarchy(*inputs, EPS)
    alive = int((scene.densities > EPS).sum())
    assert torch.equal(hierarchy.order.sort().values, torch.arange(n))
    assert bool((hierarchy.squared_cutoff[:alive] > 0).all())
    assert bool((hierarchy.squared_cutoff[alive:] < 0).all())
    torch.testing.assert_close(hierarchy.records[:, :3], scene.means[hierarchy.order])
    torch.testing.assert_close(hierarchy.records[:, 12], scene.densities[hierarchy.order])

    levels = hierarchy.blocks.split(hierarchy.sizes)
    assert len(levels) == 4
    assert [len(level) for level in levels] == [-(-n // 32**k) for k in range(1, 5)]
    for children, parents in pairwise(levels):
        lower, upper = children[:, :3].amin(-1), children[:, 3:].amax(-1)
        boxes = parents.transpose(1, 2).reshape(-1, 6)
        torch.testing.assert_close(boxes[: len(children)], torch.cat([lower, upper], 1), rtol=0, atol=0)
        assert bool((boxes[len(children) :, :3] > 1e38).all())
    boxes = levels[0].transpose(1, 2).reshape(-1, 6)
    assert bool((boxes[alive:, :3] > boxes[alive:, 3:]).all()), "a culled Gaussian's box is not empty"
    means, records = hierarchy.records[:alive, :3], hierarchy.records[:alive]
    assert bool(((boxes[:alive, :3] < means) & (means < boxes[:alive, 3:])).all())
    # The farthest point of a support along an axis is k times the length of that row of R diag(s).
    spread = torch.linalg.inv(records[:, 3:12].view(-1, 3, 3).double()).norm(dim=-1)
    radius = (2 * torch.log(records[:, 12].double() / EPS)).sqrt()[:, None] * spread
    half = (boxes[:alive, 3:] - boxes[:alive, :3]).double() / 2
    assert bool((half >= radius).all())
    assert bool((half <= radius * (1 + 1e-3) + 1e-5).all())
    on_cpu = build_bvh(*(tensor.numpy() for tensor in inputs), EPS)
    assert len(on_cpu.order) == alive
    torch.testing.assert_close(hierarchy.bounds, torch.from_numpy(on_cpu.bounds).view(-1), rtol=0, atol=1e-6)


def test_nothing_alive(random_scene):
    scene = random_scene(40)
    whitenings = whitening_matrices(scene.scales, scene.quats)
    hierarchy = build_gpu_hierarchy(scene.means, whitenings, 0 * scene.densities, scene.colors, EPS)
    assert bool((hierarchy.blocks[:, :3] > 1e38).all())
    assert bool((hierarchy.bounds > 1e38).all())
