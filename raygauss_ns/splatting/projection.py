"""From splats in the scene to Gaussians on the image plane, in PyTorch (Kerbl et al. 2023, section 4).

A splat of mean mu and covariance V = R diag(s^2) R^T becomes, for a pinhole camera with world-to-camera rotation W, a
Gaussian of covariance

    V' = J W V W^T J^T + 0.3 I,    J = d(column, row) / d(x, y, z) at W (mu - c),

on the image (pixels squared). The conic is V'^-1. The 0.3 square pixels are 3DGS's low-pass filter.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

LOW_PASS = 0.3
"""Variance that 3DGS adds to each splat (pixels squared)."""
LEAST_ALPHA, MOST_ALPHA = 1 / 255, 0.999
"""Opacity in a pixel below which a splat is not drawn there, and the largest opacity (gsplat's value)."""
LEAST_TRANSMITTANCE = 1e-4
"""Transmittance to which compositing is carried on."""
_NEAR = 0.01
"""Depth in front of which nothing is drawn (gsplat's value; scene units)."""
_WIDER = 1.3
"""Multiple of the field of view beyond which J is taken at the edge, as 3DGS does: further out it diverges."""


class Splats(NamedTuple):
    """N splats, as in a file of 3D Gaussian splatting.

    Attributes:
        means: [N, 3] (scene units).
        log_scales: [N, 3] log s.
        quats: [N, 4] rotation, w first, of any non-zero length.
        logits: [N] of the opacities.
        sh_base: [N, 3] harmonics of degree 0.
        sh_rest: [N, B, 3] of higher degrees, B = 0, 3 or 8.
    """

    means: Tensor
    log_scales: Tensor
    quats: Tensor
    logits: Tensor
    sh_base: Tensor
    sh_rest: Tensor

    def rows(self, which: Tensor) -> Splats:
        """Those with the indices [n]."""
        return Splats(*(value.index_select(0, which) for value in self))


class SplatView(NamedTuple):
    """A pinhole camera, or a window of its image.

    Attributes:
        camera_to_world: [3, 4]; it looks along its -z axis, y up.
        focal: fx, fy (pixels).
        center: cx, cy (pixels).
        size: columns, rows.
    """

    camera_to_world: Tensor
    focal: tuple[float, float]
    center: tuple[float, float]
    size: tuple[int, int]


class Projected(NamedTuple):
    """n splats on an image, sorted from near to far.

    Attributes:
        centers: [n, 2] column and row.
        conics: [n, 3] V'^-1 as xx, xy, yy (1 / pixels squared).
        opacities: [n].
        colors: [n, 3].
        extents: [n, 2] distance in columns and rows from the centre within which a splat is drawn; no gradient.
    """

    centers: Tensor
    conics: Tensor
    opacities: Tensor
    colors: Tensor
    extents: Tensor


@torch.no_grad()
def rows_in_view(splats: Splats, view: SplatView) -> Tensor:
    """Indices [n] of the splats that may be seen, from near to far."""
    x, y, z = _in_camera(splats.means, view)
    inside = torch.ones_like(z, dtype=torch.bool)
    for value, focal, center, side in zip((x, y), view.focal, view.center, view.size, strict=True):
        # No wider than a ball of the largest scale, drawn to three and a half standard deviations.
        reach = 3.5 * torch.sqrt((_stretch(value / z) * focal * splats.log_scales.amax(-1).exp() / z) ** 2 + LOW_PASS)
        place = focal * value / z + center
        inside &= (place + reach > 0) & (place - reach < side)
    rows = (inside & (z > _NEAR)).nonzero()[:, 0]
    return rows[torch.argsort(z[rows], stable=True)]


def _stretch(tangent: Tensor) -> Tensor:
    """By how much more than fx / z J enlarges what is at this tangent from the axis, at most."""
    return torch.sqrt(1 + tangent * tangent)


def _in_camera(means: Tensor, view: SplatView) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates [N] to the right, downwards and ahead."""
    rotation, center = view.camera_to_world[:, :3], view.camera_to_world[:, 3]
    x, y, z = ((means - center) @ rotation).unbind(-1)
    return x, -y, -z


def project(splats: Splats, colors: Tensor, view: SplatView) -> Projected:
    """Project splats in front of a camera.

    Args:
        splats: n, from near to far, as `rows_in_view` selects them.
        colors: [n, 3] as seen from the camera.
        view: the camera.
    """
    (fx, fy), (cx, cy), (width, height) = view.focal, view.center, view.size
    x, y, z = _in_camera(splats.means, view)
    over_z = 1 / z
    # The splat's axes W R diag(s) in the camera. One product of flat matrices: of n small ones, it would take longer.
    to_camera = view.camera_to_world[:, :3] * over_z.new_tensor([1.0, -1.0, -1.0])
    turned = (axes_of(splats.quats).view(-1, 3) @ to_camera).view(-1, 3, 3)
    right, down, ahead = (turned * splats.log_scales.exp()[..., None]).unbind(-1)
    limits = [
        (-_WIDER * max(c, side - c) / f, _WIDER * max(c, side - c) / f)
        for f, c, side in ((fx, cx, width), (fy, cy, height))
    ]
    tx, ty = (x * over_z).clamp(*limits[0]), (y * over_z).clamp(*limits[1])
    across = (fx * over_z)[:, None] * (right - tx[:, None] * ahead)
    along = (fy * over_z)[:, None] * (down - ty[:, None] * ahead)
    xx, yy = (across * across).sum(-1) + LOW_PASS, (along * along).sum(-1) + LOW_PASS
    xy = (across * along).sum(-1)
    determinant = xx * yy - xy * xy
    conics = torch.stack([yy, -xy, xx], -1) / determinant[:, None]
    opacities = torch.sigmoid(splats.logits)
    with torch.no_grad():
        # Where opacity exp(-d^2 / 2) is LEAST_ALPHA.
        deviations = torch.sqrt(2 * torch.log((opacities / LEAST_ALPHA).clamp_min(1.0)))
        extents = deviations[:, None] * torch.stack([xx, yy], -1).sqrt()
    centers = torch.stack([fx * x * over_z + cx, fy * y * over_z + cy], -1)
    return Projected(centers, conics, opacities, colors, extents)


def axes_of(quats: Tensor) -> Tensor:
    """[n, 3, 3] of quaternions [n, 4] of any length, w first: the turned axes as rows, which is R^T.

    The entries of R are linear in the products of a unit quaternion's parts.
    """
    unit = normalize(quats, dim=-1)
    products = (unit[:, :, None] * unit[:, None, :]).view(-1, 16)
    axes: Tensor = (products @ _OF_PRODUCTS.to(unit)).view(-1, 3, 3)
    return axes


def _of_products() -> Tensor:
    """[16, 9] by which the products q_a q_b of a unit quaternion's parts make R^T."""
    w, x, y, z = range(4)
    # With 1 = ww + xx + yy + zz, an entry of the diagonal is ww + xx - yy - zz and so on.
    rows = [
        [((w, w), 1), ((x, x), 1), ((y, y), -1), ((z, z), -1)],
        [((x, y), 2), ((w, z), 2)],
        [((x, z), 2), ((w, y), -2)],
        [((x, y), 2), ((w, z), -2)],
        [((w, w), 1), ((x, x), -1), ((y, y), 1), ((z, z), -1)],
        [((y, z), 2), ((w, x), 2)],
        [((x, z), 2), ((w, y), 2)],
        [((y, z), 2), ((w, x), -2)],
        [((w, w), 1), ((x, x), -1), ((y, y), -1), ((z, z), 1)],
    ]
    matrix = torch.zeros(16, 9)
    for entry, terms in enumerate(rows):
        for (a, b), factor in terms:
            matrix[4 * a + b, entry] = factor
    return matrix


_OF_PRODUCTS = _of_products()
