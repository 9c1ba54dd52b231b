"""The field's networks on a CPU, without a graph: one kernel for all layers.

y = W_k relu(... relu(W_1 x)), a few rows at a time, so that their activations never leave the first-level cache. The
lanes of a vector are 16 outputs of one row; the weights are transposed for that, and each layer's outputs padded with
zeros to a multiple of 16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

import ns_support.kernels.compiling  # noqa: F401 - tells the user when kernels are compiled
from ns_support.concurrency.threads import num_threads, run_on_threads
from ns_support.kernels.arrays import FloatArray, IndexArray, as_array
from ns_support.kernels.simd import LANES, Pointer, aligned_zeros, get, load, maximum, pointer, put, splat, store

_ROWS = 8
"""Rows whose sums are in registers together: with fewer, each weight is loaded more often."""
HARMONICS_DIM = 16
"""Columns of a ray's harmonics, the first inputs of the colour network."""
WIDEST = 256
"""Columns of the widest layer that the kernel takes."""
_STRIDE = WIDEST + LANES
"""Floats from one row's activations to the next one's: no power of two, at which they would displace one another."""
_ROWS_WORTH_A_THREAD = 256

_inline = njit(inline="always")
_jit = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})


class PackedNetwork(NamedTuple):
    """Weights as the kernel reads them."""

    weights: FloatArray
    """All layers one after the other, each [inputs, outputs], padded."""
    sizes: IndexArray
    """[layers + 1] number of inputs, and of each layer's outputs with their padding."""
    out_dim: int
    """Outputs without the padding."""


def fits(weights: Sequence[Tensor]) -> bool:
    """Whether the kernel takes layers with these weights [outputs, inputs]."""
    kinds = all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
    return kinds and max(size for weight in weights for size in weight.shape) <= WIDEST


