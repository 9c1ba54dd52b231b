"""`splat`: an image of splats as viewers draw them, differentiable in the splats.

image = splat(splats, SplatView(camera_to_world, (fx, fy), (cx, cy), (columns, rows)), background)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raygauss_ns.color import ColorBasis, view_colors
from raygauss_ns.splatting.projection import LOW_PASS, Projected, Splats, SplatView, project, rows_in_view


def splat(splats: Splats, view: SplatView, background: Tensor) -> Tensor:
    """Draw splats as 3D Gaussian splatting does (Kerbl et al. 2023): EWA projection, sorting by depth, alpha blending.

    On a CPU, projection in PyTorch and compositing by the kernel of `splatting.cpu`; on a GPU gsplat's kernels.

    Args:
        splats: N, float32.
        view: the camera.
        background: [3].

    Returns:
        [rows, columns, 3], differentiable in the splats.
    """
    if splats.means.is_cuda:
        return _by_gsplat(splats, view, background)
    projected = visible(splats, view)
    colors = projected.colors - background
    image = _Composite.apply(*projected[:3], colors, projected.extents, view.size)
    return image + background


def visible(splats: Splats, view: SplatView) -> Projected:
    """The splats that may be seen, on the image and from near to far, in the colours of that view."""
    seen = splats.rows(rows_in_view(splats, view))
    none = seen.means.new_zeros(len(seen.means), 0, 3)
    basis = ColorBasis(seen.sh_base, seen.sh_rest, none, none[..., 0], none)
    # Viewers clamp colours at 0 before they blend them.
    colors = view_colors(basis, seen.means, view.camera_to_world[:, 3]).clamp_min(0.0)
    return project(seen, colors, view)


class _Composite(torch.autograd.Function):
    """The kernel as a differentiable function of what is on the image."""

    @staticmethod
    def forward(
        ctx: Any,
        centers: Tensor,
        conics: Tensor,
        opacities: Tensor,
        colors: Tensor,
        extents: Tensor,
        size: tuple[int, int],
    ) -> Tensor:
        """[rows, columns, 3]."""
        # Imported late: Numba takes a second to import.
        from raygauss_ns.splatting.cpu import composite

        params = torch.cat([centers, conics, opacities[:, None], colors], -1)
        ctx.forward_pass = composite(params.numpy(), extents.contiguous().numpy(), size)
        image = torch.from_numpy(ctx.forward_pass.image)[:, : size[1], : size[0]]
        return image.permute(1, 2, 0).contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of centres, conics, opacities and colours."""
        from raygauss_ns.splatting.cpu import gradients

        found = torch.from_numpy(gradients(ctx.forward_pass, slopes.contiguous().numpy()))
        return found[:, :2], found[:, 2:5], found[:, 5], found[:, 6:], None, None


def _by_gsplat(splats: Splats, view: SplatView, background: Tensor) -> Tensor:
    """The same by gsplat's kernels, which nerfstudio brings. Not run yet: see docs/gpu.md."""
    from gsplat import rasterization

    (fx, fy), (cx, cy), (width, height) = view.focal, view.center, view.size
    pose = torch.eye(4, device=splats.means.device)
    pose[:3] = view.camera_to_world * pose.new_tensor([1.0, -1.0, -1.0, 1.0])
    intrinsics = pose.new_tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
    harmonics = torch.cat([splats.sh_base[:, None], splats.sh_rest], 1)
    images, _, _ = rasterization(
        splats.means,
        torch.nn.functional.normalize(splats.quats, dim=-1),
        splats.log_scales.exp(),
        torch.sigmoid(splats.logits),
        harmonics,
        torch.linalg.inv(pose)[None],
        intrinsics[None],
        width,
        height,
        eps2d=LOW_PASS,
        sh_degree=round(harmonics.shape[1] ** 0.5) - 1,
        backgrounds=background[None],
        packed=False,
    )
    image: Tensor = images[0]
    return image
