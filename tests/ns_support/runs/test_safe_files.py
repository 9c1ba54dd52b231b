import errno
import os
import signal
import subprocess
import sys

import pytest

from ns_support.errors import UserError
from ns_support.runs.safe_files import remove_drafts, replaced


def test_a_file_appears_once_it_is_whole(tmp_path):
    path = tmp_path / "new" / "scene.ply"
    with replaced(path) as draft:
        draft.write_text("whole")
        assert not path.exists()
        assert draft.suffix != ".ply"
    assert path.read_text() == "whole"
    assert [p.name for p in path.parent.iterdir()] == ["scene.ply"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken"), SystemExit(1)])
def test_an_interrupted_write_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "scene.ply"
    path.write_text("before")

    def write():
        with replaced(path) as draft:
            draft.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_a_sentence(tmp_path):
    path = tmp_path / "scene.ply"
    path.write_text("before")
    sentence = r"scene\.ply can't be written: No space left on device; [\d,]+ MiB free"
    with pytest.raises(UserError, match=sentence), replaced(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_text() == "before"


def test_a_file_in_place_of_a_folder_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't be written: .*file is not a folder"), replaced(tmp_path / "file" / "x"):
        pass


def test_a_folder_in_place_of_the_file_is_a_sentence(tmp_path):
    (tmp_path / "scene.ply").mkdir()
    with pytest.raises(UserError, match=r"can't be written: Is a directory"), replaced(tmp_path / "scene.ply") as draft:
        draft.write_text("whole")


def test_drafts_of_dead_processes_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    abandoned, own, other = (tmp_path / name for name in (f".a.{dead.pid}.part", f".a.{os.getpid()}.part", ".b.part"))
    for path in (abandoned, own, other):
        path.write_text("")
    remove_drafts(tmp_path)
    assert not abandoned.exists()
    assert own.exists()
    assert other.exists()


def test_a_draft_that_is_being_written_stays_and_an_old_one_goes(tmp_path):
    """By its lock and not by its number, which is another process's on another machine or in a container."""
    path = tmp_path / "a.ckpt"
    with replaced(path) as draft:
        draft.write_text("half")
        os.utime(draft, (1, 1))
        remove_drafts(tmp_path)
        assert draft.exists()
    assert path.read_text() == "half"
    left_over = tmp_path / f".a.ckpt.{os.getpid()}.part"
    left_over.write_text("half")
    os.utime(left_over, (1, 1))
    remove_drafts(tmp_path)
    assert not left_over.exists()


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_writer_leaves_nothing_that_stays(tmp_path, kill):
    path = tmp_path / "a.ckpt"
    path.write_text("before")
    words = (
        "import sys, time; from pathlib import Path; from ns_support.runs.safe_files import replaced\n"
        "with replaced(Path(sys.argv[1])) as draft:\n"
        "    draft.write_text('half'); print('begun', flush=True); time.sleep(600)"
    )
    writer = subprocess.Popen([sys.executable, "-c", words, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "begun\n"
    remove_drafts(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # it lives
    writer.send_signal(kill)
    writer.wait(60)
    assert len(list(tmp_path.iterdir())) == 2
    remove_drafts(tmp_path)
    assert path.read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1
