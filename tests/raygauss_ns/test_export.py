import re
import sys
from types import SimpleNamespace

import pytest
import torch
from nerfstudio.engine.callbacks import TrainingCallbackAttributes

from ns_support.data.ply import read_ply, write_ply
from ns_support.errors import UserError
from raygauss_ns import export
from raygauss_ns.casting import Rays, cast
from raygauss_ns.color.api import view_colors
from raygauss_ns.export import ExportPoints, ExportRayGauss, ExportSplat, load_ply, shown_cloud
from raygauss_ns.gaussians.ply_formats import splat_columns
from raygauss_ns.splatting.fit import fit_splats


@pytest.fixture
def trained(make_model, monkeypatch, tmp_path):
    """A model as if it came from a run, in a scene of another size than 3, and the run's config."""
    model = make_model(side=2.0, num_random=100).eval()
    for parameter in model.cloud.params.values():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.step = 30_000
    config = tmp_path / "config.yml"
    config.touch()
    pipeline = SimpleNamespace(model=model)
    trainer = SimpleNamespace(method_name="another-method")
    monkeypatch.setattr(export, "open_finished", lambda path, test_mode: (trainer, pipeline))
    return SimpleNamespace(model=model, config=config, pipeline=pipeline)


def image(model, cameras):
    out = model.get_outputs_for_camera(cameras[0:1])
    return torch.cat([out["rgb"], out["accumulation"], out["depth"]], -1)


def test_a_model_that_starts_from_the_export_renders_the_same(trained, make_model, make_cameras):
    path = ExportRayGauss(trained.config).main()
    assert path == trained.config.parent / "raygauss.ply"
    again = make_model(side=2.0, initial_ply=path).eval()
    assert again.step == 0  # all of the colour counts nevertheless
    first, second = (image(model, make_cameras()) for model in (trained.model, again))
    assert float(first[..., :3].std()) > 0.01
    assert float((first - second).abs().max()) <= 1e-6


def test_the_file_alone_renders_the_same(trained, make_cameras):
    cloud, settings = load_ply(ExportRayGauss(trained.config).main())
    assert settings == trained.model.cast_settings
    camera = make_cameras()[0:1]
    rays = camera.generate_rays(0, keep_shape=True).flatten()
    gaussians = cloud.gaussians()
    colors = view_colors(cloud.color_basis(), gaussians.means, rays.origins[0])
    nears = torch.full((len(rays),), trained.model.config.near_plane * cloud.unit)
    ends = nears, torch.full_like(nears, torch.inf)
    out = cast(gaussians, colors, Rays(rays.origins, rays.directions, *ends), settings)
    expected = trained.model.get_outputs_for_camera(camera)
    rgb = (out.rgb + out.transmittance[:, None]).clamp(0, 1)  # white background
    assert float((rgb - expected["rgb"].reshape(-1, 3)).abs().max()) <= 1e-6


def test_splats_and_points(trained, make_model, make_cameras, tmp_path):
    splats = read_ply(ExportSplat(trained.config, tmp_path / "deep" / "a.ply").main())
    points = read_ply(ExportPoints(trained.config).main())
    assert list(points.columns) == ["x", "y", "z", "red", "green", "blue"]
    alive = trained.model.cloud.gaussians().densities > trained.model.cast_settings.density_threshold
    assert len(splats.columns["x"]) == len(points.columns["x"]) == int(alive.sum())
    assert "scene_unit 0.6666666666666666" in splats.comments
    again = make_model(side=2.0, initial_ply=tmp_path / "deep" / "a.ply").eval()
    first, second = (image(model, make_cameras()) for model in (trained.model, again))
    # The density is the same, the colours differ by the lobes' sharpest part.
    torch.testing.assert_close(second[..., 3:], first[..., 3:], rtol=1e-3, atol=1e-3)
    assert float((second - first)[..., :3].abs().mean()) < 0.03


