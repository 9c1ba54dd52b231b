import math

import numpy as np
import pytest
import torch

from ns_support.data.ply import write_ply
from ns_support.errors import UserError
from ns_support.kernels.harmonics import Y0
from raygauss_ns.casting import CastSettings, Gaussians, Rays, cast
from raygauss_ns.color.api import view_colors
from raygauss_ns.color.harmonics import sh_basis
from raygauss_ns.color.reference import colors_reference
from raygauss_ns.gaussians.cloud import GaussianCloud
from raygauss_ns.gaussians.initialization import random_points
from raygauss_ns.gaussians.optics import densities_of_depths, effective_thickness, optical_depths
from raygauss_ns.gaussians.ply_formats import (
    cloud_columns,
    header_values,
    lobes_as_harmonics,
    point_columns,
    read_cloud,
    splat_columns,
)

BOX = torch.tensor([[-1.0] * 3, [1.0] * 3])
EPS = 0.1


def make_cloud(n, unit=0.7, sh_degree=2, num_lobes=7):
    """As after training: every parameter is something."""
    torch.manual_seed(0)
    cloud = GaussianCloud(random_points(n, BOX), unit, 3.0, sh_degree=sh_degree, num_lobes=num_lobes)
    for name in ("scales", "quats", "densities", "sh_base", "sh_rest", "sg_amplitudes", "sg_sharpness"):
        cloud.params[name].data += 0.3 * torch.randn_like(cloud.params[name])
    return cloud


def directions(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, 3, generator=generator, dtype=torch.float64), dim=-1)


class TestConversion:
    @pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (1.0, 1.0, 1e-3), (1.0, 0.01, 0.01), (0.2, 0.5, 0.9)])
    def test_depth_is_the_mean_over_directions_by_area(self, scales):
        """Monte Carlo of tau weighted with the area that the Gaussian covers; Thomsen's formula is good to 1.1 %."""
        s = torch.tensor(scales, dtype=torch.float64)
        stretched = (directions(400_000) / s).norm(dim=-1)
        depths, areas = math.sqrt(2 * math.pi) * 3.0 / stretched, 2 * math.pi * s.prod() * stretched
        expected = (areas * depths).mean() / areas.mean()
        found = optical_depths(torch.tensor([3.0], dtype=torch.float64), s.log()[None])
        torch.testing.assert_close(found[0], expected, rtol=0.015, atol=0)

    def test_a_sphere_and_a_disc(self):
        log_scales = torch.tensor([[0.5, 0.5, 0.5], [1.0, 1.0, 1e-4]], dtype=torch.float64).log()
        thickness = effective_thickness(log_scales)
        assert thickness[0].item() == pytest.approx(0.5, rel=1e-12)
        assert thickness[1].item() == pytest.approx(2e-4, rel=0.011)

    def test_the_way_back(self):
        log_scales, densities = torch.randn(31, 3, dtype=torch.float64), torch.rand(31, dtype=torch.float64)
        depths = optical_depths(densities, log_scales)
        torch.testing.assert_close(densities_of_depths(depths, log_scales), densities, rtol=1e-12, atol=0)

    def test_a_ray_through_a_sphere_meets_the_opacity(self):
        """The caster's transmittance along the middle of a round Gaussian is 1 - opacity."""
        density, scale = 2.0, 0.3
        gaussians = Gaussians(*(torch.tensor([v]) for v in ([0.0] * 3, [scale] * 3, [1.0, 0, 0, 0], density)))
        origin, direction = torch.tensor([[0.0, 0.0, -4.0]]), torch.tensor([[0.0, 0.0, 1.0]])
        settings = CastSettings(step=0.01, density_threshold=1e-4, sample_offset=0.5, transmittance_threshold=0.0)
        rays = Rays(origin, direction, torch.zeros(1), torch.full((1,), 8.0))
        out = cast(gaussians, torch.ones(1, 3), rays, settings)
        depth = optical_depths(torch.tensor([density]), torch.full((1, 3), scale).log())
        torch.testing.assert_close(out.transmittance, torch.exp(-depth), rtol=1e-4, atol=0)

    def test_lobes_are_projected_orthogonally(self):
        """What is left of a colour is orthogonal to every harmonic: checked by Monte Carlo."""
        basis = make_cloud(3).color_basis()
        basis = type(basis)(*(value.detach().double() for value in basis))
        harmonics = lobes_as_harmonics(basis)
        d = directions(400_000)
        y = sh_basis(d, 2)
        for i in range(3):
            row = type(basis)(*(value[i : i + 1].expand(len(d), *value.shape[1:]) for value in basis))
            residual = colors_reference(row, d) - 0.5 - y @ harmonics[i]
            inner = 4 * math.pi * torch.einsum("db,dc->bc", y, residual) / len(d)
            assert float(inner.abs().max()) < 5e-3
            assert float(residual.abs().max()) > 5e-3

    def test_many_lobes_are_projected_some_at_a_time(self, monkeypatch):
        basis = make_cloud(7).color_basis()
        at_once = lobes_as_harmonics(basis)
        monkeypatch.setattr("raygauss_ns.gaussians.ply_formats._ROWS_AT_ONCE", 3)
        torch.testing.assert_close(lobes_as_harmonics(basis), at_once, rtol=1e-12, atol=1e-12)

    def test_a_constant_lobe_is_a_constant(self):
        cloud = make_cloud(5, num_lobes=1)
        cloud.params["sg_sharpness"].data.fill_(-60.0)  # lambda = 0
        basis = cloud.color_basis()
        expected = basis.sh_base + basis.sg_amplitudes[:, 0] / Y0
        torch.testing.assert_close(lobes_as_harmonics(basis)[:, 0].float(), expected, rtol=1e-6, atol=1e-6)


