"""Scenes of a few pixels, written on the spot in Blender's format and in nerfstudio's."""

import json
import math

import numpy as np
from PIL import Image


def write_blender(folder, fov, **views_of_split):
    """Views are (name, image, camera-to-world matrix [4, 4]); the field of view is in radians."""
    for split, views in views_of_split.items():
        frames = []
        for name, image, pose in views:
            _write(image, folder / f"{name}.png")
            frames.append({"file_path": f"./{name}", "transform_matrix": np.asarray(pose).tolist()})
        meta = {"camera_angle_x": fov, "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(meta))
    return folder


def write_nerfstudio(folder, views, masks=None, **camera):
    """Views as above, and the entries of their one camera; `masks` [H, W], one a view."""
    frames = []
    for i, (name, image, pose) in enumerate(views):
        _write(image, folder / f"{name}.png")
        frames.append({"file_path": f"{name}.png", "transform_matrix": np.asarray(pose).tolist()})
        if masks is not None:
            frames[i]["mask_path"] = f"mask_{i}.png"
            _write(masks[i], folder / frames[i]["mask_path"])
    (folder / "transforms.json").write_text(json.dumps({**camera, "frames": frames}))
    return folder


def _write(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def write_disc(folder, side=24, views=4, away=4.0, fov=0.6, turning=False):
    """A disc before a transparent background, the same from all sides or, `turning`, with colours of its own."""
    v, u = (np.mgrid[0:side, 0:side] + 0.5) / side
    inside = (u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.12

    def view(name, i):
        c, s = math.cos(math.pi * i / 2), math.sin(math.pi * i / 2)
        green = u * c * c + v * s * s if turning else v
        rgba = np.stack([u, green, 1 - u, inside], -1) * inside[..., None]
        pose = [[c, 0, s, away * s], [0, 1, 0, 0], [-s, 0, c, away * c], [0, 0, 0, 1]]
        return name, (rgba * 255).astype(np.uint8), pose

    counts = {"train": views, "val": 1, "test": 1}
    splits = {split: [view(f"{split}_{i}", i) for i in range(count)] for split, count in counts.items()}
    return write_blender(folder, fov, **splits)
