"""The binary tables of a COLMAP model: no entry takes memory for more than the file holds."""

import struct
import tracemalloc

import pytest

from ns_support.data.formats.colmap_parser import model_points, registered_images
from ns_support.errors import UserError


def points(matches):
    return struct.pack("<Q", 2) + b"".join(
        struct.pack("<Q3d3Bd", i, 0.1 * i, 0, 1, 9, 9, 9, 0.5)
        + struct.pack("<Q", claimed)
        + struct.pack("<4i", *[0] * 4)
        for i, claimed in enumerate(matches)
    )


def images(matches):
    return struct.pack("<Q", 2) + b"".join(
        struct.pack("<i7di", i, 1, 0, 0, 0, 0, 0, i, 1) + b"a.png\0" + struct.pack("<Q", claimed) + bytes(48)
        for i, claimed in enumerate(matches)
    )


@pytest.mark.parametrize(
    ("name", "table", "read"), [("points3D", points, model_points), ("images", images, registered_images)]
)
@pytest.mark.parametrize("claimed", [3, 10**6, 2**31, 2**60])
def test_a_number_of_matches_that_the_file_can_not_hold(tmp_path, name, table, read, claimed):
    (tmp_path / "cameras.bin").touch()
    path = tmp_path / f"{name}.bin"
    path.write_bytes(table([2, 2]))
    assert len(read(tmp_path)) == 2
    path.write_bytes(table([2, claimed]))
    peaks = []
    for _ in range(3):  # the least counts: threads that other tests have left allocate too
        tracemalloc.start()
        try:
            with pytest.raises(
                UserError, match=rf"{name}\.bin is damaged or cut off \(entry 1 claims {claimed:,} match"
            ):
                read(tmp_path)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert min(peaks) < 1 << 22  # 10^6 matches have 8 MB


def test_a_table_that_is_cut_off(tmp_path):
    (tmp_path / "cameras.bin").touch()
    for length in (4, 30, 55, 70, 100):
        (tmp_path / "points3D.bin").write_bytes(points([2, 2])[:length])
        with pytest.raises(UserError, match=r"points3D\.bin is damaged or cut off"):
            model_points(tmp_path)