class TestRayGaussFormat:
    @pytest.mark.parametrize("n", [0, 1, 31, 100])
    @pytest.mark.parametrize(("sh_degree", "num_lobes"), [(2, 7), (0, 0), (1, 2)])
    def test_every_parameter_returns_to_the_bit(self, tmp_path, n, sh_degree, num_lobes):
        cloud = make_cloud(n, 1 / 3, sh_degree, num_lobes)
        write_ply(tmp_path / "a.ply", cloud_columns(cloud), [f"scene_unit {cloud.unit!r}"])
        again = read_cloud(tmp_path / "a.ply", sh_degree=sh_degree)
        assert again.unit == cloud.unit
        for name, parameter in cloud.params.items():
            torch.testing.assert_close(again.params[name], parameter, rtol=0, atol=0)

    def test_renders_are_identical(self, tmp_path):
        cloud = make_cloud(100)
        write_ply(tmp_path / "a.ply", cloud_columns(cloud), [f"scene_unit {cloud.unit!r}"])
        first, second = _render(cloud), _render(read_cloud(tmp_path / "a.ply"))
        assert float(first.std()) > 0.01
        assert float((first - second).abs().max()) <= 1e-6

    def test_another_unit_leaves_the_physical_density(self, tmp_path):
        cloud = make_cloud(31)
        write_ply(tmp_path / "a.ply", cloud_columns(cloud))
        again = read_cloud(tmp_path / "a.ply", unit=5.0)
        torch.testing.assert_close(again.gaussians().densities, cloud.gaussians().densities)

    def test_a_richer_basis_looks_the_same(self, tmp_path):
        cloud = make_cloud(31, sh_degree=1, num_lobes=2)
        write_ply(tmp_path / "a.ply", cloud_columns(cloud), [f"scene_unit {cloud.unit!r}"])
        again = read_cloud(tmp_path / "a.ply", sh_degree=2, num_lobes=5)
        assert again.params["sg_axes"].shape == (31, 5, 3)
        torch.testing.assert_close(_render(again), _render(cloud), rtol=0, atol=1e-6)

    def test_a_poorer_basis_is_refused(self, tmp_path):
        write_ply(tmp_path / "a.ply", cloud_columns(make_cloud(3)))
        with pytest.raises(UserError, match=r"degree 2 and 7 lobes.*--pipeline.model.num-lobes 6"):
            read_cloud(tmp_path / "a.ply", num_lobes=6)
        with pytest.raises(UserError, match=r"--pipeline.model.sh-degree 1"):
            read_cloud(tmp_path / "a.ply", sh_degree=1)