def test_trains_from_the_file_and_is_viewed_without_it(trained, make_model, make_cameras, optimizers_of):
    path = ExportRayGauss(trained.config).main()
    model = make_model(side=2.0, initial_ply=path)
    state = model.state_dict()
    path.unlink()
    pipeline = SimpleNamespace(
        datamanager=SimpleNamespace(
            train_dataset=SimpleNamespace(cameras=make_cameras()), train_dataparser_outputs=SimpleNamespace()
        )
    )
    again = make_model(side=2.0, initial_ply=path)
    attributes = TrainingCallbackAttributes(
        optimizers=optimizers_of(again), grad_scaler=None, pipeline=pipeline, trainer=None
    )
    with pytest.raises(UserError, match=r"raygauss\.ply \(--pipeline.model.initial-ply\) does not exist"):
        again.get_training_callbacks(attributes)
    again.load_state_dict(state)
    torch.testing.assert_close(again.cloud.params["means"], trained.model.cloud.params["means"])
    assert again.get_training_callbacks(attributes)
    for precision, scaler in ((True, False), (False, True)):
        attributes.trainer = SimpleNamespace(mixed_precision=precision, use_grad_scaler=scaler)
        with pytest.raises(UserError, match="--mixed-precision and --use-grad-scaler must be False"):
            again.get_training_callbacks(attributes)


def test_a_file_of_nothing_is_refused(trained, make_model, tmp_path):
    write_ply(tmp_path / "a.ply", splat_columns(trained.model.cloud, density_threshold=1e9))
    with pytest.raises(UserError, match="None of the 0 Gaussians in"):
        make_model(initial_ply=tmp_path / "a.ply")


def test_missing_config(tmp_path):
    with pytest.raises(UserError, match=r"no\.yml does not exist"):
        ExportRayGauss(tmp_path / "no.yml").main()


@pytest.mark.parametrize("folder", [".", "run", "run/nerfstudio_models"])
def test_folders_stand_for_the_run_in_them(trained, tmp_path, folder):
    (tmp_path / "run" / "nerfstudio_models").mkdir(parents=True)
    trained.config.rename(tmp_path / "run" / "config.yml")
    assert ExportSplat(tmp_path / folder).main() == tmp_path / "run" / "splat.ply"


def test_of_several_runs_one_is_to_be_chosen(trained, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yml").touch()
    trained.config.unlink()
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "config.yml").touch()
    with pytest.raises(UserError, match=r"There are 2 runs below .*/(other|third), .*/(other|third) "):
        ExportSplat(tmp_path).main()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"There is no config\.yml in"):
        ExportSplat(tmp_path / "empty").main()


@pytest.mark.parametrize(("wanted", "written"), [("", "points.ply"), ("new", "new/points.ply"), ("a.PLY", "a.PLY")])
def test_the_output_may_be_a_folder(trained, tmp_path, wanted, written):
    assert ExportPoints(trained.config, tmp_path / wanted).main() == tmp_path / written


def test_other_formats_are_refused(trained, tmp_path):
    with pytest.raises(UserError, match=r"scene\.ksplat must be a folder or end in \.ply, \.spz or \.splat: no"):
        ExportSplat(trained.config, tmp_path / "scene.ksplat").main()
    with pytest.raises(UserError, match=r"scene\.splat must be a folder or end in \.ply: PLY is the only"):
        ExportPoints(trained.config, tmp_path / "scene.splat").main()


