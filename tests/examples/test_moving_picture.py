import pytest
from PIL import Image


@pytest.fixture(scope="module")
def moving_picture(example):
    return example("moving_picture")


def test_frames_become_one_animation(moving_picture, tmp_path):
    for i, color in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255))):
        Image.new("RGB", (3 * 24, 24), color).save(tmp_path / f"{i}.png")
    path = tmp_path / "picture.webp"
    moving_picture.animation(sorted(tmp_path.glob("*.png")), path, quality=90)
    with Image.open(path) as picture:
        assert picture.n_frames == 3
        assert picture.size == (72, 24 + moving_picture.CAPTION)
        for i in range(3):
            picture.seek(i)
            assert picture.convert("RGB").getpixel((36, 40))[i] > 200


def test_without_frames_or_a_model_it_says_what_is_missing(moving_picture, monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="no frames"):
        moving_picture.animation([], tmp_path / "picture.webp", quality=90)
    monkeypatch.setattr(moving_picture.demo, "OUTPUT", tmp_path)
    with pytest.raises(SystemExit, match=r"run examples/demo\.py first"):
        moving_picture.main(tmp_path / "picture.webp")
