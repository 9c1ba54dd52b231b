"""The ablation benchmark at a size of a few seconds."""

import json

import pytest

from raygauss_ns.config import RayGaussModelConfig, check_config


@pytest.fixture(scope="module")
def ablation(script):
    return script("ablation")


def test_every_variant_is_a_valid_configuration(ablation):
    for fields in ablation.VARIANTS.values():
        config = RayGaussModelConfig()
        changed = {name: value for name, value in fields.items() if name != ablation.STEP_FACTOR}
        assert all(hasattr(config, name) for name in changed)
        for name, value in changed.items():
            setattr(config, name, value)
        check_config(config)


@pytest.mark.slow
def test_smoke_runs_are_written_compared_and_not_repeated(ablation, scene, tmp_path, capsys, monkeypatch):
    for variant in ("default", "SH only"):
        for name, value in {"num_random": 100, "step_size": 0.05}.items():
            monkeypatch.setitem(ablation.VARIANTS[variant], name, value)
    output = tmp_path / "results" / "ablation.json"
    words = [f"{scene}:blender-data", "--steps", "2", "--variants", "default", "SH only", "--output", str(output)]
    ablation.main([*words, "--seeds", "0"])
    first = json.loads(output.read_text())["runs"]
    assert [run["variant"] for run in first] == ["default", "SH only"]
    assert all(run["steps"] == 2 and run["psnr"] > 3 and run["gaussian_count"] > 0 for run in first)
    ablation.main([*words, "--seeds", "0", "1"])
    second = json.loads(output.read_text())["runs"]
    assert second[:2] == first
    assert [run["seed"] for run in second] == [0, 0, 1, 1]
    printed = capsys.readouterr().out
    assert "| PSNR dB |" in printed
    assert "| +0.00 dB |" in printed
    with pytest.raises(SystemExit):
        ablation.main([*words, "--steps", "3"])


def test_table_gives_means_ranges_and_differences(ablation):
    runs = [
        {"scene": "s", "variant": variant, "seed": seed, "psnr": psnr, "gaussian_count": 10.0}
        for variant, pair in {"default": (30.0, 31.0), "SH only": (29.0, 29.5)}.items()
        for seed, psnr in enumerate(pair)
    ]
    lines = ablation.table(runs).splitlines()
    assert lines[-2:] == [
        "| default | 30.50 +- 0.50 | 10 +- 0 | +0.00 dB |",
        "| SH only | 29.25 +- 0.25 | 10 +- 0 | -1.25 dB |",
    ]


@pytest.mark.slow
def test_a_step_is_halved_or_doubled_from_the_one_found_for_the_scene(ablation, scene, monkeypatch):
    steps = {}
    for variant in ("default", "dt halved", "dt doubled"):
        monkeypatch.setitem(ablation.VARIANTS[variant], "num_random", 100)
        trained = ablation.train

        def watched(*args, trained=trained, variant=variant):
            trainer, timings = trained(*args)
            steps[variant] = trainer.pipeline.model.cast_settings.step
            return trainer, timings

        monkeypatch.setattr(ablation, "train", watched)
        ablation.run(variant, scene, "blender-data", 1, 0)
        monkeypatch.setattr(ablation, "train", trained)
    assert steps["dt halved"] == pytest.approx(0.5 * steps["default"])
    assert steps["dt doubled"] == pytest.approx(2 * steps["default"])
