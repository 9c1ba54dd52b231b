"""A run that was saved reloads through nerfstudio's own commands, its data parser never named."""

import json
from copy import deepcopy

import pytest
import torch
from nerfstudio.scripts.eval import ComputePSNR
from nerfstudio.scripts.render import DatasetRender

from raygauss_ns.export import ExportRayGauss, load_ply
from raygauss_ns.method import raygauss


@pytest.fixture(scope="module")
def saved(scene, tmp_path_factory):
    """The config.yml of a run with a checkpoint, and the pipeline that the checkpoint was taken from."""
    trainer = deepcopy(raygauss.config)
    trainer.output_dir, trainer.experiment_name, trainer.timestamp = tmp_path_factory.mktemp("run"), "scene", "now"
    trainer.pipeline.datamanager.data = scene
    trainer.pipeline.model.num_random, trainer.pipeline.model.step_size = 50, 0.02
    trainer.save_config()
    pipeline = trainer.pipeline.setup(device="cpu", test_mode="val")
    folder = trainer.get_checkpoint_dir()
    folder.mkdir(parents=True)
    torch.save({"step": 3, "pipeline": pipeline.state_dict()}, folder / "step-000000003.ckpt")
    return trainer.get_base_dir() / "config.yml", pipeline


def test_exports(saved):
    config, pipeline = saved
    cloud, settings = load_ply(ExportRayGauss(config).main())
    assert settings == pipeline.model.cast_settings
    for name, parameter in pipeline.model.cloud.params.items():
        torch.testing.assert_close(cloud.params[name], parameter, rtol=0, atol=0)


def test_evaluates(saved, tmp_path):
    ComputePSNR(load_config=saved[0], output_path=tmp_path / "eval.json").main()
    expected = saved[1].eval().get_average_eval_image_metrics()  # of the view of "val", which looks as that of "test"
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert results["psnr"] == pytest.approx(float(expected["psnr"]), abs=1e-3)


def test_renders_both_splits(saved, tmp_path):
    DatasetRender(load_config=saved[0], output_path=tmp_path, split="train+test", rendered_output_names=["rgb"]).main()
    assert len(list((tmp_path / "train" / "rgb").iterdir())) == 4
    assert len([path for path in (tmp_path / "test").rglob("*") if path.is_file()]) == 1
