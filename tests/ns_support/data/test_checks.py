from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from PIL import Image

from ns_support.auto_data import AutoDataParserConfig
from ns_support.data.checks import ChecksData, check_data_folder, explained_data_errors, parser_name
from ns_support.errors import UserError
from ns_support.full_images import FullImagesConfig

from ..conftest import HEIGHT, WIDTH


class CheckedRays(ChecksData, VanillaDataManager[InputDataset]):
    """What the ray-based method does."""


@pytest.fixture(params=["whole images", "rays"])
def start_from(request):
    """The configuration of either kind of datamanager, for a folder and a parser."""

    def configure(folder, parser):
        if request.param == "rays":
            return VanillaDataManagerConfig(_target=CheckedRays, data=folder, dataparser=parser)
        return FullImagesConfig(data=folder, dataparser=parser)

    return configure


@pytest.fixture
def start(start_from):
    """Starts either kind of datamanager on a folder with a parser, as `ns-train` does."""
    return lambda folder, parser, **kwargs: start_from(folder, parser).setup(device="cpu", **kwargs)


HALF = {"downscale_factor": 2, "auto_scale_poses": False, "eval_mode": "all"}
PARSERS = pytest.mark.parametrize("parser", [BlenderDataParserConfig(), NerfstudioDataParserConfig()])


class TestCheckDataFolder:
    @pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "deep/er/a.Png", "a.webp", "a.TIFF"])
    def test_an_image_at_any_depth_will_do(self, tmp_path, name):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        check_data_folder(tmp_path)

    def test_a_list_of_images_elsewhere_will_do(self, tmp_path):
        (tmp_path / "transforms.json").touch()
        check_data_folder(tmp_path)
        check_data_folder(tmp_path / "transforms.json")

    def test_links_are_followed_and_may_form_a_circle(self, tmp_path):
        folder, elsewhere = tmp_path / "scene", tmp_path / "elsewhere"
        for each in (folder, elsewhere):
            each.mkdir()
        (folder / "images").symlink_to(elsewhere)
        (elsewhere / "back").symlink_to(folder)
        with pytest.raises(UserError, match="no image in it"):
            check_data_folder(folder)
        (elsewhere / "a.png").touch()
        check_data_folder(folder)

    def test_refuses_a_missing_folder(self, tmp_path):
        with pytest.raises(UserError, match=f"^The data folder {tmp_path}/no does not exist.$"):
            check_data_folder(tmp_path / "no")

    def test_refuses_a_file(self, tmp_path):
        (tmp_path / "a.png").touch()
        with pytest.raises(UserError, match="is a file"):
            check_data_folder(tmp_path / "a.png")

    def test_refuses_a_folder_without_images(self, tmp_path):
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep" / "notes.txt").touch()
        with pytest.raises(UserError, match="no image in it"):
            check_data_folder(tmp_path)


class TestDatamanagers:
    @PARSERS
    def test_missing_folder(self, start, tmp_path, parser):
        with pytest.raises(UserError, match="does not exist"):
            start(tmp_path / "no", parser)

    def test_missing_folder_given_to_the_parser(self, start, tmp_path):
        with pytest.raises(UserError, match="does not exist"):
            start(None, BlenderDataParserConfig(data=tmp_path / "no"))

    @PARSERS
    def test_folder_without_images(self, start, tmp_path, parser):
        with pytest.raises(UserError, match="no image in it"):
            start(tmp_path, parser)

    @PARSERS
    def test_folder_without_cameras(self, start, tmp_path, parser):
        (tmp_path / "a.png").touch()
        with pytest.raises(UserError, match=r"data can't read the data in .*: there is no .*transforms.*\.json\.$"):
            start(tmp_path, parser)

    def test_another_parsers_folder(self, start, blender_scene):
        with pytest.raises(UserError, match="looks like one for blender-data: name it at the end"):
            start(blender_scene(train=1), NerfstudioDataParserConfig())

    def test_missing_entry(self, start, blender_scene):
        folder = blender_scene(train=1, val=1)
        (folder / "transforms_train.json").write_text("{}")
        with pytest.raises(UserError, match=r"transforms_train\.json lists no frames"):
            start(folder, BlenderDataParserConfig())

    def test_no_json(self, start, blender_scene):
        folder = blender_scene(train=1, val=1)
        (folder / "transforms_train.json").write_text("{")
        with pytest.raises(UserError, match=r"transforms_train\.json can't be read: .*line 1"):
            start(folder, BlenderDataParserConfig())

    def test_missing_image(self, start, blender_scene):
        folder = blender_scene(train=3, val=1)
        (folder / "train_1.png").unlink()
        with pytest.raises(UserError, match=r"1 of the 3 images .* the first is .*train_1\.png"):
            start(folder, BlenderDataParserConfig())

    def test_missing_image_that_the_viewer_wants(self, start, blender_scene):
        folder = blender_scene(train=3, val=1)
        datamanager = start(folder, BlenderDataParserConfig())
        for path in folder.glob("*.png"):
            path.unlink()
        for dataset in (datamanager.train_dataset, datamanager.eval_dataset):
            with pytest.raises(UserError, match=r"There is no image .*_0\.png"):
                dataset[0]

    def test_one_image(self, start, nerfstudio_scene):
        with pytest.raises(UserError, match=r"The only camera of .* `nerfstudio-data --auto-scale-poses False`"):
            start(nerfstudio_scene(1), NerfstudioDataParserConfig())
        start(nerfstudio_scene(1), NerfstudioDataParserConfig(auto_scale_poses=False)).next_train(0)

    def test_images_need_not_be_there_to_view_a_trained_scene(self, start, blender_scene, tmp_path):
        folder = blender_scene(train=1, val=1, test=1)
        datamanager = start(folder, BlenderDataParserConfig(), test_mode="inference")
        assert len(datamanager.train_dataset) == 1


