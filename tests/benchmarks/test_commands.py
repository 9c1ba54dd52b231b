"""The table of commands: how a command's result is checked, without nerfstudio."""

import json
import shutil
import sys

import pytest


@pytest.fixture(scope="module")
def commands(script):
    return script("commands")


@pytest.fixture(scope="module")
def calls(script):
    return script("ns_commands.calls")


@pytest.fixture
def judge(commands, calls, tmp_path, monkeypatch):
    """`judge(program, method)`: the row of a command that runs a Python program and must write out.txt."""
    monkeypatch.setattr(shutil, "which", lambda name, path=None: sys.executable)

    def judge(program, method="raygauss", refused=None):
        words, files = ["python", "-c", program], [tmp_path / "out.txt"]
        fake = calls.Command(lambda case: words, lambda case: files, refused)
        monkeypatch.setitem(commands.COMMANDS, "fake", fake)
        case = commands.Case("lego_200", method, tmp_path, tmp_path, 1, timeout=20.0)
        return commands.row_of("fake", case, {}, {str(tmp_path): "WORK"}, False)

    return judge


WRITES = "open('out.txt', 'w').write('x'); "


def test_pass_is_an_exit_code_of_0_and_files_that_are_not_empty(judge, tmp_path):
    row = judge(WRITES + "import os; print('written to', os.getcwd())")
    assert (row.status, row.printed) == ("pass", "written to WORK")
    assert judge("open('out.txt', 'w')").status == "failed: files are missing"
    (tmp_path / "out.txt").unlink()
    assert judge("print('done')").status == "failed: files are missing"


@pytest.mark.parametrize("method", ["raygauss", "instant-ngp-hardmine"])
def test_errors_fail(judge, method):
    assert judge(WRITES + "raise SystemExit(3)", method).status == "failed: exit code 3"
    assert judge(WRITES + "print('Traceback (most recent call last)')", method).status == "failed: exit code 0"


def test_an_error_passes_only_where_it_is_expected(judge):
    sentence = "raise SystemExit('that is\\n not possible')"
    assert judge(sentence, "instant-ngp-hardmine", "is not possible").status == "expected error"
    assert judge(sentence, "instant-ngp-hardmine", "something else").status.startswith("failed")
    assert judge(WRITES, "instant-ngp-hardmine", "is not possible").status.startswith("failed")
    assert judge(sentence, "raygauss", "is not possible").status == "failed: exit code 1"


def test_what_hangs_is_stopped(commands, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name, path=None: sys.executable)
    case = commands.Case("lego_200", "raygauss", tmp_path, tmp_path, 1, timeout=0.5)
    code, _ = commands.run(["python", "-c", "import time; time.sleep(60)"], case, {}, False, False)
    assert code == 124


def test_last_line_is_the_last_with_a_word(commands):
    output = "first\n\x1b[1m╭──────╮\n│ Saved to /some/where/a.ply │\n╰──────╯\x1b[0m\n 12 %\n\n"
    assert commands.last_line(output, {"/some/where": "WORK"}) == "Saved to WORK/a.ply"
    assert commands.last_line("Training Finished\nTrainer.train_iteration: 0.0123\n", {}) == "Training Finished"
    assert commands.last_line("", {}) == ""


def test_few_views_leaves_the_scene_as_it_is(commands, tmp_path):
    blender, photos = tmp_path / "blender", tmp_path / "photos"
    blender.mkdir()
    photos.mkdir()
    frames = [{"file_path": str(i)} for i in range(9)]
    for split in ("train", "val", "test"):
        (blender / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": 1.0, "frames": frames}))
    names = {f"{split}_filenames": [str(i) for i in range(9)] for split in ("train", "val", "test")}
    (photos / "transforms.json").write_text(json.dumps({"fl_x": 1.0, "frames": frames, **names}))
    before = {path: path.read_text() for path in tmp_path.rglob("*.json")}
    few = [commands.few_views(scene, tmp_path / f"few_{scene.name}", 4, 2) for scene in (blender, photos)]
    counts = [
        len(json.loads((few[0] / f"transforms_{s}.json").read_text())["frames"]) for s in ("train", "val", "test")
    ]
    content = json.loads((few[1] / "transforms.json").read_text())
    assert counts == [len(content[f"{s}_filenames"]) for s in ("train", "val", "test")] == [4, 2, 2]
    for folder in few:
        shutil.rmtree(folder)
    assert {path: path.read_text() for path in tmp_path.rglob("*.json")} == before


def test_page_counts_and_hides_nothing(commands):
    rows = [
        commands.Row("lego_200", "raygauss", "eval", "pass", 12.3, "saved | done", psnr=20.5),
        commands.Row("fox_270", "raygauss", "train", "failed: exit code 1", 1.0, "no"),
    ]
    facts = {"machine": "m", "steps": 5, "train_views": 4, "test_views": 2, "preloaded": False}
    page = commands.markdown(rows, facts)
    assert "1 of 2 commands passed" in page
    assert "| eval | raygauss | pass | 12 | PSNR 20.50 dB; `saved \\| done` |" in page
    assert "| train | raygauss | failed: exit code 1 | 1 | `no` |" in page
