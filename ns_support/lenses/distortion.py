"""Lens distortion as a map of a plane to itself, and its inverse to full float64 precision.

    F(x) = d(s) x + T(x) + P(x),   s = |x|^2,   d(s) = 1 + k_1 s + k_2 s^2 + ...
    T(x) = 2 (p . x) x + s p,      p = (p2, p1)                                   (decentring)
    P(x) = s (s0, s2) + s^2 (s1, s3)                                              (thin prism)

It covers OpenCV's model (https://docs.opencv.org/4.x/d9/d0c/group__calib3d.html) with nerfstudio's k_4 s^4, where x is
a point of a pinhole's image plane; OpenCV's fisheye model, where |x| is the angle to the axis; and, as a composition of
two such maps, Project Aria's Fisheye624.

Away from the axis F may fold over, so that two points share a pixel. F is therefore restricted to a disc about the axis
on which the symmetric part of its Jacobian is positive definite: F is injective on a convex set with that property.
From

    eigenvalues of the radial part's Jacobian: d (across) and d + 2 s d' (outwards)
    least eigenvalue of T's: -6 |p| r;  of the symmetric part of P's: >= -2 |(s0, s2)| r - 4 |(s1, s3)| r^3

the radius of the disc is the least r > 0 at which either of the first two, minus the others, is zero. For radial
distortion this is exactly the fold. Decentring and prism make the disc smaller in proportion to their size. Points
outside the disc are not seen, and pixels that no point of the disc is mapped to have no ray.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Number = float | Tensor
"""A coefficient: a number for all points, or a tensor with one per point."""

_CONVERGED = 1e-10
"""Size of the last Newton step: the next one would be about its square."""
_COMMON_STEPS = 8
"""Newton steps for all points together; the few points that need more are then continued separately."""
_MOST_STEPS = 60


class PlaneMap(NamedTuple):
    """F of the module's docstring. `plane_map` makes one and finds its radius.

    Attributes:
        radial: k_1, k_2, ...
        tangential: p1, p2.
        prism: s0, s1, s2, s3.
        radius: of the disc to which F is restricted, and on which it is injective.
    """

    radial: tuple[Number, ...]
    tangential: tuple[Number, Number]
    prism: tuple[Number, Number, Number, Number]
    radius: Number

    @property
    def is_identity(self) -> bool:
        """Whether F(x) = x."""
        return self.is_radial and not any(map(_counts, self.radial))

    @property
    def is_radial(self) -> bool:
        """Whether F preserves directions from the axis."""
        return not any(map(_counts, (*self.tangential, *self.prism)))

    def __call__(self, points: Tensor) -> Tensor:
        """F(x) of points [*, 2], inside or outside the disc."""
        if self.is_identity:
            return points
        return torch.stack(self._value(*points.unbind(-1)), dim=-1)

    def jacobian(self, points: Tensor) -> Tensor:
        """[*, 2, 2] dF/dx at points [*, 2]; the first of the two axes is F's."""
        rows = self._jacobian(*points.unbind(-1))
        return torch.stack([value.expand(points.shape[:-1]) for value in rows], dim=-1).view(*points.shape, 2)

    def contains(self, points: Tensor) -> Tensor:
        """[*] bool, which points [*, 2] are in the disc."""
        return torch.linalg.vector_norm(points, dim=-1) < self.radius

    def inverse(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The preimage in the disc of each image point [*, 2].

        Newton's method until convergence, safeguarded by bisection (radial part) and by halving the steps (in the
        plane). Coefficients that are tensors must have the shape [*].

        Returns:
            [*, 2] float64 points; [*] bool, which image points have a preimage. For the others the point is the centre.
        """
        images = images.double()
        if self.is_identity:
            return images, self.contains(images)
        shape = images.shape[:-1]
        flat = self.with_tensors(lambda value: value.expand(shape).reshape(-1))
        u, v = images.reshape(-1, 2).unbind(-1)
        x, y, found = flat._inverse_radial(u, v)
        if not self.is_radial:
            x, y, found = flat._inverse_in_plane(u, v, x, y)
        points = torch.where(found[:, None], torch.stack([x, y], dim=-1), 0.0)
        return points.view(*shape, 2), found.view(shape)

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> PlaneMap:
        """The same map with its tensors, if it has any, changed."""

        def of(value: Number) -> Number:
            return change(value) if isinstance(value, Tensor) else value

        p1, p2 = map(of, self.tangential)
        s0, s1, s2, s3 = map(of, self.prism)
        return PlaneMap(tuple(map(of, self.radial)), (p1, p2), (s0, s1, s2, s3), of(self.radius))

    def _factor(self, s: Tensor) -> tuple[Number, Number]:
        """d(s) and d'(s) by Horner's rule."""
        last = max((i + 1 for i, k in enumerate(self.radial) if _counts(k)), default=0)
        value: Number = 0.0
        slope: Number = 0.0
        for k in (*self.radial[:last][::-1], 1.0):
            slope = slope * s + value
            value = value * s + k
        return value, slope

    def _value(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        s = x * x + y * y
        d, _ = self._factor(s)
        u, v = d * x, d * y
        if any(map(_counts, self.tangential)):
            p1, p2 = self.tangential
            along = 2 * (p2 * x + p1 * y)
            u, v = u + along * x + s * p2, v + along * y + s * p1
        if any(map(_counts, self.prism)):
            s0, s1, s2, s3 = self.prism
            u, v = u + s * (s0 + s * s1), v + s * (s2 + s * s3)
        return u, v

    def _jacobian(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """du/dx, du/dy, dv/dx, dv/dy."""
        s = x * x + y * y
        d, slope = self._factor(s)
        outwards = 2 * slope
        xx, yy = d + outwards * x * x, d + outwards * y * y
        xy = yx = outwards * x * y
        if any(map(_counts, self.tangential)):
            p1, p2 = self.tangential
            cross = 2 * (p2 * y + p1 * x)
            xx, yy = xx + 6 * p2 * x + 2 * p1 * y, yy + 6 * p1 * y + 2 * p2 * x
            xy = yx = xy + cross
        if any(map(_counts, self.prism)):
            s0, s1, s2, s3 = self.prism
            along_u, along_v = 2 * (s0 + 2 * s * s1), 2 * (s2 + 2 * s * s3)
            xx, xy, yx, yy = xx + along_u * x, xy + along_u * y, yx + along_v * x, yy + along_v * y
        return xx, xy, yx, yy

    def _inverse_radial(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The inverse of d(s) x alone, and for which image points it exists."""
        image = torch.hypot(u, v)
        upper = self._upper_bound(image)
        found = image < upper * self._factor(upper * upper)[0]
        goal = torch.where(found, image, 0.0)
        r, going = self._radii(goal, torch.minimum(goal, upper), upper, _COMMON_STEPS)
        if bool(going.any()):
            left = self.with_tensors(lambda value: value[going])
            r[going] = left._radii(goal[going], r[going], upper[going], _MOST_STEPS)[0]
        ratio = torch.where(image > 0, r / image, 1.0)
        return u * ratio, v * ratio, found

    def _radii(self, goal: Tensor, r: Tensor, upper: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Solve r d(r^2) = goal in [0, upper], where the left side is increasing, from an initial guess r.

        Returns:
            r, and which values have not converged.
        """
        low, high = torch.zeros_like(r), upper
        going = torch.ones_like(r, dtype=torch.bool)
        for _ in range(steps):
            s = r * r
            d, slope = self._factor(s)
            excess = r * d - goal
            low, high = torch.where(excess <= 0, r, low), torch.where(excess >= 0, r, high)
            new = r - excess / (d + 2 * s * slope)
            new = torch.where((new >= low) & (new <= high), new, 0.5 * (low + high))
            going = (new - r).abs() > _CONVERGED
            r = new
            if not bool(going.any()):
                break
        return r, going

    def _upper_bound(self, image: Tensor) -> Tensor:
        """The radius, or if that is infinite, an r that is mapped beyond all image points."""
        bound = torch.as_tensor(self.radius, dtype=image.dtype, device=image.device).expand(image.shape).clone()
        open_ended = bound.isinf()
        if bool(open_ended.any()):
            r = torch.ones_like(bound)
            while bool((short := open_ended & (r * self._factor(r * r)[0] <= image)).any()):
                r = torch.where(short, 2 * r, r)
            bound = torch.where(open_ended, r, bound)
        return bound

    def _inverse_in_plane(self, u: Tensor, v: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The inverse, from an initial guess (x, y), and for which image points it was found."""
        x, y, found = self._newton(u, v, x, y, _COMMON_STEPS)
        if not bool(found.all()):
            going = ~found
            left = self.with_tensors(lambda value: value[going])
            x[going], y[going], found[going] = left._newton(u[going], v[going], x[going], y[going], _MOST_STEPS)
        return x, y, found

    def _newton(self, u: Tensor, v: Tensor, x: Tensor, y: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Newton steps, halved until they reduce the residual, and limited to the disc."""
        x, y = self._within(x, y)
        a, b = self._residual(u, v, x, y)
        scale = torch.ones_like(x)
        found = torch.zeros_like(x, dtype=torch.bool)
        for _ in range(steps):
            xx, xy, yx, yy = self._jacobian(x, y)
            determinant = xx * yy - xy * yx
            step_x, step_y = (yy * a - xy * b) / determinant, (xx * b - yx * a) / determinant
            new_x, new_y = self._within(x + scale * step_x, y + scale * step_y)
            new_a, new_b = self._residual(u, v, new_x, new_y)
            size = torch.hypot(step_x, step_y)
            closer = (torch.hypot(new_a, new_b) < torch.hypot(a, b)) | (size < _CONVERGED)
            x, y = torch.where(closer, new_x, x), torch.where(closer, new_y, y)
            a, b = torch.where(closer, new_a, a), torch.where(closer, new_b, b)
            scale = torch.where(closer, 1.0, 0.5 * scale)
            found = size < _CONVERGED
            if bool(found.all()):
                break
        return x, y, found & (torch.hypot(x, y) < self.radius)

    def _residual(self, u: Tensor, v: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        at_x, at_y = self._value(x, y)
        return u - at_x, v - at_y

    def _within(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The points, with those outside the disc moved to its border."""
        shrink = (self.radius / torch.hypot(x, y)).clamp(max=1.0)
        return x * shrink, y * shrink


def plane_map(
    radial: tuple[float, ...] = (),
    tangential: tuple[float, float] = (0.0, 0.0),
    prism: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
    limit: float = math.inf,
) -> PlaneMap:
    """F with these coefficients.

    Args:
        radial: k_1, k_2, ...
        tangential: p1, p2.
        prism: s0, s1, s2, s3.
        limit: upper bound of the radius: pi if |x| is an angle.

    Raises:
        ValueError: a coefficient is not finite.
    """
    if not all(map(math.isfinite, (*radial, *tangential, *prism))):
        raise ValueError(f"distortion coefficients must be finite, got {(*radial, *tangential, *prism)}")
    # Polynomials in r, lowest power first.
    size = max(2 * len(radial) + 1, 4)
    across, outwards, rest = np.zeros(size), np.zeros(size), np.zeros(size)
    across[0] = outwards[0] = 1.0
    for i, k in enumerate(radial, start=1):
        across[2 * i], outwards[2 * i] = k, (2 * i + 1) * k
    s0, s1, s2, s3 = prism
    rest[1] = 6 * math.hypot(*tangential) + 2 * math.hypot(s0, s2)
    rest[3] = 4 * math.hypot(s1, s3)
    radius = min(limit, _first_zero(across - rest), _first_zero(outwards - rest))
    return PlaneMap(tuple(radial), tangential, prism, radius)


def stack_maps(maps: list[PlaneMap]) -> PlaneMap:
    """One map for points that each have their own map; coefficients that all maps share stay numbers.

    Args:
        maps: with the same number of radial coefficients.

    Returns:
        A map whose other coefficients are float64 tensors [number of maps].
    """
    radial = tuple(stacked(list(values)) for values in zip(*(m.radial for m in maps), strict=True))
    p1, p2 = (stacked([m.tangential[i] for m in maps]) for i in range(2))
    s0, s1, s2, s3 = (stacked([m.prism[i] for m in maps]) for i in range(4))
    return PlaneMap(radial, (p1, p2), (s0, s1, s2, s3), stacked([m.radius for m in maps]))


def stacked(values: list[Number]) -> Number:
    """The common value if all are equal, otherwise a float64 tensor of them."""
    return values[0] if len(set(values)) == 1 else torch.tensor(values, dtype=torch.float64)


def _counts(coefficient: Number) -> bool:
    """Whether a coefficient may be non-zero."""
    return isinstance(coefficient, Tensor) or coefficient != 0


def _first_zero(coefficients: NDArray[np.float64]) -> float:
    """The least positive real root of a polynomial (lowest power first), or infinity."""
    roots = np.roots(coefficients[::-1])
    real = roots.real[(np.abs(roots.imag) <= 1e-9 * np.abs(roots)) & (roots.real > 0)]
    return float(real.min()) if len(real) else math.inf
