import torch

from hardmine_ns.pixels import PixelBank, VisiblePixels, collated_images


def test_pixels_are_those_of_the_masks_each_as_often():
    torch.manual_seed(0)
    sizes = [(7, 5), (3, 9), (1, 1), (6, 4)]
    masks = [torch.rand(size) < share for size, share in zip(sizes, (0.4, 0.0, 1.0, 0.9), strict=True)]
    masks[3] = masks[3][..., None]
    expected = [[i, *p] for i, mask in enumerate(masks) for p in torch.nonzero(mask.reshape(sizes[i])).tolist()]
    pixels = VisiblePixels(sizes, masks)
    assert pixels.count == len(expected)
    drawn, counts = pixels.draw(500 * len(expected)).unique(dim=0, return_counts=True)
    assert drawn.tolist() == expected
    assert ((counts - 500).abs() < 120).all()


def test_without_masks_every_pixel_is_visible():
    drawn = VisiblePixels([(2, 3), (1, 2)]).draw(500).unique(dim=0)
    assert drawn.tolist() == [[0, r, c] for r in range(2) for c in range(3)] + [[1, 0, 0], [1, 0, 1]]


def test_masks_are_kept_in_little_memory():
    mask = torch.zeros(500, 800)
    mask[100:400, 200:300] = mask[50:450, 600:700] = 1
    pixels = VisiblePixels([(500, 800)] * 3, [mask] * 3)
    kept = sum(x.nbytes for x in vars(pixels).values() if isinstance(x, torch.Tensor))
    assert pixels.count == 3 * 70_000
    assert kept < 16 * 3 * 700 + 200  # a list of the pixels: 5 MB


def test_a_bank_of_images_gives_their_colours():
    """Of several sizes and with masks; 8-bit colours are the same to the last bit, others as they are."""
    torch.manual_seed(0)
    images = [torch.randint(256, (h, w, 3)).float() / 255.0 for h, w in ((4, 6), (5, 3))]
    masks = [torch.ones(4, 6, 1), torch.zeros(5, 3, 1)]
    masks[1][2:, 1] = 1
    for scale, kind in ((1.0, torch.uint8), (0.3, torch.float32)):
        bank = PixelBank([scale * image for image in images], masks, "cpu")
        assert bank._colors.dtype == kind
        assert bank.count == 24 + 3
        batch = bank.draw(400)
        image, row, column = batch["indices"].unbind(1)
        for i, pixels in enumerate(images):
            mine = image == i
            assert torch.equal(batch["image"][mine], scale * pixels[row[mine], column[mine]])
            assert bool(masks[i][row[mine], column[mine]].all())
        assert len(batch["indices"].unique(dim=0)) == 27


def test_images_are_in_the_order_of_their_cameras():
    batch = {"image": [torch.full((1, 1, 3), float(i)) for i in (2, 0, 1)], "image_idx": torch.tensor([2, 0, 1])}
    batch["mask"] = [torch.full((1, 1, 1), float(i)) for i in (2, 0, 1)]
    images, masks = collated_images(batch)
    assert [float(image.mean()) for image in images] == [0.0, 1.0, 2.0] == [float(mask) for mask in masks]
    assert collated_images(batch, ignores_masks=True)[1] is None
