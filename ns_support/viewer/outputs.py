"""A model's pictures, of which some are computed only when somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor


def filled_depth(depth: Tensor, accumulation: Tensor, fars: Tensor | None = None) -> Tensor:
    """The depth, and where rays meet nothing the largest one of all: a ray of no length would not be seen to be empty.

    Args:
        depth: distance along each ray, of any shape.
        accumulation: opacity, of the same shape.
        fars: where each ray ends, of the same shape; what the depth is where no ray of all meets anything and its own
            end is finite. None: it is 0 there.
    """
    seen = accumulation.detach() > 1e-3
    if bool(seen.any()):
        return torch.where(seen, depth, depth[seen].max())
    return torch.zeros_like(depth) if fars is None else torch.where(fars.isfinite(), fars, 0.0).to(depth)


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
    """A picture that costs something."""

    compute: Callable[[], Tensor]
    """Gives it, [*, channels]."""
    channels: int = 1
    """1 or 3."""


class Outputs(MutableMapping[str, Tensor]):
    """Pictures by name. An `Extra` is computed when it is first looked up, and never if it is not.

    nerfstudio's commands look up what they were asked for (`ns-render --rendered-output-names`, `ns-export`) and list
    the rest by name only. The viewer looks up without the trainer's lock, while the parameters may be changing: give it
    an `only(...)` of what it shows.

    Args:
        ready: pictures [*, C] that are there already; one of them must have the shape [*, 1] for `only`.
        extras: the others.
    """

    def __init__(self, ready: Mapping[str, Tensor], extras: Mapping[str, Extra]) -> None:
        self._ready, self._extras = dict(ready), dict(extras)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._ready and name in self._extras:
            self._ready[name] = self._extras[name].compute()
        if name not in self._ready:
            raise KeyError(f"there is no output {name!r}: there are {', '.join(self)}")
        return self._ready[name]

    def __setitem__(self, name: str, picture: Tensor) -> None:
        self._ready[name] = picture

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
        """The names, as a list: nerfstudio prints them where one is asked for that is not there."""
        return list(self)

    def __repr__(self) -> str:
        return f"Outputs({', '.join(self)})"

    def __len__(self) -> int:
        return len(self._ready.keys() | self._extras.keys())

    def only(self, wanted: Collection[str]) -> dict[str, Tensor]:
        """Compute the wanted extras now and stand black pictures in for the others, so that all names stay listed."""
        like = next(picture for picture in self._ready.values() if picture.shape[-1] == 1)
        return {
            name: self[name]
            if name in wanted or name not in self._extras
            else like.new_zeros(()).expand(*like.shape[:-1], self._extras[name].channels)
            for name in self
        }