def test_a_package_that_is_missing_is_named_before_the_run_is_opened(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gsply", None)
    monkeypatch.setattr(export, "open_finished", lambda *_: pytest.fail("opened"))
    with pytest.raises(UserError, match=r"pip install 'raygauss-hardmine\[formats\]'"):
        ExportSplat(trained.config, tmp_path / "scene.spz").main()


def test_fine_tuning_changes_the_file_and_says_what_it_brought(trained, make_cameras, capsys, monkeypatch):
    asked, seconds = [], []

    def some_steps(splats, scene, views, given, stopped):
        seconds.append(given)
        return fit_splats(splats, scene, views, 600.0, stopped=lambda: stopped() or asked.append(1) or len(asked) > 40)

    monkeypatch.setattr(export, "fit_splats", some_steps)
    dataset = SimpleNamespace(cameras=make_cameras(count=4))
    trained.pipeline.datamanager = SimpleNamespace(train_dataset=dataset)
    plain = read_ply(ExportSplat(trained.config, trained.config.parent / "plain.ply").main()).columns
    assert "--fine-tune 5 fits it" in " ".join(capsys.readouterr().out.split())
    fitted = read_ply(ExportSplat(trained.config, fine_tune=2).main())
    assert seconds == [120]
    said = " ".join(capsys.readouterr().out.split())
    before, after = map(float, re.search(r"([\d.]+) dB PSNR before and ([\d.]+) dB after", said).groups())
    assert after > before + 1
    assert fitted.columns.keys() == plain.keys()
    assert len(fitted.columns["x"]) == len(plain["x"])
    assert not (fitted.columns["opacity"] == plain["opacity"]).all()
    assert any(comment.startswith("scene_unit") for comment in fitted.comments)
    with pytest.raises(UserError, match="--fine-tune must be >= 0 minutes, got -1"):
        ExportSplat(trained.config, fine_tune=-1).main()


def test_what_is_left_out_is_said(trained, capsys):
    trained.model.cloud.params["densities"].data[:7] = 0.0
    ExportSplat(trained.config).main()
    said = " ".join(capsys.readouterr().out.split())
    assert "93 Gaussians written to" in said
    assert "7 that are too thin to show were left out" in said
    assert "Drop it on any viewer of 3D Gaussian splatting" in said


def test_a_file_that_can_not_be_written_leaves_the_one_before(trained, tmp_path):
    (tmp_path / "file").write_text("before")
    with pytest.raises(UserError, match="can't be written"):
        ExportPoints(trained.config, tmp_path / "file" / "a.ply").main()
    assert (tmp_path / "file").read_text() == "before"


def test_the_file_it_began_with_is_not_read_again(trained, make_model, tmp_path):
    """A trained scene has all of it in its checkpoint, whatever has become of the file."""
    (tmp_path / "edited.ply").write_text("no longer a PLY file")
    with pytest.raises(UserError, match="is not a PLY file"):
        make_model(initial_ply=tmp_path / "edited.ply")
    model = make_model(initial_ply=tmp_path / "edited.ply", checkpoint_follows=True)
    model.load_state_dict(trained.model.state_dict())


def test_another_methods_config(trained):
    trained.pipeline.model = torch.nn.Linear(1, 1)
    with pytest.raises(UserError, match="of another-method; only those of raygauss"):
        ExportRayGauss(trained.config).main()


def test_a_foreign_file_has_no_settings(trained, tmp_path):
    write_ply(tmp_path / "a.ply", splat_columns(trained.model.cloud, 0.1), ["scene_unit 1.0"])
    with pytest.raises(UserError, match="lacks the comments step, density_threshold"):
        load_ply(tmp_path / "a.ply")


def test_files_show_the_mean_photograph(make_model, make_cameras):
    model = make_model(cameras=make_cameras(), exposure="on")
    uncorrected = make_model(exposure="off")
    assert shown_cloud(uncorrected) is uncorrected.cloud
    with torch.no_grad():
        model.exposure.adjustments.copy_(0.2 * torch.randn(2, 3, 4))
    model.eval()
    matrix, shift = model.exposure.mean_map()
    expected = model.get_outputs_for_camera(make_cameras()[0:1])["rgb"]
    model.cloud = shown_cloud(model)
    with torch.no_grad():
        model.exposure.adjustments.zero_()
    torch.testing.assert_close(model.get_outputs_for_camera(make_cameras()[0:1])["rgb"], expected, rtol=0, atol=1e-5)
    assert not torch.allclose(matrix, torch.eye(3))
    assert bool(shift.any())
