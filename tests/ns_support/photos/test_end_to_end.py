"""Poses of rendered photographs by pycolmap itself, and nerfstudio's commands on them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from nerfstudio.data.utils import colmap_parsing_utils as colmap_utils
from photo_scenes import positions, render, write_photographs
from PIL import Image

from ns_support.errors import UserError
from ns_support.photos.result import is_whole
from ns_support.photos.scene import find_poses
from ns_support.photos.settings import PhotosConfig

pytestmark = pytest.mark.slow
COUNT = 12
STEPS = ("--max-num-iterations", 3, "--vis", "tensorboard", "--timestamp", "now")
QUICK = ("--pipeline.model.num-random", 300)


def run(*words, cwd, code=0):
    executable = shutil.which(words[0], path=sysconfig.get_path("scripts"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *(["-m", words[0]] if executable is None else [executable])]
        + [str(word) for word in words[1:]],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=1200,
        env=os.environ | {"COLUMNS": "200", "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
    )
    output = done.stdout + done.stderr
    assert (done.returncode == 0) == (code == 0), output[-4000:]
    assert "Traceback" not in output
    return " ".join(output.split())


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("scene") / "photos", COUNT)


@pytest.fixture(scope="module")
def result(photos):
    return find_poses(photos, PhotosConfig())


def off(centers, truth):
    """The greatest distance of camera centres from the truth, after the best similarity, as a part of their extent."""
    a, b = centers - centers.mean(0), truth - truth.mean(0)
    u, s, v = np.linalg.svd(b.T @ a)
    sign = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ v))])
    scale = (s * np.diag(sign)).sum() / (a**2).sum()
    return float(np.linalg.norm(scale * a @ (u @ sign @ v).T - b, axis=1).max() / np.ptp(truth, axis=0).max())


def centers_of(model):
    images = sorted(colmap_utils.read_images_binary(model / "images.bin").values(), key=lambda image: image.name)
    return np.stack([-colmap_utils.qvec2rotmat(image.qvec).T @ image.tvec for image in images])


def test_poses_are_those_that_the_photographs_were_rendered_from(result):
    centers = centers_of(result / "sparse/0")
    assert len(centers) == COUNT
    assert off(centers, np.stack(positions(COUNT))) < 0.005
    cameras = colmap_utils.read_cameras_binary(result / "sparse/0/cameras.bin")
    assert [camera.params[0] for camera in cameras.values()] == pytest.approx([380.0], rel=0.02)


def test_train_from_a_folder_and_again(photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    first = run("ns-train", "raygauss", *STEPS, *QUICK, "--data", "photos", cwd=tmp_path)
    assert "12 of 12 photographs have a pose" in first
    assert "COLMAP model: 10 images to train on and 2 to evaluate on, 400 x 300 pixels" in first
    words = ("--max-num-iterations", 3, "--vis", "tensorboard", "--pipeline.target-num-samples", 1024)
    second = run("ns-train", "instant-ngp-hardmine", *words, "--data", "photos", cwd=tmp_path)
    assert "Poses of 12 photographs from photos-colmap, where they were put before." in second
    config = "outputs/photos/raygauss/now/config.yml"
    run("ns-eval", "--load-config", config, "--output-path", "eval.json", cwd=tmp_path)
    shutil.rmtree(tmp_path / "photos-colmap")
    lost = run("ns-eval", "--load-config", config, "--output-path", "eval.json", cwd=tmp_path, code=1)
    assert "The poses of photos are not in photos-colmap, where training put them." in lost
    assert not (tmp_path / "photos-colmap").exists()


def test_train_from_a_video(tmp_path):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "400x300"]
    command += [
        "-r",
        "4",
        "-i",
        "-",
        "-c:v",
        "libx264",
        "-crf",
        "15",
        "-pix_fmt",
        "yuv420p",
        str(tmp_path / "clip.mp4"),
    ]
    places = positions(24)
    subprocess.run(command, input=b"".join(render(place).tobytes() for place in places), check=True)
    frames = ("auto-data", "--photos.max-frames", 12)
    said = run("ns-train", "raygauss", *STEPS, *QUICK, "--data", "clip.mp4", *frames, cwd=tmp_path)
    assert "writing 12 of 24 frames" in said
    assert "12 of 12 frames have a pose" in said
    assert is_whole(tmp_path / "clip-colmap")


def test_nerfstudio_folder(photos, tmp_path):
    masks = tmp_path / "mask.png"
    Image.new("L", (400, 300), 255).save(masks)
    said = run("ns_support.photos.export", photos, "scene", "--masks", masks, cwd=tmp_path)
    assert "12 of 12 photographs have a pose" in said
    meta = json.loads((tmp_path / "scene/transforms.json").read_text())
    centers = np.array([frame["transform_matrix"] for frame in meta["frames"]])[:, :3, 3]
    assert off(centers, np.stack(positions(COUNT))) < 0.005
    assert all((tmp_path / "scene" / frame["mask_path"]).is_file() for frame in meta["frames"])
    words = ("nerfstudio-data", "--load-3D-points", "True")
    trained = run("ns-train", "raygauss", *STEPS, *QUICK, "--data", "scene", *words, cwd=tmp_path)
    assert "nerfstudio scene: 11 images to train on and 1 to evaluate on, 400 x 300 pixels;" in trained
    again = run("ns_support.photos.export", photos, "scene", "--masks", masks, cwd=tmp_path)
    assert "Poses of 12 photographs from scene" in again


def test_two_cameras_turned_photographs_and_masks(photos, tmp_path):
    """Half of them are portraits, stored lying with an EXIF orientation; what is masked has no features."""
    folder = tmp_path / "photos"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for i, place in enumerate(positions(COUNT)):
        image = Image.fromarray(render(place, 300, 400) if i % 2 else render(place))
        turned = image.transpose(Image.Transpose.ROTATE_90) if i % 2 else image
        turned.save(folder / f"{i:02d}.jpg", quality=95, **({"exif": exif.tobytes()} if i % 2 else {}))
    half = np.full((300, 400), 255, np.uint8)
    half[:, :200] = 0
    (folder / "masks").mkdir()
    Image.fromarray(half).save(folder / "masks/00.png")
    model = find_poses(folder, PhotosConfig()) / "sparse/0"
    assert off(centers_of(model), np.stack(positions(COUNT))) < 0.01
    sizes = sorted((c.width, c.height) for c in colmap_utils.read_cameras_binary(model / "cameras.bin").values())
    assert sizes == [(300, 400), (400, 300)]
    images = {image.name: image for image in colmap_utils.read_images_binary(model / "images.bin").values()}
    assert images["00.jpg"].xys[:, 0].min() > 199
    assert images["02.jpg"].xys[:, 0].min() < 100


def test_unrelated_photographs_are_refused(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for i in range(3):
        small = Image.fromarray(noise.integers(0, 256, (40, 50, 3), dtype=np.uint8))
        small.resize((400, 320), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg")
    with pytest.raises(UserError, match="COLMAP found poses for none of the 3 photographs"):
        find_poses(folder, PhotosConfig())


@pytest.mark.skipif(sys.platform != "linux", reason="sends signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_and_the_next_goes_on(photos, tmp_path, number):
    shutil.copytree(photos, tmp_path / "photos")
    command = [sys.executable, "-W", "ignore", "-m", "ns_support.photos.export", "photos", "scene"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (tmp_path / "scene.part/database.db").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped finding the poses of photos." in said
    assert "Traceback" not in said
    assert not (tmp_path / "scene").exists()
    assert "Going on with the poses of photos" in run("ns_support.photos.export", "photos", "scene", cwd=tmp_path)
