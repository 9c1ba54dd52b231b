"""The reference against a loop in Python integers, against its own derivatives, and against known layouts."""

import math

import numpy as np
import pytest
import torch

from hardmine_ns.hash_encoding import HashEncoding, grid_levels
from hardmine_ns.hash_encoding.encoding import reference


def encode_by_hand(point, table, levels):
    """tiny-cuda-nn's rules, one corner at a time, in Python's own numbers."""
    encoding = []
    for level in range(levels.num_levels):
        scale, size = float(levels.scales[level]), int(levels.sizes[level])
        resolution = math.ceil(scale) + 1
        scaled = [float(np.float32(x * scale + 0.5)) for x in point]
        cell = [math.floor(p) for p in scaled]
        fraction = [p - c for p, c in zip(scaled, cell, strict=True)]
        features = [0.0] * table.shape[1]
        for corner in range(8):
            weight, vertex = 1.0, []
            for axis in range(3):
                high = corner >> axis & 1
                weight *= fraction[axis] if high else 1 - fraction[axis]
                vertex.append((cell[axis] + high) % 2**32)
            x, y, z = vertex
            if resolution**3 <= size:
                row = (x + y * resolution + z * resolution**2) % 2**32 % size
            else:
                row = (x ^ y * 2654435761 % 2**32 ^ z * 805459861 % 2**32) % size
            for f in range(len(features)):
                features[f] += weight * float(table[int(levels.offsets[level]) + row, f])
        encoding += features
    return encoding


@pytest.fixture
def small():
    """Two dense levels (4^3 in 64 rows, 6^3 in 216) and two hashed ones."""
    levels = grid_levels(num_levels=4, log2_hashmap_size=8, base_resolution=4, max_resolution=12)
    assert levels.dense.tolist() == [True, True, False, False]
    return levels


POINTS = [
    (0.0, 0.0, 0.0),
    (1.0, 1.0, 1.0),
    (1.0, 0.0, 0.5),
    (0.123, 0.456, 0.789),
    (0.999, 0.001, 0.333),
    (-0.3, 1.7, 0.5),
    (-100.0, 0.2, 3e4),
]


@pytest.mark.parametrize("point", POINTS)
def test_agrees_with_a_loop_in_python_integers(small, point):
    table = torch.randn(small.total_rows, 2, dtype=torch.float64)
    position = torch.tensor([point], dtype=torch.float32)
    expected = torch.tensor([encode_by_hand(position[0].tolist(), table, small)])
    encoded = reference.encode(position, table.float(), small)
    torch.testing.assert_close(encoded, expected.float(), rtol=1e-5, atol=1e-5)


def test_derivatives_in_float64(small):
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand(5, 3, dtype=torch.float64, generator=generator).requires_grad_()
    table = torch.randn(small.total_rows, 2, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, t: reference.encode(p, t, small), (positions, table), eps=1e-7)


def test_layout_of_the_default_grid_is_tiny_cuda_nns():
    levels = grid_levels()
    # Computed by hand from scale = 16 growth^l - 1 with growth = 128^(1/15).
    assert levels.resolutions.tolist()[:6] == [16, 23, 31, 43, 59, 81]
    assert levels.sizes.tolist()[:6] == [4096, 12168, 29792, 79512, 205384, 2**19]
    assert levels.dense.tolist() == [True] * 5 + [False] * 11
    assert levels.total_rows == 4096 + 12168 + 29792 + 79512 + 205384 + 11 * 2**19
    assert levels.scales.dtype == np.float32


def test_one_level_has_the_base_resolution():
    levels = grid_levels(num_levels=1, base_resolution=8, max_resolution=64)
    assert levels.resolutions.tolist() == [8]
    assert levels.total_rows == 512


def test_initial_features_are_uniform_and_small():
    table = HashEncoding(num_levels=4).table
    assert 0.99e-4 < table.abs().max() <= 1e-4
    assert abs(table.mean()) < 1e-6
    assert table.std().item() == pytest.approx(2e-4 / math.sqrt(12), rel=0.02)
