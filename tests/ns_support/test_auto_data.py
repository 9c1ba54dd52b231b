import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.blender_dataparser import Blender
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParser
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGP
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio, NerfstudioDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset

from hardmine_ns.method import instant_ngp_hardmine
from ns_support.auto_data import COLMAP_FOLDERS, AutoDataParserConfig, auto_data
from ns_support.data.checks import ChecksData, parser_name
from ns_support.data.ply import write_ply
from ns_support.errors import UserError
from ns_support.full_images import FullImagesConfig
from raygauss_ns.method import raygauss


class CheckedRays(ChecksData, VanillaDataManager[InputDataset]):
    """What the ray-based method does."""


DATAMANAGERS = pytest.mark.parametrize(
    "config", [FullImagesConfig(), VanillaDataManagerConfig(_target=CheckedRays)], ids=["whole images", "rays"]
)


@pytest.fixture
def colmap_scene(tmp_path, nerfstudio_scene):
    """Writes a COLMAP model of 4 images as text and gives the data folder: `colmap_scene("sparse/0")`."""

    def write(where):
        nerfstudio_scene(4)
        (tmp_path / "transforms.json").unlink()
        (tmp_path / "images").mkdir()
        for path in tmp_path.glob("*.png"):
            path.rename(tmp_path / "images" / path.name)
        model = tmp_path / where
        model.mkdir(parents=True, exist_ok=True)
        (model / "cameras.txt").write_text("1 PINHOLE 40 30 40.0 40.0 20.0 15.0\n")
        lines = [f"{i + 1} 1 0 0 0 {i} 0 0 1 image_{i}.png\n\n" for i in range(4)]
        (model / "images.txt").write_text("".join(lines))
        (model / "points3D.txt").write_text("1 0.5 0.5 3.0 255 0 0 0.1\n2 0.1 0.5 3.0 255 0 0 0.1\n")
        return tmp_path

    return write


class TestRecognises:
    def test_blender(self, blender_scene):
        folder = blender_scene(train=3, val=2)
        assert isinstance(AutoDataParserConfig(data=folder).setup(), Blender)

    def test_nerfstudio(self, nerfstudio_scene):
        folder = nerfstudio_scene(3)
        for data in (folder, folder / "transforms.json"):
            assert isinstance(AutoDataParserConfig(data=data).setup(), Nerfstudio)

    def test_nerfstudio_with_focal_lengths_in_the_frames(self, tmp_path):
        (tmp_path / "transforms.json").write_text(json.dumps({"frames": [{"fl_x": 3.0}]}))
        assert isinstance(AutoDataParserConfig(data=tmp_path).setup(), Nerfstudio)

    def test_instant_ngp(self, tmp_path):
        (tmp_path / "transforms.json").write_text(json.dumps({"camera_angle_x": 0.7, "aabb_scale": 4, "frames": []}))
        assert isinstance(AutoDataParserConfig(data=tmp_path).setup(), InstantNGP)

    @pytest.mark.parametrize("where", COLMAP_FOLDERS)
    def test_colmap(self, colmap_scene, where):
        folder = colmap_scene(where)
        parser = AutoDataParserConfig(data=folder).setup()
        assert isinstance(parser, ColmapDataParser)
        outputs = parser.get_dataparser_outputs("train")
        assert len(outputs.image_filenames) == 3  # of four, each eighth is for evaluation, the first included
        assert len(outputs.metadata["points3D_xyz"]) == 2

    def test_transforms_come_before_colmap(self, colmap_scene, nerfstudio_scene):
        colmap_scene("colmap/sparse/0")
        folder = nerfstudio_scene(3)
        assert isinstance(AutoDataParserConfig(data=folder).setup(), Nerfstudio)

    def test_another_kind_of_transforms_train_is_not_blenders(self, nerfstudio_scene):
        folder = nerfstudio_scene(3)
        (folder / "transforms_train.json").write_text("{}")
        assert isinstance(AutoDataParserConfig(data=folder).setup(), Nerfstudio)


class TestSettings:
    def test_each_parser_gets_its_own(self, nerfstudio_scene):
        config = AutoDataParserConfig(
            data=nerfstudio_scene(3), nerfstudio=NerfstudioDataParserConfig(scale_factor=2.0, load_3D_points=True)
        )
        parser = config.setup()
        assert parser.config.scale_factor == 2.0
        assert parser.config.load_3D_points
        assert config.nerfstudio.data == Path()  # the choice leaves the configuration as it was

    def test_downscale_factor(self, nerfstudio_scene):
        config = AutoDataParserConfig(data=nerfstudio_scene(3))
        config.downscale_factor = 2  # as ns-render does
        assert config.setup().config.downscale_factor == 2

    def test_downscale_factor_where_there_is_none(self, blender_scene):
        config = AutoDataParserConfig(data=blender_scene(train=1), downscale_factor=2)
        with pytest.raises(UserError, match="can't be downscaled on reading: downscale_factor is 2"):
            config.setup()
        config.downscale_factor = 1
        config.setup()

    def test_methods(self):
        for spec in (raygauss, instant_ngp_hardmine):
            assert isinstance(spec.config.pipeline.datamanager.dataparser, AutoDataParserConfig)

    def test_saved_configs_load(self, nerfstudio_scene):
        folder = nerfstudio_scene(3)
        config = AutoDataParserConfig(data=folder, nerfstudio=NerfstudioDataParserConfig(scale_factor=2.0))
        again = yaml.load(yaml.dump(config), Loader=yaml.Loader)
        assert again == config
        assert again.setup().config.scale_factor == 2.0


