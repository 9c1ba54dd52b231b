"""The BVH: complete boxes, every Gaussian once, and blocks that hold what lies below them."""

import numpy as np
import pytest
import torch

from raygauss_ns.casting import whitening_matrices
from raygauss_ns.casting.cpu.bvh import WIDTH, build_bvh

EPS = 0.125


def build(means, scales, quats, densities, colors):
    whitenings = whitening_matrices(scales, quats)
    arrays = [tensor.numpy() for tensor in (means, whitenings, densities, colors)]
    return build_bvh(*arrays, EPS), arrays


def scattered(scene):
    return build(*scene)


def coincident(scene):
    return build(scene.means * 0 + 0.3, *scene[1:])


def on_a_line(scene):
    return build(scene.means * torch.tensor([1.0, 0, 0]), *scene[1:])


def half_dead(scene):
    densities = scene.densities.clone()
    densities[::2] = torch.tensor([0.05, -1.0, torch.nan, EPS]).repeat(len(densities))[: len(densities[::2])]
    return build(scene.means, scene.scales, scene.quats, densities, scene.colors)


def children_of(bvh, level):
    """Boxes [children, 6] of a level's blocks, the places that are not there included."""
    return bvh.boxes[bvh.levels[level] : bvh.levels[level + 1]].transpose(0, 2, 1).reshape(-1, 6)


@pytest.fixture(params=[scattered, coincident, on_a_line, half_dead], ids=lambda make: make.__name__)
def arrangement(request):
    return request.param


@pytest.fixture(params=[0, 1, 16, 17, 1000])
def built(request, arrangement, random_scene):
    """A BVH and the arrays that it was built from."""
    return arrangement(random_scene(request.param, seed=9))


def test_records_are_the_inputs_in_leaf_order(built):
    bvh, (means, whitenings, densities, colors) = built
    order = bvh.order
    assert sorted(order) == list(np.flatnonzero(densities > np.float32(EPS)))
    expected = np.hstack([means[order], whitenings[order].reshape(-1, 9), densities[order, None], colors[order]])
    np.testing.assert_array_equal(bvh.records, expected)
    np.testing.assert_allclose(bvh.squared_cutoff, 2 * np.log(densities[order].astype(np.float64) / EPS), rtol=1e-6)
    dtypes = [np.int32, np.float32, np.float32, np.float32, np.int32, np.float32]
    assert [array.dtype for array in bvh] == dtypes
    assert all(array.flags.c_contiguous for array in bvh)


def test_levels_shrink_to_one_block(built):
    bvh, _ = built
    counts, children = np.diff(bvh.levels), len(bvh.order)
    for count in counts:
        assert count == -(-children // WIDTH)
        children = count
    assert children <= 1
    assert bvh.levels[0] == 0
    assert bvh.levels[-1] == len(bvh.boxes)


def test_a_child_is_the_box_around_the_block_below(built):
    bvh, _ = built
    for level in range(1, len(bvh.levels) - 1):
        below = bvh.boxes[bvh.levels[level - 1] : bvh.levels[level]]
        around = np.concatenate([below[:, :3].min(-1), below[:, 3:].max(-1)], axis=1)
        np.testing.assert_array_equal(children_of(bvh, level)[: len(below)], around)
    if len(bvh.boxes):
        top = bvh.boxes[-1]
        np.testing.assert_array_equal(bvh.bounds, [*top[:3].min(-1), *top[3:].max(-1)])


def test_places_without_a_child_are_empty(built):
    bvh, _ = built
    children = len(bvh.order)
    for level in range(len(bvh.levels) - 1):
        missing = children_of(bvh, level)[children:]
        assert (missing[:, :3] > 1e38).all()
        assert (missing[:, 3:] < -1e38).all()
        children = bvh.levels[level + 1] - bvh.levels[level]


def test_boxes_hold_the_supports_and_little_more(built):
    bvh, _ = built
    means, whitenings = bvh.records[:, :3], bvh.records[:, 3:12].reshape(-1, 3, 3).astype(np.float64)
    unwhitenings = np.linalg.inv(whitenings)
    # Points of the surfaces |A (x - mu)| = k: 200 anywhere, and the 6 where an ellipsoid touches its box.
    units = np.random.default_rng(0).normal(size=(len(means), 200, 3))
    units = np.concatenate([units, unwhitenings, -unwhitenings], axis=1)
    units /= np.linalg.norm(units, axis=-1, keepdims=True)
    offsets = np.einsum("nij,nkj->nki", unwhitenings, units)
    surface = means[:, None] + np.sqrt(bvh.squared_cutoff)[:, None, None] * offsets
    boxes = children_of(bvh, 0)[: len(means)]
    assert (boxes[:, :3] <= surface.min(1)).all()
    assert (boxes[:, 3:] >= surface.max(1)).all()
    np.testing.assert_allclose(boxes, np.hstack([surface.min(1), surface.max(1)]), atol=1e-3)


def test_neighbours_share_a_block(random_scene):
    """What the Morton order is for: the blocks' boxes are small."""
    scene = random_scene(4096, seed=9)
    bvh, _ = build(scene.means, scene.scales * 1e-3, *scene[2:])
    blocks = children_of(bvh, 1)[: bvh.levels[1]]
    assert np.median((blocks[:, 3:] - blocks[:, :3]).max(1)) < 0.6  # all of it is 2 wide
