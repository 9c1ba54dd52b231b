import os
import pickle
import resource
import zipfile

import pytest
import torch

from ns_support.errors import UserError
from ns_support.runs.saved_runs import checkpoints_in, find_checkpoint, is_whole, read_checkpoint, write_checkpoint


def state(step, size=20_000):
    return {"step": step, "pipeline": {"weights": torch.arange(float(size))}, "optimizers": {}}


@pytest.fixture
def run(tmp_path):
    """A run's folder with whole checkpoints of the steps 9 and 19."""
    folder = tmp_path / "run" / "nerfstudio_models"
    for step in (9, 19):
        write_checkpoint(state(step), folder / f"step-{step:09d}.ckpt", only_latest=False)
    return folder.parent


def newest(run):
    return run / "nerfstudio_models" / "step-000000019.ckpt"


def cut(path):
    path.write_bytes(path.read_bytes()[:-2000])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


DAMAGE = [cut, flip, empty]


@pytest.mark.parametrize("name", ["", "nerfstudio_models"])
def test_a_runs_folder_and_that_of_its_checkpoints_are_the_same(run, name):
    assert find_checkpoint(run / name) == newest(run)
    assert find_checkpoint(run / name, step=9).name == "step-000000009.ckpt"


def test_other_files_are_passed_over(run):
    for name in (".DS_Store", "notes.txt", "best.ckpt", "step-000000099.ckpt.part"):
        (run / "nerfstudio_models" / name).write_text("")
    assert [c.step for c in checkpoints_in(run / "nerfstudio_models")] == [19, 9]
    assert find_checkpoint(run) == newest(run)


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_newest_whole_one_is_found_and_the_damaged_one_named(run, damage, capsys):
    damage(newest(run))
    assert not is_whole(newest(run))
    assert find_checkpoint(run).name == "step-000000009.ckpt"
    assert "step-000000019.ckpt is damaged" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_that_is_asked_for_is_refused(run, damage):
    damage(newest(run))
    with pytest.raises(UserError, match=r"is damaged: it is cut off or was altered\. That of step 9 is whole"):
        find_checkpoint(run, step=19)
    with pytest.raises(UserError, match="is damaged"):
        read_checkpoint(newest(run))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda run: run / "nowhere", "does not exist"),
        (newest, "is a file; name the folder of a run"),
        (lambda run: run.parent, r"There is no checkpoint \(step-\*\.ckpt\) in"),
    ],
    ids=["missing", "file", "empty"],
)
def test_a_wrong_folder_is_a_sentence(run, change, sentence):
    with pytest.raises(UserError, match=sentence):
        find_checkpoint(change(run))


def test_an_unknown_step_is_a_sentence(run):
    with pytest.raises(UserError, match=r"There is no checkpoint of step 5 in .*: there is 19, 9"):
        find_checkpoint(run, step=5)


def test_what_is_written_is_read(run):
    read = read_checkpoint(newest(run))
    assert torch.equal(read["pipeline"]["weights"], torch.arange(20_000.0))


def test_older_ones_go_once_the_new_one_is_whole(run):
    write_checkpoint(state(29), run / "nerfstudio_models" / "step-000000029.ckpt", only_latest=True)
    assert [c.step for c in checkpoints_in(run / "nerfstudio_models")] == [29]
    assert sorted(p.name for p in run.iterdir()) == ["nerfstudio_models"]


def test_a_full_disk_is_a_sentence_and_older_ones_stay(run):
    """The system's limit on a file's size stands in for the disk's: both are reported alike."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"step-000000029\.ckpt can't be written: File too large"):
            write_checkpoint(state(29), run / "nerfstudio_models" / "step-000000029.ckpt", only_latest=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert find_checkpoint(run) == newest(run)
    assert sorted(p.name for p in run.iterdir()) == ["nerfstudio_models"]


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_checkpoint_executes_nothing(tmp_path):
    path, trace = tmp_path / "step-000000001.ckpt", tmp_path / "executed"
    torch.save({"step": 1, "pipeline": Harmful(str(trace))}, path)
    with pytest.raises(UserError, match="can't be loaded as a checkpoint"):
        read_checkpoint(path)
    assert not trace.exists()


def test_other_archives_and_pickles_are_no_checkpoints(tmp_path):
    path = tmp_path / "step-000000001.ckpt"
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="is no checkpoint of a nerfstudio training: it lacks step, pipeline"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps({"step": 1}))
    with pytest.raises(UserError, match="is damaged"):
        read_checkpoint(path)
    with pytest.raises(UserError, match="is a folder"):
        read_checkpoint(tmp_path)


def test_a_tensor_larger_than_the_file_is_refused(tmp_path):
    """One number that is repeated 10^12 times takes no room in the file, and terabytes in a model."""
    path = tmp_path / "step-000000001.ckpt"
    torch.save({"step": 1, "pipeline": {"means": torch.zeros(1).expand(10**12)}}, path)
    with pytest.raises(UserError, match=r"has a tensor of the shape \[1000000000000\], larger than the file"):
        read_checkpoint(path)


def test_an_archive_that_claims_more_than_it_holds_is_damaged(run, tmp_path):
    """A compressed part of a few kilobytes may stand for gigabytes."""
    path = tmp_path / "step-000000001.ckpt"
    with zipfile.ZipFile(newest(run)) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for part in whole.infolist():
            packed.writestr(part.filename, whole.read(part))
    assert not is_whole(path)
    with pytest.raises(UserError, match="is damaged"):
        read_checkpoint(path)