class TestUnknown:
    SENTENCE = (
        r"format of the data in .* is not known: looked for a Blender scene \(transforms_train.json .*transforms.json "
        r".*COLMAP model \(cameras.bin or cameras.txt in colmap/sparse/0, sparse/0, .*"
    )

    @DATAMANAGERS
    def test_folder(self, config, tmp_path):
        (tmp_path / "a.gif").touch()
        config.data, config.dataparser = tmp_path, AutoDataParserConfig()
        with pytest.raises(UserError, match=self.SENTENCE):
            config.setup(device="cpu")

    @DATAMANAGERS
    def test_missing_folder(self, config, tmp_path):
        config.data, config.dataparser = tmp_path / "no", AutoDataParserConfig()
        with pytest.raises(UserError, match="does not exist"):
            config.setup(device="cpu")

    def test_transforms_of_neither_kind(self, tmp_path):
        (tmp_path / "transforms.json").write_text("[]")
        with pytest.raises(UserError, match=r"transforms\.json holds no JSON object"):
            AutoDataParserConfig(data=tmp_path).setup()

    def test_no_json(self, tmp_path):
        (tmp_path / "transforms.json").write_text("{")
        with pytest.raises(UserError, match=r"transforms\.json can't be read: .*line 1"):
            AutoDataParserConfig(data=tmp_path).setup()


@DATAMANAGERS
def test_datamanagers_read_and_name_the_chosen_format(config, blender_scene):
    folder = blender_scene(train=3, val=1)
    config.data, config.dataparser = folder, AutoDataParserConfig()
    datamanager = config.setup(device="cpu")
    assert isinstance(datamanager.dataparser, Blender)
    assert len(datamanager.train_dataset) == 3
    assert parser_name(config.dataparser) == "blender-data"
    (folder / "transforms_train.json").write_text('{"camera_angle_x": 1}')
    with pytest.raises(UserError, match=r"transforms_train\.json lists no frames"):
        config.setup(device="cpu")


def test_images_keep_their_pixels(nerfstudio_scene):
    noise = np.random.default_rng(1).integers(0, 256, (5, 30, 40, 3), dtype=np.uint8)
    folder = nerfstudio_scene(5, images=list(noise))
    own = NerfstudioDataParserConfig(auto_scale_poses=False)
    config = FullImagesConfig(data=folder, dataparser=AutoDataParserConfig(nerfstudio=own))
    _, batch = config.setup(device="cpu").next_train(0)
    assert batch["image"].shape == (30, 40, 3)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_parser_named_on_the_command_line_loads_sfm_points_too(nerfstudio_scene, wanted):
    folder = nerfstudio_scene(5, ply_file_path="points.ply")
    columns = {name: np.arange(3, dtype=np.float32) for name in "xyz"}
    write_ply(folder / "points.ply", columns | {name: np.full(3, 9, np.uint8) for name in ("red", "green", "blue")})
    own = NerfstudioDataParserConfig(auto_scale_poses=False)
    config = FullImagesConfig(data=folder, dataparser=own, sfm_points=wanted)
    metadata = config.setup(device="cpu").train_dataparser_outputs.metadata
    assert len(metadata.get("points3D_xyz", ())) == (3 if wanted else 0)


@pytest.mark.parametrize(
    "first",
    ["nerfstudio.configs.dataparser_configs"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("ns_support.data.checks", "raygauss_ns.method")],
)
def test_imports_in_any_order(first, monkeypatch):
    """Registered, as by the entry point, whichever module comes first."""
    monkeypatch.setenv("NERFSTUDIO_DATAPARSER_CONFIGS", "auto-data=ns_support.auto_data:auto_data")
    check = "from nerfstudio.configs.dataparser_configs import all_dataparsers; assert 'auto-data' in all_dataparsers"
    subprocess.run([sys.executable, "-W", "ignore", "-c", f"import {first}; {check}"], check=True)


def test_registered_under_its_name():
    assert isinstance(auto_data.config, AutoDataParserConfig)
    assert auto_data.description