class TestExplainedDataErrors:
    def test_leaves_other_errors_alone(self, tmp_path):
        with pytest.raises(ArithmeticError, match="a bug"), explained_data_errors(tmp_path, "blender-data"):
            raise ArithmeticError("a bug")

    def test_a_bug_outside_of_reading_is_not_the_users(self, start, blender_scene, monkeypatch):
        def broken(*args, **kwargs):
            raise KeyError("a bug")

        monkeypatch.setattr(ChecksData, "create_train_dataset", broken)
        with pytest.raises(KeyError, match="a bug"):
            start(blender_scene(train=1, val=1), BlenderDataParserConfig())

    def test_every_parsers_and_data_sets_errors_are_explained(self, start, blender_scene, monkeypatch):
        def broken(*args, **kwargs):
            raise TypeError("not what was expected")

        datamanager = start(blender_scene(train=1, val=1), BlenderDataParserConfig())
        monkeypatch.setattr(type(datamanager.train_dataset), "get_metadata", broken)
        with pytest.raises(UserError, match=r"blender-data can't read .*not what was expected"):
            datamanager.train_dataset[0]
        monkeypatch.setattr(type(datamanager.dataparser), "_generate_dataparser_outputs", broken)
        with pytest.raises(UserError, match=r"blender-data can't read .*not what was expected"):
            start(blender_scene(train=1, val=1), BlenderDataParserConfig())

    def test_a_question_that_nobody_answers(self, tmp_path):
        words = r"colmap can't read .* there is no terminal"
        with pytest.raises(UserError, match=words), explained_data_errors(tmp_path, "colmap"):
            raise EOFError

    def test_keeps_the_cause(self, tmp_path):
        with pytest.raises(UserError) as caught, explained_data_errors(tmp_path, "blender-data"):
            raise OSError("broken image")
        assert isinstance(caught.value.__cause__, OSError)
        assert str(caught.value) == f"blender-data can't read the data in {tmp_path}: broken image."


def test_parsers_are_named_as_on_the_command_line():
    assert parser_name(BlenderDataParserConfig(scale_factor=2.0)) == "blender-data"
    assert parser_name(NerfstudioDataParserConfig()) == "nerfstudio-data"
    assert parser_name(object()) == "object"


@pytest.mark.parametrize("mode", ["val", "test", "inference"])
@pytest.mark.parametrize(
    "parser",
    [
        NerfstudioDataParserConfig(**HALF),
        AutoDataParserConfig(downscale_factor=2, nerfstudio=NerfstudioDataParserConfig(**HALF)),
    ],
)
def test_a_setup_leaves_the_configuration_as_it_is(nerfstudio_scene, start_from, parser, mode):
    folder = nerfstudio_scene(6)
    _halve(folder)
    config = start_from(folder, deepcopy(parser))
    config.data, config.dataparser.data = Path(folder), Path(folder)  # nerfstudio makes them one, and that is all
    before = yaml.dump(config)
    config.setup(device="cpu", test_mode=mode)
    assert yaml.dump(config) == before
    # As `ns-render dataset` does after it: what the run was trained on has half the size.
    second = config.setup(device="cpu", test_mode="test")
    assert second.train_dataset.get_image_float32(0).shape == (HEIGHT // 2, WIDTH // 2, 3)
    assert int(second.train_dataset.cameras.width[0]) == WIDTH // 2


def _halve(folder):
    (folder / "images_2").mkdir()
    for path in folder.glob("image_*.png"):
        with Image.open(path) as image:
            image.resize((WIDTH // 2, HEIGHT // 2)).save(folder / "images_2" / path.name)