def packed(weights: Sequence[Tensor]) -> PackedNetwork:
    """Copy the weights of layers, each [outputs, inputs], into the kernel's order. Only where they `fits`."""
    sizes = [weights[0].shape[1], *(-(-weight.shape[0] // LANES) * LANES for weight in weights)]
    memory = aligned_zeros((sum(inputs * outputs for inputs, outputs in pairwise(sizes)),))
    begin = 0
    for weight, (inputs, outputs) in zip(weights, pairwise(sizes), strict=True):
        layer = memory[begin : begin + inputs * outputs].reshape(inputs, outputs)
        layer[: weight.shape[1], : weight.shape[0]] = as_array(weight).T
        begin += inputs * outputs
    return PackedNetwork(memory, np.array(sizes, np.int64), weights[-1].shape[0])


@_inline
def _layer(x: Pointer, inputs: int, weights: Pointer, begin: int, outputs: int, y: Pointer, least: float) -> None:
    """max(W x, least) of 8 rows of activations; the order of each sum is that of the inputs."""
    for column in range(0, outputs, LANES):
        zero = splat(np.float32(0.0))
        s0, s1, s2, s3, s4, s5, s6, s7 = zero, zero, zero, zero, zero, zero, zero, zero
        for i in range(inputs):
            w = load(weights, begin + i * outputs + column)
            s0 = s0 + get(x, i) * w
            s1 = s1 + get(x, i + _STRIDE) * w
            s2 = s2 + get(x, i + 2 * _STRIDE) * w
            s3 = s3 + get(x, i + 3 * _STRIDE) * w
            s4 = s4 + get(x, i + 4 * _STRIDE) * w
            s5 = s5 + get(x, i + 5 * _STRIDE) * w
            s6 = s6 + get(x, i + 6 * _STRIDE) * w
            s7 = s7 + get(x, i + 7 * _STRIDE) * w
        # Of a NaN, `maximum` takes its second argument: it stays one.
        store(y, column, maximum(least, s0))
        store(y, column + _STRIDE, maximum(least, s1))
        store(y, column + 2 * _STRIDE, maximum(least, s2))
        store(y, column + 3 * _STRIDE, maximum(least, s3))
        store(y, column + 4 * _STRIDE, maximum(least, s4))
        store(y, column + 5 * _STRIDE, maximum(least, s5))
        store(y, column + 6 * _STRIDE, maximum(least, s6))
        store(y, column + 7 * _STRIDE, maximum(least, s7))


@_jit
def _run_layers(weights: Pointer, sizes: IndexArray, x: Pointer, y: Pointer) -> Pointer:
    """All layers of the 8 rows in `x`, which are lost; where their outputs are, in `x` or in `y`."""
    begin, last = 0, len(sizes) - 2
    for layer in range(last + 1):
        inputs, outputs = sizes[layer], sizes[layer + 1]
        least = np.float32(-np.inf) if layer == last else np.float32(0.0)
        _layer(x, inputs, weights, begin, outputs, y, least)
        begin += inputs * outputs
        x, y = y, x
    return x


@_jit
def _rows(
    features: FloatArray, network: PackedNetwork, scratch: FloatArray, output: FloatArray, start: int, stop: int
) -> None:
    weights, x, y = pointer(network.weights), pointer(scratch), pointer(scratch[1])
    for first in range(start, stop, _ROWS):
        rows = min(_ROWS, stop - first)
        for row in range(rows):
            for column in range(features.shape[1]):
                put(x, row * _STRIDE + column, features[first + row, column])
        found = _run_layers(weights, network.sizes, x, y)
        for row in range(rows):
            for column in range(network.out_dim):
                output[first + row, column] = get(found, row * _STRIDE + column)


@_jit
def _color_rows(
    geometry: FloatArray,
    of_rays: FloatArray,
    rays: IndexArray,
    network: PackedNetwork,
    scratch: FloatArray,
    output: FloatArray,
    start: int,
    stop: int,
) -> None:
    weights, x, y = pointer(network.weights), pointer(scratch), pointer(scratch[1])
    first_of_geometry, first_of_rest = HARMONICS_DIM, HARMONICS_DIM + geometry.shape[1]
    for first in range(start, stop, _ROWS):
        rows = min(_ROWS, stop - first)
        for row in range(rows):
            at, ray = row * _STRIDE, rays[first + row]
            for column in range(HARMONICS_DIM):
                put(x, at + column, of_rays[ray, column])
            for column in range(geometry.shape[1]):
                put(x, at + first_of_geometry + column, geometry[first + row, column])
            for column in range(HARMONICS_DIM, of_rays.shape[1]):
                put(x, at + first_of_rest - HARMONICS_DIM + column, of_rays[ray, column])
        found = _run_layers(weights, network.sizes, x, y)
        for row in range(rows):
            for column in range(network.out_dim):
                output[first + row, column] = get(found, row * _STRIDE + column)


def _in_chunks(rows: int, work: Callable[[FloatArray, int, int], None]) -> None:
    """Call `work(scratch, start, stop)` on every thread for its part of the rows."""

    def worker(thread: int, threads: int) -> None:
        scratch = aligned_zeros((2, _ROWS * _STRIDE))
        work(scratch, rows * thread // threads, rows * (thread + 1) // threads)

    run_on_threads(worker, max(1, min(num_threads(), rows // _ROWS_WORTH_A_THREAD)))


def run(features: FloatArray, network: PackedNetwork, output: FloatArray) -> None:
    """Write a network's outputs [n, out_dim] for the rows [n, K] of its inputs."""
    _in_chunks(len(features), lambda scratch, *part: _rows(features, network, scratch, output, *part))


def colors(geometry: Tensor, of_rays: Tensor, rays: Tensor, network: PackedNetwork) -> Tensor:
    """`HashField.color_net` of samples on rays, before the sigmoid.

    Args:
        geometry: [n, 16] float32.
        of_rays: [R, 16 + A] float32: the harmonics of each ray's direction, and its appearance.
        rays: [n] int64, each sample's ray.
        network: the packed colour network, whose inputs are harmonics, geometry and appearance.

    Returns:
        [n, 3].
    """
    given = as_array(geometry), as_array(of_rays), as_array(rays)
    output = np.empty((len(geometry), network.out_dim), np.float32)
    _in_chunks(len(output), lambda scratch, *part: _color_rows(*given, network, scratch, output, *part))
    return torch.from_numpy(output)
