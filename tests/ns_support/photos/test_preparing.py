"""The folder of images that is made of a user's photographs."""

import os
from pathlib import Path, PurePosixPath

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from ns_support.errors import UserError
from ns_support.photos.preparing import Source, find_masks, prepare, reduction, safe_name

WIDTH, HEIGHT = 48, 32


def picture(width=WIDTH, height=HEIGHT):
    """Red at the upper left, green at the upper right, blue below."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2, 0] = 255
    pixels[: height // 2, width // 2 :, 1] = 255
    pixels[height // 2 :, :, 2] = 255
    return Image.fromarray(pixels)


TURNED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How an upright picture lies in a file with an EXIF orientation, by the standard's own definition."""


def stored(orientation, image):
    return image if TURNED[orientation] is None else image.transpose(TURNED[orientation])


def made(tmp_path, *files, masks=None):
    sources = [
        Source(file, file.name, safe_name(Path(file.name)), (masks or {}).get(file)) for file in map(Path, files)
    ]
    return prepare(sources, tmp_path / "out", lambda done: None)


def near(file, image, most=40):
    with Image.open(file) as found:
        assert found.getexif().get(0x0112, 1) == 1
        difference = np.abs(np.asarray(found.convert("RGB"), int) - np.asarray(image, int))
    return np.percentile(difference, 80) < most


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_upright_image_is_the_users_file_itself(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    picture().save(file)
    prepared = made(tmp_path, file)
    assert os.path.samefile(tmp_path / "out/images" / file.name, file)
    assert (prepared.shots[0].width, prepared.shots[0].height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_images_are_turned_upright_and_the_file_stays(tmp_path, orientation, suffix):
    file, exif = tmp_path / f"a{suffix}", Image.Exif()
    exif[0x0112], exif[271] = orientation, "Maker"
    stored(orientation, picture()).save(file, exif=exif.tobytes(), quality=95)
    before = file.read_bytes()
    prepared = made(tmp_path, file)
    assert near(tmp_path / f"out/images/a{suffix}", picture())
    assert (prepared.shots[0].width, prepared.shots[0].height) == (WIDTH, HEIGHT)
    assert prepared.shots[0].device == "Maker"
    assert file.read_bytes() == before


def test_heic(tmp_path):
    pillow_heif.from_pillow(picture()).save(tmp_path / "a.HEIC", quality=95)
    prepared = made(tmp_path, tmp_path / "a.HEIC")
    assert [shot.name for shot in prepared.shots] == ["a.jpg"]
    assert near(tmp_path / "out/images/a.jpg", picture())


@pytest.mark.parametrize(
    ("name", "written"), [("a.webp", "a.jpg"), ("a.bmp", "a.png"), ("a.tif", "a.png"), ("a.avif", "a.jpg")]
)
def test_other_formats_become_jpeg_or_png(tmp_path, name, written):
    picture().save(tmp_path / name, quality=95)
    assert [shot.name for shot in made(tmp_path, tmp_path / name).shots] == [written]
    assert near(tmp_path / "out/images" / written, picture())


def test_exif_is_kept_in_what_is_written(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0xA405] = 28
    stored(6, picture()).save(tmp_path / "a.jpg", exif=exif.tobytes())
    made(tmp_path, tmp_path / "a.jpg")
    with Image.open(tmp_path / "out/images/a.jpg") as found:
        assert found.getexif().get_ifd(0x8769)[0xA405] == 28


def test_a_palette_is_resolved(tmp_path):
    picture().quantize(8).save(tmp_path / "a.png")
    made(tmp_path, tmp_path / "a.png")
    with Image.open(tmp_path / "out/images/a.png") as found:
        assert found.mode == "RGB"


def test_names_stay_unique(tmp_path):
    for name in ("a.jpg", "a.webp", "A.bmp", "a.png"):
        picture().save(tmp_path / name)
    shots = made(tmp_path, *(tmp_path / name for name in ("a.jpg", "a.webp", "A.bmp", "a.png"))).shots
    assert [(shot.source, shot.name) for shot in shots] == [
        *(("a.jpg", "a.jpg"), ("a.webp", "a.webp.jpg"), ("A.bmp", "A.png"), ("a.png", "a.png.png"))
    ]


def test_names_hold_no_white_space():
    assert safe_name(Path("my photos/a b.jpg")) == PurePosixPath("my_photos/a_b.jpg")
    assert safe_name(Path(os.fsdecode(b"caf\xe9.jpg"))) == PurePosixPath("caf_.jpg")
    assert safe_name(Path("café/ü.jpg")) == PurePosixPath("café/ü.jpg")


def test_broken_images_are_named_and_left_out(tmp_path):
    picture(200, 200).save(tmp_path / "good.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:1200])
    (tmp_path / "text.png").write_text("no image")
    prepared = made(tmp_path, *(tmp_path / name for name in ("cut.jpg", "good.jpg", "text.png")))
    assert [shot.name for shot in prepared.shots] == ["good.jpg"]
    assert len(prepared.broken) == 2
    assert "cut.jpg can't be read" in prepared.broken[0]
    assert sorted(path.name for path in (tmp_path / "out/images").iterdir()) == ["good.jpg"]


def test_large_images_get_reduced_copies_with_an_exact_scale(tmp_path):
    assert reduction(1600, 1200) == []
    assert reduction(1601, 10) == [2]
    assert reduction(4032, 3024) == [2, 4]
    Image.fromarray(np.full((20, 1701, 3), 90, np.uint8)).save(tmp_path / "a.jpg")
    made(tmp_path, tmp_path / "a.jpg")
    with Image.open(tmp_path / "out/images_2/a.jpg") as small:
        assert small.size == (850, 10)


class TestMasks:
    def mask(self, tmp_path, name, size=(WIDTH, HEIGHT)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros(size[::-1], np.uint8)
        pixels[: size[1] // 2] = 255
        Image.fromarray(pixels).save(path)
        return path

    def shown(self, tmp_path, name="a.jpg.png"):
        with Image.open(tmp_path / "out/masks" / name) as mask:
            return np.asarray(mask)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_turns_with_its_photograph(self, tmp_path, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored(orientation, picture()).save(tmp_path / "a.jpg", exif=exif.tobytes())
        upright = Image.open(self.mask(tmp_path, "m.png"))
        stored(orientation, upright).save(tmp_path / "s.png")
        made(tmp_path, tmp_path / "a.jpg", masks={tmp_path / "a.jpg": tmp_path / "s.png"})
        assert (self.shown(tmp_path) == np.asarray(upright)).all()

    def test_without_one_all_is_shown(self, tmp_path):
        for name in ("a.jpg", "b.jpg"):
            picture().save(tmp_path / name)
        made(tmp_path, tmp_path / "a.jpg", tmp_path / "b.jpg", masks={tmp_path / "a.jpg": self.mask(tmp_path, "m.png")})
        assert 0 < self.shown(tmp_path).mean() < 255
        assert (self.shown(tmp_path, "b.jpg.png") == 255).all()

    def test_of_half_the_size(self, tmp_path):
        picture().save(tmp_path / "a.jpg")
        made(tmp_path, tmp_path / "a.jpg", masks={tmp_path / "a.jpg": self.mask(tmp_path, "m.png", (24, 16))})
        assert self.shown(tmp_path).shape == (HEIGHT, WIDTH)

    def test_of_another_shape(self, tmp_path):
        picture().save(tmp_path / "a.jpg")
        with pytest.raises(UserError, match=r"mask .*m.png is 20 x 30 pixels and its photograph .*a.jpg 48 x 32"):
            made(tmp_path, tmp_path / "a.jpg", masks={tmp_path / "a.jpg": self.mask(tmp_path, "m.png", (20, 30))})

    @pytest.mark.parametrize("name", ["a.png", "a.jpg.png"])
    @pytest.mark.parametrize("place", ["scene/masks", "scene/photos/masks"])
    def test_are_found_in_and_beside_the_folder(self, tmp_path, name, place):
        mask = self.mask(tmp_path, f"{place}/{name}")
        assert find_masks(tmp_path / "scene/photos", [Path("a.jpg"), Path("b.jpg")], None, "--m") == {
            Path("a.jpg"): mask
        }

    def test_beside_images_in_the_folder(self, tmp_path):
        mask = self.mask(tmp_path, "scene/masks/a.png")
        found = find_masks(tmp_path / "scene", [Path("images/a.jpg")], None, "--m")
        assert found == {Path("images/a.jpg"): mask}

    def test_one_file_is_for_all(self, tmp_path):
        mask = self.mask(tmp_path, "m.png")
        assert find_masks(tmp_path, [Path("a.jpg"), Path("b.jpg")], mask, "--m") == {
            Path("a.jpg"): mask,
            Path("b.jpg"): mask,
        }

    def test_given_ones_must_fit(self, tmp_path):
        with pytest.raises(UserError, match=r"There is no .*nowhere, which --m names"):
            find_masks(tmp_path, [Path("a.jpg")], tmp_path / "nowhere", "--m")
        (tmp_path / "other").mkdir()
        with pytest.raises(UserError, match=r"No mask in .*other, .* that of a.jpg would be a.png or a.jpg.png"):
            find_masks(tmp_path, [Path("a.jpg")], tmp_path / "other", "--m")
        assert find_masks(tmp_path, [Path("a.jpg")], None, "--m") == {}
