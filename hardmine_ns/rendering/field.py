"""instant-ngp's field: a hash encoding and two small networks.

    features = hash(x)                     [n, L F]
    geometry = W2 relu(W1 features)        [n, 16];  its first column is log density
    color    = W5 relu(W4 relu(W3 [Y(d), geometry, appearance]))    before the sigmoid

Y(d) are the 16 real spherical harmonics up to degree 3 of the viewing direction. As in tiny-cuda-nn, no layer has a
bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hardmine_ns.hash_encoding import HashEncoding
from hardmine_ns.rendering.cpu import networks
from ns_support.kernels.arrays import as_array
from ns_support.kernels.backend import triton_module
from ns_support.kernels.harmonics import Y0, Y1, Y2, Y3

GEOMETRY_DIM = 16
"""Outputs of the density network: the log density, and what the colour network is told besides."""
HARMONICS_DIM = 16
"""Spherical harmonics of degree 0 to 3."""


class HashField(nn.Module):
    """Density and colour of points seen from directions."""

    def __init__(
        self, encoding: HashEncoding, hidden_dim: int = 64, num_images: int = 0, appearance_dim: int = 0
    ) -> None:
        """Make the networks.

        Args:
            encoding: of positions.
            hidden_dim: width of the hidden layers.
            num_images: images that have an appearance of their own; used with `appearance_dim` > 0 only.
            appearance_dim: length of an image's appearance vector; 0 for none.
        """
        super().__init__()
        self.encoding = encoding
        self.density_net = _Network(encoding.out_dim, hidden_dim, GEOMETRY_DIM, hidden_layers=1)
        self.color_net = _Network(HARMONICS_DIM + GEOMETRY_DIM + appearance_dim, hidden_dim, 3, hidden_layers=2)
        self.appearance = nn.Embedding(num_images, appearance_dim) if appearance_dim > 0 else None

    def geometry(self, unit_positions: Tensor, features: Tensor | None = None) -> Tensor:
        """Outputs of the density network; column 0 is log density.

        Args:
            unit_positions: [n, 3] in the unit cube.
            features: [n, L F], the encoding at these positions, if an earlier pass without a graph has computed it. Its
                gradient reaches the table all the same. Only where `encoding.can_resume`.

        Returns:
            [n, 16].
        """
        features = self.encoding(unit_positions) if features is None else self.encoding.resume(features, unit_positions)
        if self.has_kernels:
            output = torch.empty(len(features), GEOMETRY_DIM)
            networks.run(as_array(features), networks.packed(self.density_net.weights), as_array(output))
            return output
        return self.density_net(features)

    def color(self, geometry: Tensor, harmonics: Tensor, appearance: Tensor | None = None) -> Tensor:
        """Colours before the sigmoid, [n, 3].

        Args:
            geometry: [n, 16] from `geometry`.
            harmonics: [n, 16] from `spherical_harmonics` of the viewing directions.
            appearance: [n, A], for a field that has appearances.
        """
        parts = (harmonics, geometry) if appearance is None else (harmonics, geometry, appearance)
        return self.color_net(torch.cat(parts, dim=-1))

    def color_on_rays(self, geometry: Tensor, ray: Tensor, harmonics: Tensor, appearance: Tensor | None) -> Tensor:
        """Colours before the sigmoid, [n, 3], of samples on rays.

        Args:
            geometry: [n, 16] from `geometry`.
            ray: [n] int64, each sample's ray.
            harmonics: [R, 16] of the rays' directions.
            appearance: [R, A] of the rays' images, for a field that has appearances.
        """
        if self.has_kernels:
            of_rays = harmonics if appearance is None else torch.cat((harmonics, appearance), dim=-1)
            return networks.colors(geometry, of_rays, ray, networks.packed(self.color_net.weights))
        return self.color(geometry, harmonics[ray], None if appearance is None else appearance[ray])

    @property
    def has_kernels(self) -> bool:
        """Whether the kernels of `rendering/cpu` can run: on a CPU, in float32, without a graph."""
        plain = not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
        weights = (*self.density_net.weights, *self.color_net.weights)
        return plain and self.encoding.table.dtype == torch.float32 and networks.fits(weights)

    def appearance_of(self, image_indices: Tensor) -> Tensor | None:
        """Appearance vectors [n, A], or None: the images' own in training, their mean in evaluation."""
        if self.appearance is None:
            return None
        if self.training:
            return self.appearance(image_indices)
        return self.appearance.weight.mean(0).expand(image_indices.shape[0], -1)


class _Network(nn.Module):
    """Linear layers without biases and ReLUs between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, hidden_layers: int) -> None:
        super().__init__()
        sizes = [in_dim, *[hidden_dim] * hidden_layers, out_dim]
        layers = [nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)]
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
        self.layers = nn.ModuleList(layers)

    @property
    def weights(self) -> list[Tensor]:
        """[outputs, inputs] of each layer."""
        return list(self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.relu_(layer(x))
        return self.layers[-1](x)


@dataclass(frozen=True)
class UnitCube:
    """Maps positions in the scene to the unit cube that the encoding covers.

    With u the position in half extents from the box's centre and m = max |u_i|, contraction maps m > 1 to
    (2 - 1/m) u / m (mip-NeRF 360's, with the maximum norm), so that all of space fits the cube.
    """

    center: Tensor
    """[3] of the scene box."""
    half_extent: Tensor
    """[3] of the scene box."""
    contracts: bool
    """Whether what lies outside the box is contracted into the cube; if not, it is clamped to its faces."""

    def __call__(self, positions: Tensor) -> Tensor:
        """Positions [n, 3] in the cube: [n, 3] in [0, 1]."""
        u = (positions - self.center) * self.half_extent.reciprocal()
        if not self.contracts:
            return (u * 0.5 + 0.5).clamp_(0, 1)
        m = u.abs().amax(-1, keepdim=True).clamp(min=1)
        return (u * ((2 - 1 / m) / m) * 0.25 + 0.25 * 2).clamp_(0, 1)


class _TruncatedExp(torch.autograd.Function):
    """Exp, whose derivative is held within exp(+-15): a density must be able to leave a wrong extreme."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.exp(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * torch.exp(x.clamp(-15, 15))


def truncated_exp(x: Tensor) -> Tensor:
    """Density from log density, elementwise; instant-ngp's activation."""
    return _TruncatedExp.apply(x)


def spherical_harmonics(directions: Tensor) -> Tensor:
    """Real spherical harmonics of degree 0 to 3, orthonormal on the sphere.

    Args:
        directions: [n, 3] of unit length.

    Returns:
        [n, 16].
    """
    if directions.is_cuda and directions.dtype == torch.float32:
        gpu = triton_module("hardmine_ns.rendering.gpu.harmonics", "The field on a GPU")
        found: Tensor = gpu.spherical_harmonics(directions)
        return found
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    columns = [
        torch.full_like(x, Y0),
        -Y1 * y,
        Y1 * z,
        -Y1 * x,
        Y2[0] * x * y,
        -Y2[0] * y * z,
        Y2[1] * (3 * zz - 1),
        -Y2[0] * x * z,
        Y2[2] * (xx - yy),
        -Y3[0] * y * (3 * xx - yy),
        Y3[1] * x * y * z,
        -Y3[2] * y * (5 * zz - 1),
        Y3[3] * z * (5 * zz - 3),
        -Y3[2] * x * (5 * zz - 1),
        Y3[4] * z * (xx - yy),
        -Y3[0] * x * (xx - 3 * yy),
    ]
    return torch.stack(columns, dim=-1)
