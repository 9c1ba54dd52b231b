"""Which photographs share a camera, and the focal length that EXIF gives."""

import math

import pytest
from PIL import Image

from ns_support.photos.cameras import Shot, device_and_focal, grouped


def exif(make="Apple", model="iPhone", **inner):
    tags = Image.Exif()
    tags[271], tags[272] = make, model
    numbers = {"focal": 0x920A, "equivalent": 0xA405, "zoom": 0xA404}
    tags.get_ifd(0x8769).update({numbers[name]: value for name, value in inner.items()})
    return tags


def test_focal_length_has_the_field_of_view_across_the_diagonal():
    device, focal = device_and_focal(exif(focal=4.2, equivalent=26), 4000, 3000)
    assert focal == pytest.approx(26 / math.hypot(36, 24) * 5000)
    assert device == "Apple, iPhone, 4.2 mm, 26 mm of 35"
    assert device_and_focal(exif(focal=4.2, equivalent=26), 3000, 4000)[1] == pytest.approx(focal)


@pytest.mark.parametrize("equivalent", [0, -3, 1, 60000, "wide", float("nan")])
def test_an_implausible_focal_length_is_not_taken(equivalent):
    tags = exif()
    tags.get_ifd(0x8769)[0xA405] = equivalent
    assert device_and_focal(tags, 4000, 3000)[1] is None


def test_without_exif():
    assert device_and_focal(Image.Exif(), 4000, 3000) == ("", None)


def test_one_camera_for_each_device_zoom_and_size():
    shots = [
        Shot("a.jpg", "a.jpg", 400, 300, "phone, 4 mm", 350.0),
        Shot("b.jpg", "b.jpg", 300, 400, "phone, 4 mm", 350.0),
        Shot("c.jpg", "c.jpg", 400, 300, "phone, 8 mm", 700.0),
        Shot("d.jpg", "d.jpg", 400, 300, "phone, 4 mm", 350.0),
        Shot("e.jpg", "e.jpg", 400, 300),
    ]
    groups = grouped(shots, "OPENCV")
    assert [group.names for group in groups] == [["a.jpg", "d.jpg"], ["b.jpg"], ["c.jpg"], ["e.jpg"]]
    assert [(group.focal, group.known) for group in groups[2:]] == [(700.0, True), (480.0, False)]


def test_a_fisheye_lens_begins_wide_whatever_exif_says():
    (group,) = grouped([Shot("a.jpg", "a.jpg", 400, 300, "cam", 170.0)], "OPENCV_FISHEYE")
    assert (group.focal, group.known) == (200.0, False)
