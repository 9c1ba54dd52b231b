import torch

from hardmine_ns.data import VisiblePixels


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