class TestSplatFormat:
    def test_names_and_order_are_those_of_the_viewers(self):
        columns = splat_columns(make_cloud(3), EPS)
        expected = ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3))]
        expected += [*(f"f_rest_{i}" for i in range(45)), "opacity", *(f"scale_{i}" for i in range(3))]
        assert list(columns) == expected + [f"rot_{i}" for i in range(4)]
        assert all(column.dtype == np.float32 for column in columns.values())

    def test_harmonics_lie_channel_by_channel(self):
        cloud = make_cloud(31, num_lobes=0)
        columns = splat_columns(cloud, EPS)
        for channel in range(3):
            for band in range(8):
                expected = cloud.params["sh_rest"][:, band, channel].detach().numpy()
                np.testing.assert_array_equal(columns[f"f_rest_{15 * channel + band}"], expected)
            assert not any(columns[f"f_rest_{15 * channel + band}"].any() for band in range(8, 15))

    @pytest.mark.parametrize("density", [0.2, 3.0, 1e4])
    def test_opacity_is_that_of_the_depth(self, density):
        cloud = make_cloud(31)
        cloud.params["densities"].data.fill_(density * cloud.unit)
        columns = splat_columns(cloud, EPS)
        opacity = 1 / (1 + np.exp(-columns["opacity"].astype(np.float64)))
        depths = optical_depths(torch.full((31,), density), cloud.params["scales"].detach())
        np.testing.assert_allclose(opacity, 1 - np.exp(-depths.numpy()), rtol=1e-4)
        assert np.isfinite(columns["opacity"]).all()

    def test_what_is_absent_is_left_out(self):
        cloud = make_cloud(10)
        cloud.params["densities"].data[:4] = EPS * cloud.unit * torch.tensor([0.0, 0.5, -1.0, 0.99])
        assert len(splat_columns(cloud, EPS)["x"]) == 6
        assert len(point_columns(cloud, EPS)["x"]) == 6

    @pytest.mark.parametrize("n", [1, 31, 100])
    def test_the_way_back_is_exact_without_lobes(self, tmp_path, n):
        cloud = make_cloud(n, num_lobes=0)
        cloud.params["quats"].data = torch.nn.functional.normalize(cloud.params["quats"].data, dim=-1)
        write_ply(tmp_path / "a.ply", splat_columns(cloud, EPS))
        again = read_cloud(tmp_path / "a.ply", unit=cloud.unit)
        for name in ("means", "scales", "quats", "densities", "sh_base", "sh_rest"):
            torch.testing.assert_close(again.params[name], cloud.params[name], rtol=2e-6, atol=1e-6)

    @pytest.mark.parametrize("degree", [0, 1, 2, 3])
    def test_reads_every_degree_and_drops_the_third(self, tmp_path, degree):
        columns = _foreign_splats(9, degree)
        write_ply(tmp_path / "a.ply", columns)
        cloud = read_cloud(tmp_path / "a.ply", num_lobes=4)
        bands = (degree + 1) ** 2 - 1
        rest = cloud.params["sh_rest"].detach()
        assert rest.shape == (9, 8, 3)
        for channel in range(3):
            for band in range(min(bands, 8)):
                np.testing.assert_array_equal(rest[:, band, channel], columns[f"f_rest_{bands * channel + band}"])
        assert not bool(rest[:, bands:].any())
        assert cloud.params["sg_amplitudes"].shape == (9, 4, 3)
        assert not bool(cloud.params["sg_amplitudes"].any())

    def test_flat_splats_are_thickened_and_keep_their_opacity(self, tmp_path):
        columns = _foreign_splats(9, 0)
        columns["scale_2"][:] = -20.0
        write_ply(tmp_path / "a.ply", columns)
        cloud = read_cloud(tmp_path / "a.ply", least_scale=0.01)
        gaussians = cloud.gaussians()
        assert float(gaussians.scales.detach().min()) == pytest.approx(0.01)
        depths = optical_depths(gaussians.densities, cloud.params["scales"]).detach().numpy()
        np.testing.assert_allclose(1 - np.exp(-depths), 1 / (1 + np.exp(-columns["opacity"])), rtol=1e-5)


