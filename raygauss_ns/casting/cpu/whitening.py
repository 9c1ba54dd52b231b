"""The whitening matrices A from scales and quaternions, and the gradients back to these parameters, on a CPU.

With A = diag(1/s) R(q)^T and the 13 moments that `casting.moments` defines:

    dL/dmu = A^T A Y1,   dL/dA = -A Y2,   dL/dsigma = M0 / sigma
    dL/ds_i = -(dL/dA . A)_i / s_i (row by row),   dL/d(R^T)_i = (dL/dA)_i / s_i

and from there to the quaternion through the quadratic form of R^T, minus the component along q, which normalisation
removes. As a chain of PyTorch operations this took longer than the caster's own backward pass.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ns_support.concurrency.threads import run_on_threads
from ns_support.kernels.arrays import FloatArray

_SMALLEST_NORM = 1e-12  # of a quaternion, as in torch.nn.functional.normalize


@njit(cache=True, nogil=True)
def _unit(quat: FloatArray) -> tuple[float, float, float, float, float]:
    """A quaternion (w, x, y, z) normalised to unit length, and its original length."""
    w, x, y, z = np.float64(quat[0]), np.float64(quat[1]), np.float64(quat[2]), np.float64(quat[3])
    norm = max(np.sqrt(w * w + x * x + y * y + z * z), _SMALLEST_NORM)
    return w / norm, x / norm, y / norm, z / norm, norm


@njit(cache=True, nogil=True)
def _whiten_chunk(thread: int, threads: int, scales: FloatArray, quats: FloatArray, out: FloatArray) -> None:
    count = len(scales)
    for g in range(count * thread // threads, count * (thread + 1) // threads):
        w, x, y, z, _ = _unit(quats[g])
        rows = (
            (1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)),
            (2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)),
            (2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)),
        )
        for i in range(3):
            for j in range(3):
                out[g, i, j] = rows[i][j] / scales[g, i]


@njit(cache=True, nogil=True)
def _gradient_chunk(
    thread: int,
    threads: int,
    moments: FloatArray,
    scales: FloatArray,
    quats: FloatArray,
    densities: FloatArray,
    whitenings: FloatArray,
    grad_means: FloatArray,
    grad_scales: FloatArray,
    grad_quats: FloatArray,
    grad_densities: FloatArray,
) -> None:
    count = len(scales)
    h = np.empty((3, 3))  # dL/d(R^T)
    for g in range(count * thread // threads, count * (thread + 1) // threads):
        if moments[g, 0] != 0:
            grad_densities[g] = moments[g, 0] / densities[g]
        y1 = moments[g, 1:4]
        xx, xy, xz, yy, yz, zz = (
            moments[g, 4],
            moments[g, 5],
            moments[g, 6],
            moments[g, 7],
            moments[g, 8],
            moments[g, 9],
        )
        if not (moments[g, :10] != 0).any():
            continue
        for i in range(3):
            a, b, c = whitenings[g, i, 0], whitenings[g, i, 1], whitenings[g, i, 2]
            along = a * y1[0] + b * y1[1] + c * y1[2]
            grad_means[g, 0] += a * along
            grad_means[g, 1] += b * along
            grad_means[g, 2] += c * along
            by_a, by_b, by_c = -(a * xx + b * xy + c * xz), -(a * xy + b * yy + c * yz), -(a * xz + b * yz + c * zz)
            scale = np.float64(scales[g, i])
            grad_scales[g, i] = -(by_a * a + by_b * b + by_c * c) / scale
            h[i, 0], h[i, 1], h[i, 2] = by_a / scale, by_b / scale, by_c / scale
        w, x, y, z, norm = _unit(quats[g])
        dw = 2 * (z * (h[0, 1] - h[1, 0]) + y * (h[2, 0] - h[0, 2]) + x * (h[1, 2] - h[2, 1]))
        dx = 2 * (y * (h[0, 1] + h[1, 0]) + z * (h[0, 2] + h[2, 0]) + w * (h[1, 2] - h[2, 1]))
        dy = 2 * (x * (h[0, 1] + h[1, 0]) + z * (h[1, 2] + h[2, 1]) + w * (h[2, 0] - h[0, 2]))
        dz = 2 * (x * (h[0, 2] + h[2, 0]) + y * (h[1, 2] + h[2, 1]) + w * (h[0, 1] - h[1, 0]))
        dx -= 4 * x * (h[1, 1] + h[2, 2])
        dy -= 4 * y * (h[0, 0] + h[2, 2])
        dz -= 4 * z * (h[0, 0] + h[1, 1])
        along_q = w * dw + x * dx + y * dy + z * dz
        grad_quats[g, 0] = (dw - w * along_q) / norm
        grad_quats[g, 1] = (dx - x * along_q) / norm
        grad_quats[g, 2] = (dy - y * along_q) / norm
        grad_quats[g, 3] = (dz - z * along_q) / norm


def whitenings_of(scales: FloatArray, quats: FloatArray) -> FloatArray:
    """A = diag(1/s) R(q)^T: `types.whitening_matrices` in float32, on all cores.

    Args:
        scales: [N, 3].
        quats: [N, 4], w first, of any length but zero.

    Returns:
        [N, 3, 3] float32.
    """
    out = np.empty((len(scales), 3, 3), np.float32)
    run_on_threads(lambda thread, threads: _whiten_chunk(thread, threads, scales, quats, out))
    return out


def parameter_gradients(
    moments: FloatArray, scales: FloatArray, quats: FloatArray, densities: FloatArray, whitenings: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Gradients of means, scales, quaternions and densities from the 13 moments.

    Args:
        moments: [N, 13], as `casting.moments` defines them; the last three, the colour's gradient, are not used.
        scales: [N, 3].
        quats: [N, 4].
        densities: [N].
        whitenings: [N, 3, 3] the matrices A.

    Returns:
        [N, 3], [N, 3], [N, 4] and [N] float32; 0 for a Gaussian whose moments are 0, whatever its parameters.
    """
    by_mean, by_scale, by_quat, by_density = (
        np.zeros(shape, np.float32) for shape in (scales.shape, scales.shape, quats.shape, densities.shape)
    )

    def chunk(thread: int, threads: int) -> None:
        inputs = (moments, scales, quats, densities, whitenings)
        _gradient_chunk(thread, threads, *inputs, by_mean, by_scale, by_quat, by_density)

    run_on_threads(chunk)
    return by_mean, by_scale, by_quat, by_density
