import threading

import pytest
import torch

from ns_support.data.store import ImageStore, downscaled_batch, downscaled_image, downscaled_mask
from ns_support.errors import UserError


def over(image, background):
    """What an image with straight alpha looks like over a background, in [0, 1]."""
    colors = image.double() / 255 if image.dtype == torch.uint8 else image.double()
    return colors[..., :3] * colors[..., 3:] + (1 - colors[..., 3:]) * background


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("background", [0.0, 1.0])
def test_over_a_background_an_image_with_alpha_is_averaged(factor, background):
    image = torch.rand(13, 18, 4, generator=torch.Generator().manual_seed(1))
    image[:6, :6, 3] = 0.0
    rows, columns = 13 // factor, 18 // factor
    whole = over(image, background)[: rows * factor, : columns * factor]
    mean = whole.reshape(rows, factor, columns, factor, 3).mean((1, 3))
    torch.testing.assert_close(over(downscaled_image(image, factor), background), mean, rtol=0, atol=1e-6)
    bytes_ = (image * 255).round().to(torch.uint8)
    whole = over(bytes_, background)[: rows * factor, : columns * factor]
    mean = whole.reshape(rows, factor, columns, factor, 3).mean((1, 3))
    # Rounded twice: alpha to 1/255, and the colour, which counts by alpha.
    torch.testing.assert_close(over(downscaled_image(bytes_, factor), background), mean, rtol=0, atol=1.01 / 255)


def test_an_opaque_image_is_averaged():
    image = torch.randint(256, (10, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean = image[:, :8].reshape(5, 2, 4, 2, 3).double().mean((1, 3))
    torch.testing.assert_close(downscaled_image(image, 2).double(), mean, rtol=0, atol=0.5)
    assert downscaled_image(image, 1) is image


def test_a_block_of_a_mask_shows_if_all_of_it_does():
    mask = torch.ones(5, 6, 1, dtype=torch.bool)
    mask[1, 2] = False
    mask[4] = False  # in no block
    assert downscaled_mask(mask, 2)[..., 0].tolist() == [[True, False, True], [True, True, True]]
    smaller = downscaled_batch({"image": torch.zeros(5, 6, 3), "mask": mask, "image_idx": 7}, 2)
    assert (smaller["image"].shape, smaller["mask"].shape, smaller["image_idx"]) == ((2, 3, 3), (2, 3, 1), 7)


class Counted:
    """Images of one value each, of 4 x 6 pixels, which count how often they are read."""

    def __init__(self, count, memory):
        self.reads, self.lock = [0] * count, threading.Lock()
        self.store = ImageStore(self.read, [72] * count, memory, lambda batch: batch)

    def read(self, index):
        with self.lock:
            self.reads[index] += 1
        return {"image_idx": index, "image": torch.full((4, 6, 3), index, dtype=torch.uint8)}

    def kept(self):
        return sum(batch["image"].nbytes for images in self.store._kept.values() for batch in images.values())


def test_images_that_fit_are_read_once():
    images = Counted(5, memory=5 * 72)
    images.store.load(2, lambda them, _: them)
    for factor in (2, 1, 2):
        for i in range(5):
            batch = images.store.at(i, factor)
            assert batch["image"].shape == (4 // factor, 6 // factor, 3)
            assert (batch["image"] == i).all()
    assert images.reads == [1] * 5
    assert images.store.fits
    assert images.kept() <= 5 * 72 * 4 / 3


def test_the_memory_is_never_exceeded_and_every_image_is_served():
    images = Counted(5, memory=200)
    images.store.load(2, lambda them, _: them)
    assert images.kept() == 5 * 18  # small ones fit
    before = list(images.reads)
    assert [images.store.at(i, 2)["image"].shape[0] for i in range(5)] == [2] * 5
    assert images.reads == before
    for _ in range(2):
        for i in range(5):
            images.store.expect((i + 1) % 5, 1)
            assert (images.store.at(i, 1)["image"] == i).all()
            assert images.kept() <= 200
    assert images.kept() == 2 * 72  # all the room there is
    assert max(images.reads) > 2  # some are read again and again
    assert min(images.reads) == 2  # and some are kept


def test_an_expected_image_is_read_once_beside_the_others():
    images = Counted(3, memory=10)
    images.store.expect(1, 1)
    images.store.expect(1, 1)
    assert images.store.at(1, 1)["image_idx"] == 1
    assert images.reads == [0, 1, 0]


def test_what_comes_too_late_takes_no_room():
    """An image was expected at half its size, and before it is there the others are asked for as they are."""
    images = Counted(3, memory=200)
    images.store.at(0, 2)
    began, go_on = threading.Event(), threading.Event()

    def slowly(index, read=images.read):
        if index == 2:
            began.set()
            go_on.wait(10)
        return read(index)

    images.store._read = slowly
    images.store.expect(2, 2)
    assert began.wait(10)
    images.store.at(0, 1)
    images.store.at(1, 1)
    go_on.set()
    images.store._ahead.shutdown(wait=True)
    assert {factor: list(kept) for factor, kept in images.store._kept.items()} == {1: [0, 1]}
    assert images.kept() == 144


def test_what_is_served_may_be_changed():
    images = Counted(2, memory=1000)
    images.store.at(0).pop("image")
    assert "image" in images.store[0]
    assert len(list(images.store)) == len(images.store) == 2


def test_an_image_that_cant_be_read_is_an_error_at_once():
    def read(index):
        raise UserError(f"image {index}")

    for memory in (10, 1000):
        store = ImageStore(read, [72, 72], memory, lambda batch: batch)
        with pytest.raises(UserError, match="image 0"):
            store.load(1, lambda them, _: them)