def test_points_have_the_mean_colour(tmp_path):
    cloud = make_cloud(5)
    columns = point_columns(cloud, EPS)
    d = directions(20_000).float()
    for i in range(5):
        row = type(cloud.color_basis())(*(v[i : i + 1].expand(len(d), *v.shape[1:]) for v in cloud.color_basis()))
        mean = colors_reference(row, d).mean(0).clamp(0, 1).detach().numpy() * 255
        found = [columns[name][i] for name in ("red", "green", "blue")]
        np.testing.assert_allclose(found, mean, atol=2.5)


class TestErrors:
    def test_neither_kind(self, tmp_path):
        write_ply(tmp_path / "a.ply", {"x": np.zeros(3, np.float32)})
        with pytest.raises(UserError, match=r"holds neither Gaussians .* nor splats .* has only x\."):
            read_cloud(tmp_path / "a.ply")

    @pytest.mark.parametrize("name", ["z", "quat_w", "sh_0_g", "sg_1_axis_x", "sh_5_b"])
    def test_missing_property(self, tmp_path, name):
        columns = cloud_columns(make_cloud(3))
        del columns[name]
        write_ply(tmp_path / "a.ply", columns)
        with pytest.raises(UserError, match=f"lacks the vertex properties {name}"):
            read_cloud(tmp_path / "a.ply")

    @pytest.mark.parametrize("name", ["opacity", "rot_3", "f_dc_1"])
    def test_missing_splat_property(self, tmp_path, name):
        columns = splat_columns(make_cloud(3), EPS)
        del columns[name]
        write_ply(tmp_path / "a.ply", columns)
        with pytest.raises(UserError, match=f"lacks the vertex properties {name}"):
            read_cloud(tmp_path / "a.ply")

    def test_incomplete_harmonics(self, tmp_path):
        columns = splat_columns(make_cloud(3), EPS)
        del columns["f_rest_23"]
        write_ply(tmp_path / "a.ply", columns)
        with pytest.raises(UserError, match=r"lacks the vertex property f_rest_23"):
            read_cloud(tmp_path / "a.ply")


def test_header_values_pass_over_prose():
    assert header_values(["written by someone", "scene_unit 0.5", "step 1e-3"]) == {"scene_unit": 0.5, "step": 1e-3}


def _foreign_splats(n, degree):
    noise = np.random.default_rng(0)
    names = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{i}" for i in range(3 * ((degree + 1) ** 2 - 1))]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    return {name: noise.normal(size=n).astype(np.float32) for name in names}


def _render(cloud):
    gaussians = cloud.gaussians()
    center = torch.tensor([0.0, 0.0, 3.0])
    v, u = torch.meshgrid(torch.linspace(-0.5, 0.5, 21), torch.linspace(-0.5, 0.5, 31), indexing="ij")
    rays = torch.nn.functional.normalize(torch.stack([u, v, -torch.ones_like(u)], -1).reshape(-1, 3), dim=-1)
    colors = view_colors(cloud.color_basis(), gaussians.means, center)
    ends = torch.zeros(len(rays)), torch.full((len(rays),), torch.inf)
    settings = CastSettings(step=0.02, density_threshold=EPS)
    out = cast(gaussians, colors, Rays(center.expand_as(rays), rays, *ends), settings)
    return torch.cat([out.rgb, out.transmittance[:, None], out.depth[:, None]], -1).detach()
