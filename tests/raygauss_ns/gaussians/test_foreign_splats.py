"""What other programs' files of Gaussians hold, read as it is meant, or named."""

import math

import numpy as np
import pytest
import torch

from ns_support.data.ply import write_ply
from ns_support.data.warnings import forget_warnings
from ns_support.errors import UserError
from ns_support.lenses.lens import LensType, make_lens
from raygauss_ns.gaussians.foreign_splats import tell_if_unseen
from raygauss_ns.gaussians.optics import optical_depths
from raygauss_ns.gaussians.ply_formats import cloud_columns, point_columns, read_cloud, splat_columns

N = 20


@pytest.fixture(autouse=True)
def nothing_said():
    forget_warnings()


def splats(degree=2):
    noise = np.random.default_rng(0)
    names = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", *(f"f_rest_{i}" for i in range(3 * ((degree + 1) ** 2 - 1)))]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    return {name: noise.normal(size=N).astype(np.float32) for name in names}


def read(tmp_path, columns, **kwargs):
    write_ply(tmp_path / "a.ply", columns)
    return read_cloud(tmp_path / "a.ply", **kwargs)


def depths(cloud):
    return optical_depths(cloud.gaussians().densities.double(), cloud.params["scales"].double()).detach()


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_an_opacity_of_infinity_is_opaque(tmp_path):
    columns = splats()
    columns["opacity"][3], columns["opacity"][4] = np.inf, -np.inf
    cloud = read(tmp_path, columns)
    assert len(cloud) == N
    found = depths(cloud)
    assert torch.isfinite(found).all()
    assert found[3] > 20
    assert found[4] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["x", "f_dc_0", "f_rest_5", "scale_1", "rot_2"])
def test_rows_that_are_not_finite_are_left_out(name, value, tmp_path, capsys):
    columns = splats()
    columns[name][7] = value
    cloud = read(tmp_path, columns)
    np.testing.assert_array_equal(cloud.params["means"].detach()[:, 1], np.delete(columns["y"], 7))
    assert "1 of the 20 Gaussians" in said(capsys)


def test_rows_of_zeros_are_left_out_and_a_rotation_of_zeros_is_none(tmp_path, capsys):
    columns = splats()
    for name, column in columns.items():
        column[5:] = 0
        if name.startswith("rot_"):
            column[2] = 0
    cloud = read(tmp_path, columns)
    assert len(cloud) == 5
    assert cloud.params["quats"][2].tolist() == [1, 0, 0, 0]
    words = said(capsys)
    assert "15 of the 20 Gaussians" in words
    assert "rotation 0 0 0 0" in words


def test_a_file_of_zeros_is_refused(tmp_path):
    with pytest.raises(UserError, match="None of the 20 rows"):
        read(tmp_path, {name: 0 * column for name, column in splats().items()})


def test_degree_3_is_cut_with_a_word_only_where_there_is_something_to_cut(tmp_path, capsys):
    columns = splats(degree=3)
    read(tmp_path, columns)
    assert "harmonics of degree 3; those above degree 2" in said(capsys)
    for channel in range(3):
        for band in range(8, 15):
            columns[f"f_rest_{15 * channel + band}"][:] = 0
    read(tmp_path, columns)
    assert said(capsys) == ""
    read(tmp_path, columns, sh_degree=1)
    assert "those above degree 1" in said(capsys)


def test_the_filter_of_mip_splatting_is_put_in(tmp_path, capsys):
    columns, size = splats(), 0.7
    plain = read(tmp_path, columns)
    filtered = read(tmp_path, columns | {"filter_3D": np.full(N, size, np.float32)})
    wider = torch.sqrt(torch.exp(plain.params["scales"].double()) ** 2 + size**2)
    torch.testing.assert_close(filtered.params["scales"].double().exp(), wider, rtol=1e-5, atol=0)
    volumes = torch.exp(plain.params["scales"].double().sum(-1)) / wider.prod(-1)
    expected = torch.sigmoid(torch.from_numpy(columns["opacity"]).double()) * volumes
    torch.testing.assert_close(-torch.expm1(-depths(filtered)), expected.detach(), rtol=1e-4, atol=1e-7)
    assert "filter_3D" in said(capsys)


def test_flat_splats_and_plain_colours(tmp_path, capsys):
    columns = splats(degree=0)
    del columns["scale_2"]
    for name in ("f_dc_0", "f_dc_1", "f_dc_2"):
        del columns[name]
    columns |= {name: np.full(N, value, np.uint8) for name, value in (("red", 255), ("green", 0), ("blue", 51))}
    cloud = read(tmp_path, columns)
    smaller = np.minimum(columns["scale_0"], columns["scale_1"])
    np.testing.assert_allclose(cloud.params["scales"].detach()[:, 2], smaller + math.log(0.01), rtol=1e-5)
    colors = point_columns(cloud, -1.0)
    assert [colors[name][0] for name in ("red", "green", "blue")] == [255, 0, 51]
    assert "flat (2D)" in said(capsys)


def test_another_column_named_density_is_passed_over(tmp_path):
    assert len(read(tmp_path, splats() | {"density": np.ones(N, np.float32)})) == N


def test_exports_leave_out_what_is_not_finite(tmp_path, capsys):
    cloud = read(tmp_path, splats())
    cloud.params["densities"].data[:] = 1.0
    cloud.params["scales"].data[2, 1] = torch.nan
    cloud.params["quats"].data[3] = 0
    for columns in (cloud_columns(cloud), splat_columns(cloud, 0.0), point_columns(cloud, 0.0)):
        assert len(columns["x"]) == N - 1
        assert all(np.isfinite(column).all() for column in columns.values())
    assert [splat_columns(cloud, 0.0)[f"rot_{i}"][2] for i in range(4)] == [1, 0, 0, 0]
    assert "1 of the 20 Gaussians are not finite, and are not exported" in said(capsys)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"ply\nformat binary_little_endian 1.0\nelement chunk 1\nproperty float min_x\nend_header\n", "is compressed"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty uint packed_position\nend_header\n1\n", "is compressed"),
        (b"\x1f\x8b" + bytes(30), r"packed Gaussians \(\.spz\)"),
        (b"PK\x03\x04" + bytes(30), r"packed Gaussians \(\.sog\)"),
        (bytes(range(32)) * 3, r"packed Gaussians \(\.splat, perhaps\)"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nend_header\n1\n2\n", "ends after"),
        (
            b"ply\nformat binary_little_endian 1.0\nelement vertex 1" + b"0" * 30 + b"\nproperty float x\nend_header\n",
            "ends",
        ),
        (b"ply\nformat ascii 1.0\nelement vertex 1" + b"0" * 15 + b"\nproperty float x\nend_header\n1\n", "ends after"),
    ],
)
def test_what_can_not_be_read_is_named(content, words, tmp_path):
    (tmp_path / "a.ply").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_cloud(tmp_path / "a.ply")


def test_points_belong_into_the_data(tmp_path):
    with pytest.raises(UserError, match="ply_file_path"):
        read(tmp_path, {name: np.zeros(3, np.float32) for name in ("x", "y", "z", "red", "green", "blue")})


@pytest.mark.parametrize("distance", [5.0, -5.0])
def test_gaussians_that_no_camera_sees_are_told_of(distance, tmp_path, capsys):
    lens = make_lens(LensType.PERSPECTIVE, (40.0, 40.0), (20.0, 15.0), (40, 30))
    tell_if_unseen(torch.tensor([[0.0, 0.0, -distance]]), torch.eye(4)[None, :3], [lens], tmp_path / "a.ply")
    assert ("No training camera sees any" in said(capsys)) == (distance < 0)
