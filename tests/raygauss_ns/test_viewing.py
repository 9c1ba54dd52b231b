import math
from types import SimpleNamespace

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle

from ns_support.rays import downscaled
from raygauss_ns import viewing
from raygauss_ns.casting import CastSettings, Gaussians, Rays, whitening_matrices
from raygauss_ns.viewing import RayGaussPictures, densities_at, expected_normals


def some_gaussians(count=40):
    torch.manual_seed(0)
    return Gaussians(
        torch.randn(count, 3), 0.1 + 0.3 * torch.rand(count, 3), torch.randn(count, 4), 10 ** (2 * torch.rand(count))
    )


def density(gaussians, points, eps):
    """The sum, from its definition, in float64."""
    means, scales, quats, peaks = (x.double() for x in gaussians)
    whitened = torch.einsum("nij,pnj->pni", whitening_matrices(scales, quats), points.double()[:, None] - means)
    each = peaks * torch.exp(-0.5 * whitened.square().sum(-1))
    return torch.where(each > eps, each, 0.0).sum(-1)


@pytest.mark.parametrize("eps", [0.1, 5.0])
def test_densities_are_the_sum_of_the_gaussians(eps):
    gaussians = some_gaussians()
    points = torch.randn(240, 3)
    expected = density(gaussians, points, eps)
    assert (expected > 0).sum() > 20
    for width in (0, 20):
        found = densities_at(gaussians, points, CastSettings(0.3, eps, 0.5), width)
        torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


def test_densities_of_nothing_and_nowhere():
    points = torch.tensor([[0.0, 0.0, 0.0], [math.inf, 0.0, 0.0], [math.nan, 0.0, 0.0]])
    gaussians = Gaussians(torch.zeros(1, 3), torch.ones(1, 3), torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([7.0]))
    found = densities_at(gaussians, points, CastSettings(0.1, 0.01))
    torch.testing.assert_close(found, torch.tensor([7.0, 0.0, 0.0]))
    nothing = Gaussians(*(x[:0] for x in gaussians))
    assert densities_at(nothing, points, CastSettings(0.1, 0.01)).tolist() == [0.0, 0.0, 0.0]


def test_normals_of_a_dense_ball_point_outwards():
    ball = Gaussians(torch.zeros(1, 3), torch.full((1, 3), 0.3), torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([1e5]))
    ys, xs = torch.meshgrid(torch.linspace(-0.4, 0.4, 12), torch.linspace(-0.4, 0.4, 12), indexing="ij")
    origins = torch.stack([xs, ys, torch.full_like(xs, 4.0)], -1).view(-1, 3)
    directions = torch.tensor([0.0, 0.0, -1.0]).expand_as(origins)
    ends = torch.zeros(144), torch.full((144,), torch.inf)
    settings = CastSettings(0.005, 0.01, 0.5, 1e-4, 128)
    found = expected_normals(ball, Rays(origins, directions, *ends, 12), settings, 0.01)
    # Optical depth 1 lies where sigma s^2 / r = 1: at a radius of 1.26 on the axis; that of a ball beside it.
    z = (1.26**2 - origins[:, :2].square().sum(-1)).sqrt()
    expected = torch.nn.functional.normalize(torch.stack([origins[:, 0], origins[:, 1], z], -1), dim=-1)
    assert bool(((found * expected).sum(-1) > math.cos(math.radians(3))).all())


def test_extras_are_not_computed_until_looked_up(make_model, make_cameras, monkeypatch):
    model = make_model().eval()
    casts = []
    monkeypatch.setattr(viewing, "cast", lambda *a, _cast=viewing.cast, **k: casts.append(1) or _cast(*a, **k))
    outputs = model.get_outputs_for_camera(make_cameras()[0:1])
    assert set(outputs) == {"rgb", "depth", "accumulation", "background", "normals", "density_slice"}
    assert not casts
    normals, density = outputs["normals"], outputs["density_slice"]
    assert len(casts) == 2
    assert normals.shape == (21, 30, 3)
    assert density.shape == (21, 30, 1)
    assert bool(((normals >= 0) & (normals <= 1)).all())
    seen = outputs["accumulation"][..., 0] > 0.5
    assert bool(seen.any())
    torch.testing.assert_close((2 * normals[seen] - 1).norm(dim=-1), torch.ones(int(seen.sum())))
    assert bool((normals[~seen] == 0.5).all())


def test_training_knows_no_extras(make_model, make_cameras):
    model = make_model().train()
    assert set(model.get_outputs(make_cameras()[0:1])) == {"rgb", "depth", "accumulation", "background", "window"}
    rays = RayBundle(torch.zeros(4, 3), torch.tensor([[0.0, 0.0, 1.0]]).expand(4, 3), torch.ones(4, 1))
    assert set(model.get_outputs(rays)) == {"rgb", "depth", "accumulation", "background"}


def test_the_slice_shows_the_density_where_its_rays_meet_it(make_model, make_cameras):
    model = make_model().eval()
    model.pictures.slice_axis.default_value, model.pictures.slice_position.default_value = "z", 0.25
    camera = make_cameras()[0:1]
    rays = camera.generate_rays(0, keep_shape=True)
    points = rays.origins + rays.directions * ((0.25 - rays.origins[..., 2:]) / rays.directions[..., 2:])
    expected = density(model.cloud.gaussians(), points.reshape(-1, 3), model.cast_settings.density_threshold)
    found = model.get_outputs_for_camera(camera)["density_slice"]
    assert float(expected.max()) > 1
    torch.testing.assert_close(found.reshape(-1).double(), expected, atol=1e-2, rtol=1e-3)


