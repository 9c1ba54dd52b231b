import numpy as np
import pytest

from ns_support.data.ply import read_ply, write_ply
from ns_support.errors import UserError

TYPES = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64]


@pytest.mark.parametrize("count", [0, 1, 31, 100])
def test_what_was_written_is_read(tmp_path, count):
    noise = np.random.default_rng(0)
    columns = {f"p_{i}": (noise.random(count) * 100).astype(kind) for i, kind in enumerate(TYPES)}
    write_ply(tmp_path / "deep" / "a.ply", columns, ["scene_unit 0.5", "prose"])
    found, comments = read_ply(tmp_path / "deep" / "a.ply")
    assert comments == ["scene_unit 0.5", "prose"]
    assert list(found) == list(columns)
    for name, column in columns.items():
        assert found[name].dtype == column.dtype
        np.testing.assert_array_equal(found[name], column)


def test_another_reader_agrees(tmp_path):
    plyfile = pytest.importorskip("plyfile")
    columns = {"x": np.arange(7, dtype=np.float32), "red": np.arange(7, dtype=np.uint8)}
    write_ply(tmp_path / "a.ply", columns, ["a comment"])
    other = plyfile.PlyData.read(str(tmp_path / "a.ply"))
    assert other.comments == ["a comment"]
    for name, column in columns.items():
        np.testing.assert_array_equal(other["vertex"][name], column)


@pytest.mark.parametrize("options", [{"text": True}, {"byte_order": ">"}, {"byte_order": "<"}])
def test_reads_every_encoding_and_passes_over_faces(tmp_path, options):
    plyfile = pytest.importorskip("plyfile")
    vertices = np.array([(0.5, 7), (1.25, 255)], dtype=[("x", "f4"), ("red", "u1")])
    faces = np.array([([0, 1, 0],)], dtype=[("vertex_indices", "i4", (3,))])
    elements = [plyfile.PlyElement.describe(vertices, "vertex"), plyfile.PlyElement.describe(faces, "face")]
    plyfile.PlyData(elements, **options).write(str(tmp_path / "a.ply"))
    columns, _ = read_ply(tmp_path / "a.ply")
    assert columns["x"].tolist() == [0.5, 1.25]
    assert columns["red"].tolist() == [7, 255]


HEADER = "ply\nformat {} 1.0\nelement vertex 2\nproperty float x\nend_header\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is not a PLY file"),
        ("ply\nformat ascii 1.0\nelement vertex 1\nproperty list uchar int x\nend_header\n", "'property list uchar"),
        ("ply\nformat ascii 1.0\nelement face 1\nend_header\n", "'element face 1'"),
        ("ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\n", "header does not end"),
        ("ply\nformat ascii 1.0\nelement vertex 1\nend_header\n", "no vertex properties"),
        ("ply\nelement vertex 1\nproperty float x\nend_header\n", "no format line"),
        (HEADER.format("binary_little_endian") + "abcdef", "ends after 1 of the 2 points"),
        (HEADER.format("ascii") + "1.0\n", "ends after 1 of the 2 points"),
        (HEADER.format("ascii") + "1.0\none\n", "no number of the type float32"),
    ],
)
def test_a_broken_file_ends_in_a_sentence(tmp_path, content, sentence):
    (tmp_path / "a.ply").write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_ply(tmp_path / "a.ply")


def test_a_missing_file_ends_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"no\.ply does not exist"):
        read_ply(tmp_path / "no.ply")


@pytest.mark.parametrize(
    ("columns", "comments", "sentence"),
    [
        ({"x": np.zeros(2, np.float32), "y": np.zeros(3, np.float32)}, [], "same N"),
        ({"x": np.zeros((2, 2), np.float32)}, [], "same N"),
        ({"x": np.zeros(2, np.int64)}, [], "at most 32 bits, got i8"),
        ({"x y": np.zeros(2, np.float32)}, [], "one word"),
        ({"x": np.zeros(2, np.float32)}, ["two\nlines"], "one line"),
    ],
)
def test_refuses_what_the_format_has_no_place_for(tmp_path, columns, comments, sentence):
    with pytest.raises(ValueError, match=sentence):
        write_ply(tmp_path / "a.ply", columns, comments)


@pytest.mark.parametrize("count", [10**6, 10**12, 10**30])
@pytest.mark.parametrize("encoding", ["ascii", "binary_little_endian"])
def test_a_count_that_the_file_can_not_hold_allocates_nothing(tmp_path, encoding, count):
    header = f"ply\nformat {encoding} 1.0\nelement vertex {count}\nproperty double x\nend_header\n"
    (tmp_path / "a.ply").write_bytes(header.encode() + b"1.5 2.5 ")
    with pytest.raises(UserError, match=rf"ends after \d+ of the {count} points in its header"):
        read_ply(tmp_path / "a.ply")


def test_a_word_in_place_of_a_number_names_the_file(tmp_path):
    path = tmp_path / "points.ply"
    path.write_text("ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nend_header\n1\nseven\n")
    with pytest.raises(UserError, match=rf"Point 1 of the PLY file {path} has x = b'seven', which is no number"):
        read_ply(path)


@pytest.mark.filterwarnings("error")
def test_a_number_that_its_type_can_not_hold_is_infinite(tmp_path):
    path = tmp_path / "a.ply"
    path.write_text("ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nend_header\n1e300\n0.5\n")
    np.testing.assert_array_equal(read_ply(path).columns["x"], np.float32([np.inf, 0.5]))
