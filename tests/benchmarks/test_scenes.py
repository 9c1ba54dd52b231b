import json

import numpy as np
import pytest
from PIL import Image
from small_scenes import write_blender


@pytest.fixture(scope="module")
def scenes(script):
    return script("scenes")


def test_colours_count_by_their_alpha(scenes):
    block = np.array([[[200, 0, 0, 255], [0, 90, 0, 0]], [[100, 0, 0, 255], [0, 90, 0, 0]]], np.uint8)
    assert scenes.averaged(block, 2).tolist() == [[[150, 0, 0, 128]]]
    assert scenes.averaged(block[..., :3], 2).tolist() == [[[75, 45, 0]]]
    assert scenes.averaged(np.zeros((5, 7, 4), np.uint8), 2).shape == (2, 3, 4)


def test_a_blender_scene(scenes, tmp_path):
    source, target = tmp_path / "lego", tmp_path / "lego_4"
    image, pose = np.full((8, 8, 4), 77, np.uint8), np.eye(4)
    write_blender(source, 0.7, **{split: [(f"{split}/r_0", image, pose)] for split in ("train", "val", "test")})
    scenes.main(["blender", str(source), str(target), "--side", "4"])
    for split in ("train", "val", "test"):
        with Image.open(target / split / "r_0.png") as image:
            assert (image.size, image.mode) == ((4, 4), "RGBA")
        name = f"transforms_{split}.json"
        assert json.loads((target / name).read_text()) == json.loads((source / name).read_text())
    with pytest.raises(SystemExit, match="--side must divide the images' 8 pixels, got 3"):
        scenes.main(["blender", str(source), str(target), "--side", "3"])


def test_photographs(scenes, tmp_path):
    source, target = tmp_path / "fox", tmp_path / "fox_2"
    source.mkdir()
    names = [f"{i}.png" for i in range(9)]
    for name in names:
        Image.fromarray(np.zeros((6, 10, 3), np.uint8)).save(source / name)
    meta = {"fl_x": 12.0, "cx": 5.0, "w": 10, "h": 6, "k1": 0.1, "frames": [{"file_path": name} for name in names]}
    (source / "transforms.json").write_text(json.dumps(meta))
    scenes.main(["photographs", str(source), str(target), "--factor", "2"])
    written = json.loads((target / "transforms.json").read_text())
    assert [written[name] for name in ("fl_x", "cx", "w", "h", "k1")] == [6.0, 2.5, 5, 3, 0.1]
    assert written["test_filenames"] == written["val_filenames"] == ["0.png", "8.png"]
    assert written["train_filenames"] == names[1:8]
    with pytest.raises(SystemExit, match=r"has no 10\.png; it has 0\.png"):
        scenes.main(["photographs", str(source), str(target), "--factor", "2", "--test", "10.png"])