def test_sliders_change_the_viewers_pictures_only(make_model, make_cameras, monkeypatch):
    model = make_model().eval()
    camera = make_cameras()[0:1]
    before, state = model.get_outputs_for_camera(camera)["rgb"], {k: v.clone() for k, v in model.state_dict().items()}
    panel = SimpleNamespace(output_render="rgb", split=False)
    model.run.viewer = SimpleNamespace(trainer=None, control_panel=panel)
    pictures = model.pictures
    for slider, value in ((pictures.scale, 0.3), (pictures.cutoff, 2.0), (pictures.step, 0.05)):
        untouched = slider.value
        slider.default_value = value
        assert torch.equal(model.get_outputs_for_camera(camera)["rgb"], before), slider.name
        with monkeypatch.context() as patch:
            patch.setattr("raygauss_ns.model.viewer_asks", lambda: True)
            assert (model.get_outputs_for_camera(camera)["rgb"] - before).abs().max() > 1e-4, slider.name
            slider.default_value = untouched
            assert torch.equal(model.get_outputs_for_camera(camera)["rgb"], before), slider.name
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_viewers_coarse_frames_are_averages_too(make_model, make_cameras, monkeypatch):
    """Nerfstudio asks for a small image while the camera moves: the one that `ns-render` would make."""
    cameras = make_cameras(2, height=40, width=40)
    model = make_model(cameras=cameras, initial_scale=0.1, initial_density=30.0).eval()
    model.run.viewer = SimpleNamespace(trainer=None, control_panel=SimpleNamespace(output_render="rgb", split=False))
    small = downscaled(cameras, 4)[0:1]
    expected = model.get_outputs_for_camera(small)["rgb"]
    model.config.antialiased = False
    assert not torch.equal(model.get_outputs_for_camera(small)["rgb"], expected)
    model.config.antialiased = True
    monkeypatch.setattr("raygauss_ns.model.viewer_asks", lambda: True)
    torch.testing.assert_close(model.get_outputs_for_camera(small)["rgb"], expected)


def test_sliders_do_not_reach_training(make_model, make_cameras, optimizers_of, monkeypatch):
    """Two steps between pictures for a viewer whose sliders stand elsewhere, on its own thread or on the training's."""

    def trained(looks):
        torch.manual_seed(0)
        model = make_model(training_window=0).train()
        optimizers, camera = optimizers_of(model), make_cameras()[0:1]
        panel = SimpleNamespace(output_render="rgb", split=False)
        model.run.viewer = SimpleNamespace(trainer=None, control_panel=panel)
        for slider, value in ((model.pictures.scale, 0.3), (model.pictures.cutoff, 2.0), (model.pictures.step, 0.05)):
            slider.default_value = value if looks else slider.value
        for step in range(2):
            model.update_to_step(step)
            if looks:
                with monkeypatch.context() as patch:
                    patch.setattr("raygauss_ns.model.viewer_asks", lambda: True)
                    model.get_outputs_for_camera(camera)
                monkeypatch.setattr("raygauss_ns.model.viewer_asks", lambda: True)
            batch = {"image": torch.full((int(camera.height), int(camera.width), 3), 0.3)}
            sum(model.get_loss_dict(model.get_outputs(camera), batch).values()).backward()
            optimizers.optimizer_step_all()
            optimizers.zero_grad_all()
        return model.state_dict()

    alone, watched = trained(False), trained(True)
    assert all(torch.equal(value, watched[name]) for name, value in alone.items())


def test_the_viewer_gets_what_it_shows(make_model, make_cameras, monkeypatch):
    model = make_model().eval()
    model.run.viewer = SimpleNamespace(
        trainer=None, control_panel=SimpleNamespace(output_render="normals", split=False)
    )
    monkeypatch.setattr("raygauss_ns.model.viewer_asks", lambda: True)
    outputs = model.get_outputs_for_camera(make_cameras()[0:1])
    assert type(outputs) is dict
    assert bool(outputs["normals"].any())
    assert not outputs["density_slice"].any()


def test_sliders_reach_what_is_configured():
    box = torch.tensor([[-1.5] * 3, [1.5] * 3])
    pictures = RayGaussPictures(box, 1.0, 20.0, 0.2)
    assert pictures.cutoff.min <= 20.0 <= pictures.cutoff.max
    assert pictures.step.min <= 0.2 <= pictures.step.max


def test_colours_of_pictures_fit_bytes(make_model, make_cameras):
    model = make_model(background_color="black", training_window=0)
    model.cloud.params["sh_base"].data += 5.0
    trained = model.train().get_outputs(make_cameras()[0:1])["rgb"]
    assert float(trained.detach().max()) > 1.2  # where the loss can pull it back
    shown = model.eval().get_outputs_for_camera(make_cameras()[0:1])["rgb"]
    torch.testing.assert_close(shown, trained.detach().clamp(0, 1), atol=1e-5, rtol=0)
