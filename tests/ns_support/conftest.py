import numpy as np
import pytest
from small_scenes import write_blender, write_nerfstudio

WIDTH, HEIGHT, FOCAL = 40, 30, 40.0


@pytest.fixture
def blender_scene(tmp_path):
    """Writes a scene in Blender's format and gives its folder: `blender_scene(train=3, val=1)`."""

    def write(**frames_of_split):
        splits = {split: _views(f"{split}_", _noise(count)) for split, count in frames_of_split.items()}
        return write_blender(tmp_path, 0.7, **splits)

    return write


@pytest.fixture
def nerfstudio_scene(tmp_path):
    """Writes a scene in nerfstudio's format and gives its folder: `nerfstudio_scene(5, masks=True, k1=0.1)`."""

    def write(count, masks=False, images=None, **camera):
        intrinsics = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": WIDTH / 2, "cy": HEIGHT / 2, "w": WIDTH, "h": HEIGHT}
        views = _views("image_", _noise(count) if images is None else images[:count])
        return write_nerfstudio(tmp_path, views, [_left_half()] * count if masks else None, **intrinsics | camera)

    return write


def _noise(count):
    noise = np.random.default_rng(0)
    return [noise.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(count)]


def _views(prefix, images):
    return [(f"{prefix}{i}", image, np.eye(4)) for i, image in enumerate(images)]


def _left_half():
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[:, : WIDTH // 2] = 255
    return mask
