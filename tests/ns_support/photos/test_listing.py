"""Which files of a folder count as photographs."""

from pathlib import Path

import pytest

from ns_support.photos.listing import RECORD, holds_photographs, is_video, list_files


def fill(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def names(paths):
    return [path.as_posix() for path in paths]


def test_photographs_in_natural_order_at_any_depth(tmp_path):
    fill(tmp_path, "img10.jpg", "img2.JPG", "more/a.HEIC", "more/deep/b.png", "img1.tiff")
    assert names(list_files(tmp_path).photographs) == [
        *("img1.tiff", "img2.JPG", "img10.jpg", "more/a.HEIC", "more/deep/b.png")
    ]


@pytest.mark.parametrize(
    "other",
    [
        *("IMG_1.AAE", ".DS_Store", "._IMG_1.jpg", "notes.txt", "Thumbs.db", ".hidden/a.jpg", "__MACOSX/a.jpg"),
        *("masks/a.png", "Thumbnails/a.jpg", "@eaDir/a.jpg", "images_2/a.jpg", "clip.mov", "IMG_1.dng"),
        *(f"scene-colmap/{name}" for name in ("images/a.jpg", "masks/a.png")),
        "project/images/a.jpg",
    ],
)
def test_others_are_none(tmp_path, other):
    fill(tmp_path, "images/a.jpg", f"scene-colmap/{RECORD}", "project/sparse/0/cameras.bin", other)
    assert names(list_files(tmp_path).photographs) == ["images/a.jpg"]


def test_numbered_folders_are_reduced_copies_only_beside_the_originals(tmp_path):
    fill(tmp_path, "room_2/a.jpg", "room_4/a.jpg")
    assert names(list_files(tmp_path).photographs) == ["room_2/a.jpg", "room_4/a.jpg"]


def test_raw_files_and_videos_are_told_apart(tmp_path):
    found = list_files(fill(tmp_path, "a.NEF", "b.MOV", "c.jpg"))
    assert (names(found.photographs), names(found.raws), names(found.videos)) == (["c.jpg"], ["a.NEF"], ["b.MOV"])


def test_links_in_a_circle_end(tmp_path):
    fill(tmp_path, "a.jpg")
    (tmp_path / "again").symlink_to(tmp_path)
    assert names(list_files(tmp_path).photographs) == ["a.jpg"]


def test_what_holds_photographs(tmp_path):
    assert not holds_photographs(fill(tmp_path, "a.txt", "masks/b.png"))
    assert holds_photographs(fill(tmp_path, "below/c.webp"))


def test_a_video_is_a_file(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    assert is_video(Path("clip.MP4"))
    assert not is_video(tmp_path / "folder.mp4")
    assert not is_video(Path("clip.json"))
