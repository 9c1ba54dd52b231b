"""Images in memory: as many as a limit allows, at the resolution that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

Batch = dict[str, Any]
"""An image's data: "image" [H, W, 3 or 4] float in [0, 1] (or uint8), "image_idx", "mask" [H, W, 1] bool if any."""


def downscaled_image(image: Tensor, factor: int) -> Tensor:
    """The average of each factor x factor block of pixels; rows and columns that fill no block are dropped.

    Colours count by their alpha, so that what an image is over a background is the average of what it was.

    Args:
        image: [H, W, 3 or 4] uint8, or float in [0, 1], with straight alpha.
        factor: >= 1, at most H and W.

    Returns:
        [H // factor, W // factor, 3 or 4] of the same type.
    """
    if factor == 1:
        return image
    rows, columns = image.shape[0] // factor, image.shape[1] // factor
    whole = image[: rows * factor, : columns * factor].cpu().numpy()
    if whole.shape[-1] == 3:
        return torch.from_numpy(cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA)).to(image.device)
    most = 255.0 if image.dtype == torch.uint8 else 1.0
    straight = whole.astype(np.float32)
    alpha = straight[..., 3:] / most
    straight[..., :3] *= alpha
    mean = np.asarray(cv2.resize(straight, (columns, rows), interpolation=cv2.INTER_AREA), np.float32)
    mean[..., :3] /= np.maximum(mean[..., 3:] / most, 1e-6)
    if image.dtype == torch.uint8:
        mean = np.rint(mean).clip(0, 255)
    return torch.from_numpy(mean.astype(whole.dtype)).to(image.device)


def downscaled_mask(mask: Tensor, factor: int) -> Tensor:
    """Which blocks of a mask [H, W, 1] are shown: those whose pixels all are, so that nothing hidden is averaged in."""
    if factor == 1:
        return mask
    rows, columns = mask.shape[0] // factor, mask.shape[1] // factor
    blocks = mask[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor, 1)
    return blocks.all(3).all(1)


def downscaled_batch(batch: Batch, factor: int) -> Batch:
    """An image's data at 1 / factor of its size."""
    if factor == 1:
        return batch
    smaller = batch | {"image": downscaled_image(batch["image"], factor)}
    if "mask" in batch:
        smaller["mask"] = downscaled_mask(batch["mask"], factor)
    return smaller


class ImageStore:
    """The images of a data set. Those that the memory has room for are decoded once, the others each time.

    Full-sized images are kept if all of them fit, and in addition those of the reduced size that was asked for last.
    Otherwise images are kept at the size that was asked for last, as long as there is room.

    Args:
        read: decodes an image's data; called from several threads.
        sizes: memory of each image's data (bytes).
        memory: maximum for all that is kept (bytes), apart from reduced sizes beside full ones: at most a third more.
        place: moves a batch to where it is kept.
    """

    def __init__(
        self, read: Callable[[int], Batch], sizes: Sequence[int], memory: int, place: Callable[[Batch], Batch]
    ) -> None:
        self._read, self._sizes, self._memory, self._place = read, sizes, memory, place
        self.fits = sum(sizes) <= memory
        """Whether all images are kept at their full size."""
        self._kept: dict[int, dict[int, Batch]] = {}  # by factor, then by image
        self._used, self._latest = 0, 1
        self._coming: dict[tuple[int, int], Future[Batch]] = {}
        self._lock = Lock()
        self._ahead = ThreadPoolExecutor(max_workers=1, thread_name_prefix="images")

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> Batch:
        """An image's data at its full size, as nerfstudio takes it from its list of images."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self.at(index)

    def load(self, factor: int, follow: Callable[[Iterable[Batch], int], Iterable[Batch]]) -> None:
        """Decode every image once, so that a broken one is found now.

        Args:
            factor: of the images that will be asked for first.
            follow: shows the progress of an iteration over so many images.
        """
        with ThreadPoolExecutor(max_workers=2) as several:
            for _ in follow(several.map(lambda index: self.at(index, factor), range(len(self))), len(self)):
                continue

    def at(self, index: int, factor: int = 1) -> Batch:
        """An image's data at 1 / factor of its size; a new dictionary with the tensors that are kept."""
        with self._lock:
            if factor != self._latest:  # the other sizes make room
                self._latest, self._used = factor, 0
                self._kept = {f: images for f, images in self._kept.items() if self._keeps(f)}
            kept = self._kept.get(factor, {}).get(index)
            coming = self._coming.pop((index, factor), None)
        if kept is None:
            kept = self._get(index, factor) if coming is None else coming.result()
        return dict(kept)

    def expect(self, index: int, factor: int) -> None:
        """Decode an image that will be asked for next, beside whatever happens until then."""
        with self._lock:
            if self.fits or index in self._kept.get(factor, {}) or (index, factor) in self._coming:
                return
            self._coming.clear()  # what was expected and did not come is not kept for ever
            self._coming[index, factor] = self._ahead.submit(self._get, index, factor)

    def _get(self, index: int, factor: int) -> Batch:
        with self._lock:
            full = self._kept.get(1, {}).get(index)
        found = self._read(index) if full is None else full
        if self.fits and full is None:
            found = self._place(found)
            self._keep(index, 1, found)
        if factor == 1 and self.fits:
            return found
        smaller = self._place(downscaled_batch(found, factor))
        self._keep(index, factor, smaller)
        return smaller

    def _keeps(self, factor: int) -> bool:
        return factor == self._latest or (self.fits and factor == 1)

    def _keep(self, index: int, factor: int, batch: Batch) -> None:
        with self._lock:
            if not self._keeps(factor):  # decoded ahead, and then another size was asked for
                return
            size = sum(value.nbytes for value in batch.values() if isinstance(value, Tensor))
            if self.fits or self._used + size <= self._memory:
                self._kept.setdefault(factor, {})[index] = batch
                self._used += size
