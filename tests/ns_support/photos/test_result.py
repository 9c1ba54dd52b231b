"""Where results are kept, and when they are still valid."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from ns_support.errors import UserError
from ns_support.photos import result as results
from ns_support.photos.cameras import Shot
from ns_support.photos.listing import RECORD
from ns_support.photos.result import (
    Record,
    differences,
    empty,
    file_states,
    finish,
    is_whole,
    locked,
    read_record,
    result_folder,
    work_folder,
)


def record(**changes):
    settings = {"source": "photos", "settings": {"max_size": 1600}, "files": {}, **changes}
    return Record(**settings)


def write_whole(folder, **changes):
    """A finished result, as far as anybody looks at it."""
    for below in ("images", "sparse/0"):
        (folder / below).mkdir(parents=True, exist_ok=True)
    (folder / "sparse/0/cameras.bin").touch()
    summary = {"registered": ["a.jpg"], "missing": [], "points": 1, "error": 0.1}
    record(shots=[Shot("a.jpg", "a.jpg", 4, 3)], result=summary, **changes).write(folder)
    return folder


class TestRecord:
    def test_is_read_as_it_was_written(self, tmp_path):
        (tmp_path / "a.jpg").write_bytes(b"abc")
        wanted = record(
            files=file_states({"a.jpg": tmp_path / "a.jpg"}), shots=[Shot("a", "a", 4, 3, "phone", 2.5)], broken=["b."]
        )
        wanted.write(tmp_path)
        assert read_record(tmp_path) == wanted

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1}', '{"version": 1, "files": 3}'])
    def test_a_damaged_one_counts_as_none(self, tmp_path, text):
        (tmp_path / RECORD).write_text(text)
        assert read_record(tmp_path) is None

    def test_one_of_another_version_counts_as_none(self, tmp_path):
        record().write(tmp_path)
        assert read_record(tmp_path) is not None
        entries = json.loads((tmp_path / RECORD).read_text())
        (tmp_path / RECORD).write_text(json.dumps(entries | {"version": 99}))
        assert read_record(tmp_path) is None

    @pytest.mark.parametrize("lacking", [RECORD, "sparse/0/cameras.bin", "images"])
    def test_a_result_is_whole_with_all_its_parts(self, tmp_path, lacking):
        folder = write_whole(tmp_path / "r")
        assert is_whole(folder)
        path = folder / lacking
        path.rmdir() if path.is_dir() else path.unlink()
        assert not is_whole(folder)

    def test_a_result_without_poses_is_not_whole(self, tmp_path):
        folder = write_whole(tmp_path / "r")
        record().write(folder)
        assert not is_whole(folder)


class TestFiles:
    @pytest.fixture
    def files(self, tmp_path):
        paths = {name: tmp_path / name for name in ("a.jpg", "b.jpg", "c.jpg")}
        for name, path in paths.items():
            path.write_text(name)
        return paths

    def test_the_same(self, files):
        before = file_states(files)
        assert differences(before, file_states(files, before)) == ""

    def test_a_new_time_alone_is_no_change(self, files):
        before = file_states(files)
        os.utime(files["a.jpg"], (1, 1))
        now = file_states(files, before)
        assert now["a.jpg"].modified == 10**9
        assert differences(before, now) == ""

    def test_known_contents_are_not_read_again(self, files, monkeypatch):
        before = file_states(files)
        monkeypatch.setattr(results, "_digest", lambda path: pytest.fail(f"{path} is read again"))
        assert file_states(files, before) == before

    def test_new_gone_and_changed_ones_are_named(self, files, tmp_path):
        before = file_states(files)
        files["a.jpg"].write_text("A.jpg")  # of the same length
        os.utime(files["a.jpg"], (1, 1))
        del files["b.jpg"], files["c.jpg"]
        files["d.jpg"] = tmp_path / "d.jpg"
        files["d.jpg"].touch()
        assert (
            differences(before, file_states(files, before)) == "1 new (d.jpg), 2 gone (b.jpg, ...), 1 changed (a.jpg)"
        )

    def test_one_that_can_not_be_read(self, tmp_path):
        with pytest.raises(UserError, match=r"nowhere.jpg can't be read: No such file"):
            file_states({"a": tmp_path / "nowhere.jpg"})


class TestPlace:
    def test_beside_the_source(self, tmp_path):
        (tmp_path / "photos").mkdir()
        (tmp_path / "clip.mp4").touch()
        assert result_folder(tmp_path / "photos", None, Path("out")) == tmp_path / "photos-colmap"
        assert result_folder(tmp_path / "clip.mp4", None, Path("out")) == tmp_path / "clip-colmap"

    def test_of_a_folder_with_a_dot_in_its_name(self, tmp_path):
        (tmp_path / "2024.05").mkdir()
        assert result_folder(tmp_path / "2024.05", None, Path("out")).name == "2024.05-colmap"

    @pytest.mark.parametrize("name", [".", "../photos", "./"])
    def test_of_a_relative_path(self, tmp_path, monkeypatch, name):
        (tmp_path / "photos").mkdir()
        monkeypatch.chdir(tmp_path / "photos")
        assert result_folder(Path(name), None, Path("out")).resolve() == tmp_path / "photos-colmap"

    def test_chosen(self, tmp_path):
        assert result_folder(tmp_path / "photos", tmp_path / "there", Path("out")) == tmp_path / "there"

    def test_elsewhere_if_it_can_not_be_written(self, tmp_path, monkeypatch):
        (tmp_path / "photos").mkdir()
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        assert result_folder(tmp_path / "photos", None, tmp_path / "out") == tmp_path / "out/photos-colmap"
        write_whole(tmp_path / "photos-colmap")  # which can still be read
        assert result_folder(tmp_path / "photos", None, tmp_path / "out") == tmp_path / "photos-colmap"

    def test_what_is_elsewhere_already_is_found(self, tmp_path):
        (tmp_path / "photos").mkdir()
        write_whole(tmp_path / "out/photos-colmap")
        assert result_folder(tmp_path / "photos", None, tmp_path / "out") == tmp_path / "out/photos-colmap"


class TestWork:
    def test_a_finished_folder_takes_the_results_place(self, tmp_path):
        result = write_whole(tmp_path / "r")
        (result / "old").touch()
        with locked(result, "--result") as work:
            assert work == work_folder(result)
            write_whole(work)
            finish(work, result)
        assert is_whole(result)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["r"]
        assert sorted(path.name for path in result.iterdir()) == ["images", RECORD, "sparse"]

    def test_an_unfinished_folder_stays(self, tmp_path):
        with locked(tmp_path / "r", "--result") as work:
            record().write(work)
        assert read_record(work) == record()
        assert not (tmp_path / "r").exists()

    def test_an_empty_one_does_not(self, tmp_path):
        with locked(tmp_path / "r", "--result"):
            pass
        assert list(tmp_path.iterdir()) == []

    def test_is_emptied_of_other_photographs(self, tmp_path):
        with locked(tmp_path / "r", "--result") as work:
            record().write(work)
            (work / "images").mkdir()
            (work / "images/a.jpg").touch()
            empty(work)
            assert [path.name for path in work.iterdir()] == ["lock"]

    def test_somebody_elses_folder_is_left_alone(self, tmp_path):
        (tmp_path / "r").mkdir()
        with locked(tmp_path / "r", "--result"):
            pass
        (tmp_path / "r/model.txt").write_text("mine")
        sentence = r"r, where the poses would go, exists and was not made by this package.* with --result\."
        with pytest.raises(UserError, match=sentence), locked(tmp_path / "r", "--result"):
            pass
        assert (tmp_path / "r/model.txt").read_text() == "mine"

    def test_a_file_in_the_way(self, tmp_path):
        (tmp_path / "r.part").touch()
        sentence = r"r.part can't be written.* Name another folder with --result\."
        with pytest.raises(UserError, match=sentence), locked(tmp_path / "r", "--result"):
            pass

    def test_another_process_waits(self, tmp_path):
        context = multiprocessing.get_context("fork")
        other = context.Process(target=_finish_late, args=(tmp_path,))
        other.start()
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        with locked(tmp_path / "r", "--result") as work:
            assert is_whole(tmp_path / "r")
            assert {path.name for path in work.iterdir()} == {"lock"}
        other.join()
        assert other.exitcode == 0
        assert not work.exists()


def _finish_late(folder):
    with locked(folder / "r", "--result") as work:
        write_whole(work)
        (folder / "begun").touch()
        time.sleep(0.5)
        finish(work, folder / "r")
