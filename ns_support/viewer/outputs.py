"""A model's outputs, some of which are computed lazily."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor


def filled_depth(depth: Tensor, accumulation: Tensor, fars: Tensor | None = None) -> Tensor:
    """The depth, with that of empty rays set to the largest depth: a depth of 0 would look like a near surface.

    Args:
        depth: distance along each ray, of any shape.
        accumulation: opacity, of the same shape.
        fars: the end of each ray, of the same shape. Used if all rays are empty: the depth is then the end if it is
            finite, otherwise 0. None: 0.
    """
    if depth.numel() == 0:
        return depth
    seen = accumulation.detach() > 1e-3
    # In one expression for both cases: to learn which it is, the host would wait for a GPU.
    empty = torch.zeros_like(depth) if fars is None else torch.where(fars.isfinite(), fars, 0.0).to(depth)
    largest = torch.where(seen, depth.detach(), -torch.inf).amax()
    return torch.where(seen, depth, torch.where(seen.any(), largest, empty))


def without_background(rgb: Tensor, alpha: Tensor, background: Tensor) -> Tensor:
    """What was rendered before a background, as an image with an alpha channel.

    Args:
        rgb: [*, 3] with the background.
        alpha: [*, 1] accumulation.
        background: [*, 3] or [3].

    Returns:
        [*, 4]: the colour without the background, in [0, 1], and alpha.
    """
    color = (rgb - background * (1 - alpha)) / alpha.clamp(min=1e-6)
    return torch.cat([torch.where(alpha > 0, color.clamp(0, 1), 0.0), alpha], dim=-1)


@dataclass(frozen=True)
class Extra:
    """A lazily computed output."""

    compute: Callable[[], Tensor]
    """Computes it, [*, channels]."""
    channels: int = 1
    """1 or 3."""


class Outputs(MutableMapping[str, Tensor]):
    """Outputs by name. An `Extra` is computed when it is first looked up.

    nerfstudio's commands look up the requested outputs (`ns-render --rendered-output-names`, `ns-export`) and list only
    the names of the others. The viewer looks them up without the trainer's lock, while the parameters may change: it
    must be given the result of `only` for the outputs that it shows.

    Args:
        ready: computed outputs [*, C]; `only` requires one of shape [*, 1].
        extras: lazily computed outputs.
    """

    def __init__(self, ready: Mapping[str, Tensor], extras: Mapping[str, Extra]) -> None:
        self._ready, self._extras = dict(ready), dict(extras)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._ready and name in self._extras:
            self._ready[name] = self._extras[name].compute()
        if name not in self._ready:
            raise KeyError(f"there is no output {name!r}: there are {', '.join(self)}")
        return self._ready[name]

    def __setitem__(self, name: str, output: Tensor) -> None:
        self._ready[name] = output

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(f"there is no output {name!r}: there are {', '.join(self)}")
        self._ready.pop(name, None)
        self._extras.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._ready or name in self._extras

    def __iter__(self) -> Iterator[str]:
        yield from [name for name in self._ready if name not in self._extras]
        yield from self._extras

    def keys(self) -> list[str]:  # type: ignore[override]
        """The names, as a list, because nerfstudio prints them if an unknown one is requested."""
        return list(self)

    def __repr__(self) -> str:
        return f"Outputs({', '.join(self)})"

    def __len__(self) -> int:
        return len(self._ready.keys() | self._extras.keys())

    def only(self, wanted: Collection[str]) -> dict[str, Tensor]:
        """Compute the wanted extras now; the others are black placeholders, so that all names are still listed."""
        like = next(output for output in self._ready.values() if output.shape[-1] == 1)
        return {
            name: self[name]
            if name in wanted or name not in self._extras
            else like.new_zeros(()).expand(*like.shape[:-1], self._extras[name].channels)
            for name in self
        }
