import json

import numpy as np
import pytest
from PIL import Image

WIDTH, HEIGHT, FOCAL = 40, 30, 40.0


@pytest.fixture
def blender_scene(tmp_path):
    """Writes a scene in Blender's format and gives its folder: `blender_scene(train=3, val=1)`."""

    def write(**frames_of_split):
        for split, count in frames_of_split.items():
            names = [f"{split}_{i}" for i in range(count)]
            _write_images(tmp_path, names)
            frames = [{"file_path": f"./{name}", "transform_matrix": np.eye(4).tolist()} for name in names]
            meta = {"camera_angle_x": 0.7, "frames": frames}
            (tmp_path / f"transforms_{split}.json").write_text(json.dumps(meta))
        return tmp_path

    return write


@pytest.fixture
def nerfstudio_scene(tmp_path):
    """Writes a scene in nerfstudio's format and gives its folder: `nerfstudio_scene(5, masks=True, k1=0.1)`."""

    def write(count, masks=False, images=None, **camera):
        names = [f"image_{i}" for i in range(count)]
        _write_images(tmp_path, names, images)
        frames = [{"file_path": f"{name}.png", "transform_matrix": np.eye(4).tolist()} for name in names]
        if masks:
            _write_images(tmp_path, [f"mask_{i}" for i in range(count)], [_left_half()] * count)
            for i, frame in enumerate(frames):
                frame["mask_path"] = f"mask_{i}.png"
        intrinsics = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2, "w": WIDTH, "h": HEIGHT}
        (tmp_path / "transforms.json").write_text(json.dumps({**intrinsics, **camera, "frames": frames}))
        return tmp_path

    return write


def _write_images(folder, names, images=None):
    noise = np.random.default_rng(0)
    for i, name in enumerate(names):
        image = noise.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) if images is None else images[i]
        Image.fromarray(image).save(folder / f"{name}.png")


def _left_half():
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[:, : WIDTH // 2] = 255
    return mask
