"""Frames of a video."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image, ImageFilter

from ns_support.errors import UserError
from ns_support.photos.video import extract_frames, frames_wanted, laplacian_variance, measure, probe, sharpest

WIDTH, HEIGHT, FRAMES = 64, 48, 20


def frame(number, sharp):
    """Noise, with a brightness that tells the number."""
    pixels = np.random.default_rng(number).integers(0, 60, (HEIGHT, WIDTH, 3), dtype=np.uint8) + np.uint8(8 * number)
    image = Image.fromarray(pixels)
    return np.asarray(image if sharp else image.filter(ImageFilter.GaussianBlur(2)))


def write(path, frames, *options, rate=10):
    size = f"{frames[0].shape[1]}x{frames[0].shape[0]}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size]
    command += ["-r", str(rate), "-i", "-", "-c:v", "libx264", "-crf", "10", "-pix_fmt", "yuv420p", *options, str(path)]
    subprocess.run(command, input=b"".join(f.tobytes() for f in frames), check=True)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Twenty frames, of which 3, 6, 11 and 18 are sharp."""
    frames = [frame(i, i in (3, 6, 11, 18)) for i in range(FRAMES)]
    return write(tmp_path_factory.mktemp("video") / "clip.mp4", frames)


def test_sharpness_falls_with_blur():
    assert laplacian_variance(frame(0, True)[..., 0]) > 10 * laplacian_variance(frame(0, False)[..., 0])


def test_the_sharpest_of_each_period():
    sharpness = np.array([1.0, 5, 2, 3, 9, 1, 0, 0, 0, 7])
    assert sharpest(sharpness, 2) == [4, 9]
    assert sharpest(sharpness, 5) == [1, 3, 4, 6, 9]
    assert sharpest(sharpness, 10) == list(range(10))


@pytest.mark.parametrize(
    ("seconds", "frames", "most", "wanted"),
    [
        (60, 1800, 150, 150),
        (30, 900, 150, 75),
        (4, 120, 150, 40),
        (4, 20, 150, 20),
        (0, 900, 90, 90),
        (60, 900, 12, 12),
    ],
)
def test_the_number_of_frames_fits_the_length(seconds, frames, most, wanted):
    assert frames_wanted(seconds, frames, most) == wanted


def test_every_frame_is_measured(clip):
    sharpness = measure(clip)
    assert len(sharpness) == FRAMES
    assert set(np.argsort(-sharpness)[:4]) == {3, 6, 11, 18}


def test_the_chosen_frames_are_written(clip, tmp_path):
    said = []
    frames = extract_frames(clip, tmp_path / "frames", 4, said.append)
    assert [path.name for path in frames] == [f"frame_0000{i}.jpg" for i in (1, 2, 3, 4)]
    means = [np.asarray(Image.open(path), float).mean() for path in frames]
    numbers = [round((mean - 30) / 8) for mean in means]
    assert numbers == [3, 6, 11, 18]
    assert said[-1] == "writing 4 of 20 frames"


def test_frames_of_a_turned_video_are_upright(tmp_path, clip):
    turned = tmp_path / "turned.mp4"
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    subprocess.run([ffmpeg, "-v", "error", "-display_rotation", "90", "-i", clip, "-c", "copy", turned], check=True)
    frames = extract_frames(turned, tmp_path / "frames", 3, lambda words: None)
    with Image.open(frames[0]) as image:
        assert image.size == (HEIGHT, WIDTH)


def test_high_dynamic_range_is_seen_and_read(tmp_path, clip):
    said = "setparams=color_trc=arib-std-b67:colorspace=bt2020nc:color_primaries=bt2020"
    grays = [np.full((HEIGHT, WIDTH, 3), 190, np.uint8)] * 6
    video = write(tmp_path / "hdr.mp4", grays, "-vf", said)
    assert probe(video).hdr
    assert not probe(clip).hdr
    frames = extract_frames(video, tmp_path / "frames", 3, lambda words: None)
    assert len(frames) == 3
    # In HLG, 75 % of the signal is diffuse white, which is brighter in sRGB.
    assert 205 < np.asarray(Image.open(frames[0])).mean() < 250


def test_a_long_list_of_frames(tmp_path):
    small = [np.full((16, 16, 3), 7 * i % 256, np.uint8) for i in range(700)]
    video = write(tmp_path / "long.mp4", small, rate=30)
    assert len(extract_frames(video, tmp_path / "frames", 600, lambda words: None)) == 58  # 2.5 a second


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"video .*bad.mp4 is empty \(0 bytes\)"),
        (b"Dear diary, this is a text.\n" * 40, r"bad.mp4 can't be read as a video: .*Invalid data"),
        (None, r"video .*bad.mp4 does not exist"),
    ],
)
def test_what_is_no_video(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        extract_frames(tmp_path / "bad.mp4", tmp_path / "frames", 10, lambda words: None)


def test_a_cut_video(tmp_path, clip):
    """Its index is at the end, and without it nothing can be read."""
    data = clip.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"cut.mp4 can't be read as a video"):
        extract_frames(tmp_path / "cut.mp4", tmp_path / "frames", 10, lambda words: None)


def test_a_sound(tmp_path):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "sine=duration=0.2"]
    subprocess.run([*command, tmp_path / "sound.mp4"], check=True)
    with pytest.raises(UserError, match=r"sound.mp4 can't be read as a video"):
        extract_frames(tmp_path / "sound.mp4", tmp_path / "frames", 10, lambda words: None)


def test_a_video_of_two_frames(tmp_path):
    video = write(tmp_path / "short.mp4", [frame(i, True) for i in range(2)])
    with pytest.raises(UserError, match="has 2 frames that can be read: poses need some dozens"):
        extract_frames(video, tmp_path / "frames", 10, lambda words: None)
