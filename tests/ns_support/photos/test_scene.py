"""From a folder of photographs to a result, with a stand-in for COLMAP: what is made, kept, made again and refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ns_support.auto_data import AutoDataParserConfig
from ns_support.data.checks import check_data_folder, parser_name
from ns_support.errors import UserError
from ns_support.photos import scene
from ns_support.photos.export import PhotosExport
from ns_support.photos.result import is_whole, read_record
from ns_support.photos.scene import find_poses
from ns_support.photos.settings import PhotosConfig
from ns_support.photos.solving import Model


@pytest.fixture
def photos(tmp_path):
    """Six photographs of noise."""
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(noise.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    return folder


class Colmap:
    """Stands in for `solve`: its models have the photographs that are listed, by default all in one model."""

    def __init__(self):
        self.jobs = []
        self.models = None
        self.error = None

    def __call__(self, job):
        self.jobs.append(job)
        if self.error is not None:
            raise self.error
        found = []
        for number, names in enumerate([job.names] if self.models is None else self.models):
            folder = Path(job.folder) / "models" / str(number)
            folder.mkdir(parents=True)
            (folder / "cameras.bin").write_text(" ".join(names))
            found.append(Model(folder, names, 1234, 0.5))
        return found


@pytest.fixture
def colmap(monkeypatch):
    stand_in = Colmap()
    monkeypatch.setattr(scene, "solve", stand_in)
    return stand_in


def text(capsys):
    return " ".join(capsys.readouterr().out.split())


class TestMakes:
    def test_a_colmap_folder_beside_the_photographs(self, photos, colmap, capsys):
        before = {path: path.read_bytes() for path in photos.iterdir()}
        result = find_poses(photos, PhotosConfig())
        assert result == photos.with_name("photos-colmap")
        assert is_whole(result)
        assert sorted(path.name for path in (result / "images").iterdir()) == [f"{i}.jpg" for i in range(6)]
        assert (result / "sparse/0/cameras.bin").is_file()
        assert sorted(path.name for path in photos.parent.iterdir()) == ["photos", "photos-colmap"]
        assert {path: path.read_bytes() for path in photos.iterdir()} == before
        said = text(capsys)
        assert "6 photographs, one camera." in said
        assert "6 of 6 photographs have a pose; 1,234 points, 0.50 pixels off on average" in said

    def test_the_job_is_as_set(self, photos, colmap):
        find_poses(photos, PhotosConfig(camera_model="SIMPLE_RADIAL", max_size=300, max_features=700))
        (job,) = colmap.jobs
        assert (job.model, job.max_size, job.max_features) == ("SIMPLE_RADIAL", 300, 700)
        assert (job.video, job.masked, job.names) == (False, False, [f"{i}.jpg" for i in range(6)])
        assert Path(job.folder).is_absolute()
        assert [group["names"] for group in job.groups] == [job.names]

    def test_masks(self, photos, colmap):
        (photos / "masks").mkdir()
        Image.new("L", (40, 30), 255).save(photos / "masks/2.png")
        result = find_poses(photos, PhotosConfig())
        assert colmap.jobs[0].masked
        assert len(list((result / "masks").iterdir())) == 6
        parser = AutoDataParserConfig(data=photos).chosen(photos)
        assert parser.masks_path == Path("masks")

    def test_where_the_user_says(self, photos, colmap, tmp_path):
        assert find_poses(photos, PhotosConfig(result=tmp_path / "a/b")) == tmp_path / "a/b"
        assert is_whole(tmp_path / "a/b")

    def test_broken_photographs_are_left_out(self, photos, colmap, capsys):
        (photos / "3.jpg").write_bytes(b"")
        find_poses(photos, PhotosConfig())
        assert len(colmap.jobs[0].names) == 5
        assert "3.jpg can't be read: the file is empty" in text(capsys)

    def test_photographs_without_a_place_are_named(self, photos, colmap, capsys):
        colmap.models = [["0.jpg", "1.jpg", "2.jpg"]]
        result = find_poses(photos, PhotosConfig())
        sentence = "3 of 6 found no place among the others and are left out: 3.jpg, 4.jpg, 5.jpg."
        assert sentence in text(capsys)
        find_poses(photos, PhotosConfig())
        assert sentence in text(capsys)
        assert read_record(result).result["missing"] == ["3.jpg", "4.jpg", "5.jpg"]

    def test_of_several_models_the_first_is_taken(self, photos, colmap, capsys):
        colmap.models = [["0.jpg", "1.jpg", "2.jpg", "3.jpg"], ["4.jpg", "5.jpg"], ["0.jpg", "1.jpg"]]
        result = find_poses(photos, PhotosConfig())
        assert "fall into 2 parts that do not hang together, of 4, 2: the largest is used" in text(capsys)
        assert (result / "sparse/0/cameras.bin").read_text() == "0.jpg 1.jpg 2.jpg 3.jpg"
        assert sorted(path.name for path in (result / "sparse").iterdir()) == ["0", "1"]


class TestKeeps:
    def test_poses_are_found_once(self, photos, colmap, capsys):
        find_poses(photos, PhotosConfig())
        text(capsys)
        find_poses(photos, PhotosConfig())
        assert len(colmap.jobs) == 1
        assert "Poses of 6 photographs from" in text(capsys)

    def test_a_change_makes_them_anew(self, photos, colmap, capsys):
        find_poses(photos, PhotosConfig())
        shutil.copy(photos / "1.jpg", photos / "7.jpg")
        (photos / "0.jpg").unlink()
        result = find_poses(photos, PhotosConfig())
        assert "is not as it was when" in (said := text(capsys))
        assert "1 new (7.jpg), 1 gone (0.jpg). The poses are found again" in said
        assert sorted(path.name for path in (result / "images").iterdir()) == [f"{i}.jpg" for i in (1, 2, 3, 4, 5, 7)]
        assert len(colmap.jobs) == 2
        assert not (result / "old").exists()

    def test_other_settings_make_them_anew(self, photos, colmap, capsys):
        find_poses(photos, PhotosConfig())
        find_poses(photos, PhotosConfig(max_features=900))
        assert "max_features was 4096. The poses are found again" in text(capsys)
        assert len(colmap.jobs) == 2

    def test_an_old_result_stays_until_the_new_one_is_whole(self, photos, colmap):
        result = find_poses(photos, PhotosConfig())
        (photos / "0.jpg").unlink()
        colmap.error = UserError("crashed")
        with pytest.raises(UserError, match="crashed"):
            find_poses(photos, PhotosConfig())
        assert is_whole(result)
        assert len(read_record(result).files) == 6

    def test_an_interrupted_run_goes_on(self, photos, colmap, capsys, monkeypatch):
        colmap.error = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            find_poses(photos, PhotosConfig())
        assert "Stopped finding the poses of" in text(capsys)
        work = photos.with_name("photos-colmap.part")
        (work / "database.db").write_text("features")
        assert not photos.with_name("photos-colmap").exists()
        colmap.error = None
        monkeypatch.setattr(scene, "prepare", lambda *_, **__: pytest.fail("prepared again"))
        result = find_poses(photos, PhotosConfig())
        assert "Going on with the poses of" in text(capsys)
        assert (result / "database.db").read_text() == "features"

    def test_of_other_photographs_nothing_is_left(self, photos, colmap):
        colmap.error = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            find_poses(photos, PhotosConfig())
        (photos.with_name("photos-colmap.part") / "database.db").write_text("features")
        (photos / "0.jpg").unlink()
        colmap.error = None
        assert not (find_poses(photos, PhotosConfig()) / "database.db").exists()

    def test_a_result_of_another_source_is_refused(self, photos, colmap, tmp_path):
        find_poses(photos, PhotosConfig(result=tmp_path / "r"))
        shutil.copytree(photos, tmp_path / "others")
        with pytest.raises(
            UserError, match=r"r holds the poses of photos, not of others: .*auto-data --photos\.result"
        ):
            find_poses(tmp_path / "others", PhotosConfig(result=tmp_path / "r"))

    def test_the_command_is_given_another_folder_as_its_argument(self, photos, colmap, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/model.txt").touch()
        with pytest.raises(UserError, match=r"or name another folder with the argument OUTPUT\."):
            PhotosExport(source=photos, output=tmp_path / "mine").main()

    def test_the_command_refuses_a_raw_export_by_its_name(self, tmp_path):
        (tmp_path / "keyframes/cameras").mkdir(parents=True)
        (tmp_path / "0.jpg").touch()
        with pytest.raises(UserError, match="a raw export of Polycam"):
            PhotosExport(source=tmp_path, output=tmp_path / "new").main()

    def test_the_command_refuses_what_has_poses(self, tmp_path):
        (tmp_path / "transforms.json").write_text('{"fl_x": 10.0, "frames": []}')
        with pytest.raises(UserError, match="has poses already: `ns-train raygauss --data"):
            PhotosExport(source=tmp_path, output=tmp_path / "new").main()

    def test_a_trained_model_needs_the_poses_it_was_trained_with(self, photos, colmap):
        config = PhotosConfig(must_exist=True)
        with pytest.raises(UserError, match=r"poses of .* are not in .*photos-colmap, where training put them"):
            find_poses(photos, config)
        find_poses(photos, PhotosConfig())
        (photos / "0.jpg").unlink()  # which is no concern of the trained model
        find_poses(photos, config)
        assert len(colmap.jobs) == 1
        shutil.rmtree(photos)
        assert AutoDataParserConfig(photos=config).chosen(photos).data == photos.with_name("photos-colmap")


class TestRefuses:
    @pytest.mark.parametrize(
        ("names", "sentence"),
        [
            (["a.dng", "b.dng"], "holds no photographs and 2 raw files of a camera: develop those"),
            (["a.mov"], r"holds no photographs and a video: give the video itself, --data .*photos/a\.mov"),
            (["a.jpg", "b.jpg"], "holds 2 photographs: poses need at least 3, .* walk around it"),
            (["a.jpg"], "holds 1 photograph: poses need"),
        ],
    )
    def test_too_few(self, tmp_path, colmap, names, sentence):
        (tmp_path / "photos").mkdir()
        for name in names:
            (tmp_path / "photos" / name).touch()
        with pytest.raises(UserError, match=sentence):
            AutoDataParserConfig(data=tmp_path / "photos").setup()
        assert list(tmp_path.iterdir()) == [tmp_path / "photos"]

    def test_too_few_that_can_be_read(self, photos, colmap):
        for i in range(4):
            (photos / f"{i}.jpg").write_bytes(b"")
        with pytest.raises(UserError, match=r"Of the 6 photographs in .*, 2 can be read; .*0.jpg can't be read"):
            find_poses(photos, PhotosConfig())

    @pytest.mark.parametrize(
        ("models", "found"),
        [([], "none of the 6 photographs"), ([["0.jpg", "1.jpg"]], "only 2 of the 6 photographs")],
    )
    def test_photographs_that_do_not_hang_together(self, photos, colmap, models, found):
        colmap.models = models
        with pytest.raises(UserError, match=f"COLMAP found poses for {found} of .* do not overlap enough"):
            find_poses(photos, PhotosConfig())
        assert not photos.with_name("photos-colmap").exists()

    def test_a_small_part_is_not_the_scene(self, photos, colmap):
        for i in range(6, 16):
            shutil.copy(photos / "0.jpg", photos / f"{i}.jpg")
        colmap.models = [["0.jpg", "1.jpg", "2.jpg"]]
        with pytest.raises(UserError, match="only 3 of the 16 photographs"):
            find_poses(photos, PhotosConfig())

    @pytest.mark.parametrize(("name", "least"), [("max_frames", 3), ("max_size", 200), ("max_features", 500)])
    def test_settings_out_of_range(self, photos, colmap, name, least):
        option = rf"auto-data --photos\.{name.replace('_', '-')}"
        with pytest.raises(UserError, match=f"{option} must be at least {least}, got {least - 1}"):
            find_poses(photos, PhotosConfig(**{name: least - 1}))

    def test_a_folder_of_masks_for_a_video(self, tmp_path, colmap):
        (tmp_path / "clip.mp4").write_text("x")
        with pytest.raises(UserError, match="for a video, give one file"):
            find_poses(tmp_path / "clip.mp4", PhotosConfig(masks=tmp_path))


class TestRecognition:
    def test_photographs_and_videos(self, photos, tmp_path):
        config = AutoDataParserConfig()
        assert config.needs_poses(photos)
        (tmp_path / "clip.mp4").touch()
        assert config.needs_poses(tmp_path / "clip.mp4")
        assert parser_name(config, photos) == "colmap"
        check_data_folder(tmp_path / "clip.mp4")

    @pytest.mark.parametrize(
        "name", ["transforms.json", "transforms_train.json", "sparse/0/cameras.bin", "poses_bounds.npy", "database.db"]
    )
    def test_a_known_format_stays_what_it_is(self, photos, name):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_text('{"frames": [{"fl_x": 3.0}]}')
        assert not AutoDataParserConfig().needs_poses(photos)

    def test_a_file_that_may_hold_poses_is_mentioned(self, photos, colmap, capsys):
        (photos / "cameras.xml").touch()
        with pytest.raises(UserError):  # the stand-in's model
            AutoDataParserConfig(data=photos).setup().get_dataparser_outputs("train")
        assert "Poses that may be in" in (said := text(capsys))
        assert "perhaps an export of Metashape" in said
        assert len(colmap.jobs) == 1

    def test_a_folder_without_photographs(self, tmp_path):
        (tmp_path / "notes.txt").touch()
        with pytest.raises(UserError, match=r"format of the data .* is not known: .* and photographs"):
            AutoDataParserConfig(data=tmp_path).setup()

    def test_runs_of_earlier_versions_know_no_photographs(self):
        config = AutoDataParserConfig()
        state = {name: value for name, value in vars(config).items() if name != "photos"}
        again = AutoDataParserConfig.__new__(AutoDataParserConfig)
        again.__setstate__(state)
        assert again == config
