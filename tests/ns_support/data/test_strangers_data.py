"""Data that a stranger or a broken program wrote: what a file names is looked at before it is read."""

import json
import os

import numpy as np
import pytest
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from PIL import Image
from small_runs import said

from ns_support.data.formats import captures
from ns_support.data.formats.recognition import transforms_format
from ns_support.data.images import opened
from ns_support.data.poses import checked_poses
from ns_support.errors import UserError
from ns_support.full_images import FullImagesConfig

PARSER = NerfstudioDataParserConfig(auto_scale_poses=False, eval_mode="all", downscale_factor=1)


def start(folder):
    return FullImagesConfig(data=folder, dataparser=PARSER).setup(device="cpu")


def rewrite(folder, change):
    path = folder / "transforms.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))
    return folder


@pytest.fixture
def scene(nerfstudio_scene):
    return nerfstudio_scene(3)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        *(("fl_x", value) for value in (1e-30, 1e-3, 1e9, 1e30)),
        *(("fl_y", value) for value in (1e-30, 1e30)),
        *(("cx", value) for value in (1e7, -1e30)),
    ],
)
def test_a_lens_that_no_float_can_hold(scene, entry, value):
    with pytest.raises(UserError, match=rf"image_0.*has {entry[0]}.* pixels for an image of 40 x 30, which is no cam"):
        start(rewrite(scene, lambda meta: meta.update({entry: value})))


@pytest.mark.parametrize("focal", [0.5, 4e4])
def test_a_lens_that_is_only_strange(scene, focal):
    start(rewrite(scene, lambda meta: meta.update(fl_x=focal, fl_y=focal)))


def outside(folder, how):
    """A frame's image in the folder beside the data."""
    other = folder.parent / f"{folder.name} private"
    other.mkdir(exist_ok=True)
    (folder / "image_1.png").rename(other / "secret.png")
    name = str(other / "secret.png") if how == "absolute" else f"../{other.name}/secret.png"
    return rewrite(folder, lambda meta: meta["frames"][1].update(file_path=name))


@pytest.mark.parametrize("how", ["absolute", "relative"])
def test_images_outside_of_the_folder_are_named(scene, how, capsys):
    start(outside(scene, how))
    assert "names images outside of its folder, the first is" in said(capsys)


def test_images_inside_are_not(scene, capsys):
    start(rewrite(scene, lambda meta: meta["frames"][1].update(file_path=str(scene / "image_1.png"))))
    assert "outside" not in said(capsys)


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/stdin", "/dev/tty", "pipe", ".", "image_0.png/x"])
def test_what_is_no_file_is_not_opened(scene, name):
    if name == "pipe":
        os.mkfifo(scene / "pipe")
    with pytest.raises(UserError, match=r"is not a file|is not there|are not there|is no image|Not a directory"):
        start(rewrite(scene, lambda meta: meta["frames"][1].update(file_path=name)))


@pytest.mark.parametrize("entry", ["mask_path", "ply_file_path"])
def test_a_pipe_as_anything_else_does_not_hang(scene, entry):
    os.mkfifo(scene / "pipe")

    def change(meta):
        for frame in meta["frames"] if entry == "mask_path" else [meta]:
            frame[entry] = "pipe"

    if entry == "ply_file_path":  # a warning: scenes do without points
        start(rewrite(scene, change))
    else:
        with pytest.raises(UserError, match="pipe"):
            start(rewrite(scene, change)).next_train(0)


def test_an_image_file_that_is_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png is not a file"), opened(tmp_path / "pipe.png"):
        pass


def test_an_image_of_enormous_size_takes_no_memory(scene):
    Image.new("1", (30_000, 30_000)).save(scene / "image_1.png")
    with pytest.raises(UserError, match=r"image_1\.png"):
        start(scene)


def test_a_list_of_a_million_frames_is_refused(scene):
    folder = rewrite(scene, lambda meta: meta.update(frames=meta["frames"][:1] * 100_001))
    with pytest.raises(UserError, match=r"lists 100,001 frames; at most 100,000 are read"):
        captures.read_capture(folder)


@pytest.mark.parametrize("entry", ["file_path", "mask_path", "depth_file_path"])
def test_a_file_name_that_is_too_long_to_look_for(scene, entry):
    rewrite(scene, lambda meta: meta["frames"][1].update({entry: "x" * 5000}))
    with pytest.raises(UserError, match=r"is named x{60}\.\.\., which can't be: File name too long"):
        captures.read_capture(scene)


def test_a_blender_scene_whose_file_names_are_too_long(blender_scene):
    folder = blender_scene(train=1)
    path = folder / "transforms_train.json"
    meta = json.loads(path.read_text())
    meta["frames"][0]["file_path"] = "x" * 5000
    path.write_text(json.dumps(meta))
    with pytest.raises(UserError, match="can't be: File name too long"):
        transforms_format(folder)


@pytest.mark.filterwarnings("error")
def test_a_pose_that_overflows_is_refused_without_numpys_warnings():
    poses = np.eye(4)[None].repeat(3, 0)
    poses[1, 0, 0] = 1e300
    with pytest.raises(UserError, match=r"The pose of 1 in here is not a rotation.*not of one length"):
        checked_poses(poses, range(3), "here")
