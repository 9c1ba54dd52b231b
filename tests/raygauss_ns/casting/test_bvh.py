"""The hierarchy: complete boxes, every Gaussian once, and links that visit what they must."""

import numpy as np
import pytest
import torch

from raygauss_ns.casting import whitening_matrices
from raygauss_ns.casting.bvh import LEAF_SIZE, build_bvh

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


def leaf_range(packed):
    return packed >> 4, (packed >> 4) + (packed & 15)


def subtree_end(links, node):
    """One past a node's last descendant, from the depth-first layout alone."""
    if links[node, 1]:
        return node + 1
    return subtree_end(links, subtree_end(links, node + 1))


@pytest.fixture(params=[scattered, coincident, on_a_line, half_dead], ids=lambda make: make.__name__)
def arrangement(request):
    return request.param


@pytest.fixture(params=[0, 1, 4, 5, 1000])
def built(request, arrangement, random_scene):
    """A hierarchy and the arrays that it was built from."""
    return arrangement(random_scene(request.param, seed=9))


def test_records_are_the_inputs_in_leaf_order(built):
    bvh, (means, whitenings, densities, colors) = built
    order = bvh.order
    assert sorted(order) == list(np.flatnonzero(densities > np.float32(EPS)))
    expected = np.hstack([means[order], whitenings[order].reshape(-1, 9), densities[order, None], colors[order]])
    np.testing.assert_array_equal(bvh.records, expected)
    np.testing.assert_allclose(bvh.reach, 2 * np.log(densities[order].astype(np.float64) / EPS), rtol=1e-6)
    dtypes = [np.int32, np.float32, np.float32, np.float32, np.int32]
    assert [array.dtype for array in bvh] == dtypes
    assert all(array.flags.c_contiguous for array in bvh)


def test_every_record_is_in_one_leaf(built):
    bvh, _ = built
    leaves = [leaf_range(packed) for packed in bvh.links[:, 1] if packed]
    assert [record for leaf in leaves for record in range(*leaf)] == list(range(len(bvh.order)))
    assert all(0 < last - first <= LEAF_SIZE for first, last in leaves)


def test_walking_on_visits_every_node_and_skipping_lands_past_the_subtree(built):
    bvh, _ = built
    nodes = len(bvh.links)
    assert nodes <= max(2 * len(bvh.order) - 1, 0)
    if nodes:
        assert subtree_end(bvh.links, 0) == nodes
    for node in range(nodes):
        assert bvh.links[node, 0] == subtree_end(bvh.links, node)


def test_children_lie_within_their_parents(built):
    bvh, _ = built
    for node in np.flatnonzero(bvh.links[:, 1] == 0):
        for child in (node + 1, bvh.links[node + 1, 0]):
            assert (bvh.boxes[child, :3] >= bvh.boxes[node, :3]).all()
            assert (bvh.boxes[child, 3:] <= bvh.boxes[node, 3:]).all()


def test_boxes_hold_the_supports_and_little_more(built):
    bvh, _ = built
    means, whitenings = bvh.records[:, :3], bvh.records[:, 3:12].reshape(-1, 3, 3).astype(np.float64)
    unwhitenings = np.linalg.inv(whitenings)
    # Points of the surfaces |A (x - mu)| = k: 200 anywhere, and the 6 where an ellipsoid touches its box.
    units = np.random.default_rng(0).normal(size=(len(means), 200, 3))
    units = np.concatenate([units, unwhitenings, -unwhitenings], axis=1)
    units /= np.linalg.norm(units, axis=-1, keepdims=True)
    offsets = np.einsum("nij,nkj->nki", unwhitenings, units)
    surface = means[:, None] + np.sqrt(bvh.reach)[:, None, None] * offsets
    for node in np.flatnonzero(bvh.links[:, 1]):
        points = surface[slice(*leaf_range(bvh.links[node, 1]))].reshape(-1, 3)
        assert (bvh.boxes[node, :3] <= points.min(0)).all()
        assert (bvh.boxes[node, 3:] >= points.max(0)).all()
        np.testing.assert_allclose(bvh.boxes[node], [*points.min(0), *points.max(0)], atol=1e-3)


def test_neighbours_share_a_leaf(random_scene):
    """What the Morton order is for: the leaves' boxes are small."""
    scene = random_scene(1000, seed=9)
    bvh, _ = build(scene.means, scene.scales * 1e-3, *scene[2:])
    leaves = bvh.boxes[bvh.links[:, 1] != 0]
    assert np.median((leaves[:, 3:] - leaves[:, :3]).max(1)) < 0.4
