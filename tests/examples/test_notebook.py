"""The notebook in examples/: its file as it is kept, its commands, and all of its cells run with small numbers."""

import json
import os
import shlex
import sys
import sysconfig
from pathlib import Path

import nbformat
import pytest
from documented_commands import ROOT, Command, check
from nbclient import NotebookClient

PATH = ROOT / "examples" / "raygauss.ipynb"
SMALL = {"SIDE": "16", "VIEWS": "4", "TEST_VIEWS": "2", "STEPS": "4", "FRAMES": "2"}


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_file_is_valid_and_has_no_outputs(notebook):
    nbformat.validate(notebook)
    assert PATH.read_text(encoding="utf-8") == nbformat.writes(notebook, indent=1) + "\n"
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code(notebook))


class Pretended:
    """In place of the notebook's `run`: keeps the words, and leaves files where the commands would."""

    def __init__(self):
        self.asked = []

    def __call__(self, *words):
        words = [str(word) for word in words]
        self.asked.append(words)
        if words[0] == "ns-eval":
            scores = Path(words[words.index("--output-path") + 1])
            scores.write_text(json.dumps({"results": {"psnr": 21.5, "ssim": 0.75}}))
        elif words[0] == "ns-render":
            Path(words[words.index("--output-path") + 1]).write_bytes(b"video")


def test_its_commands_exist_with_their_options(notebook, monkeypatch, tmp_path, capsys):
    for name, value in (SMALL | {"OUTPUT": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(PATH.parent)
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "ns-train").touch(mode=0o755)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(scripts))
    settings, install, *others = code(notebook)
    names, pretended = {}, Pretended()
    exec(settings.source, names)
    exec(install.source, names)  # the package is there: nothing is installed
    names["run"] = pretended
    for cell in others:
        exec(cell.source, names)

    assert "PSNR 21.50 dB, SSIM 0.750" in capsys.readouterr().out
    scene, train, evaluate, render = pretended.asked
    assert [words[0] for words in (train, evaluate, render)] == ["ns-train", "ns-eval", "ns-render"]
    assert scene[:2] == [sys.executable, str(ROOT / "examples" / "make_scene.py")]
    scene[:2] = ["python", "examples/make_scene.py"]
    for words in pretended.asked:
        check(Command("examples/raygauss.ipynb", 0, shlex.join(words), True))


@pytest.mark.parametrize("words", [("-c", "raise SystemExit(3)"), ("-c", "print('heard')")])
def test_a_command_that_fails_stops_the_notebook(notebook, monkeypatch, capsys, words):
    monkeypatch.chdir(PATH.parent)
    names = {"os": os, "REPOSITORY": ""}
    monkeypatch.setattr("shutil.which", lambda name, path=None: name)
    exec(code(notebook)[1].source, names)
    if "print" in words[1]:
        names["run"](sys.executable, *words)
        assert capsys.readouterr().out.splitlines()[-1] == "heard"
    else:
        with pytest.raises(RuntimeError, match="failed with exit code 3"):
            names["run"](sys.executable, *words)


def test_without_the_repository_its_address_is_asked_for(notebook, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="Set REPOSITORY in the first cell"):
        exec(code(notebook)[1].source, {"os": os, "REPOSITORY": ""})


@pytest.mark.slow
def test_all_cells(notebook, monkeypatch, tmp_path):
    for name, value in (SMALL | {"OUTPUT": str(tmp_path / "output")}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": PATH.parent}}
    ).execute()

    shown = [output.data for cell in code(notebook) for output in cell.outputs if output.output_type == "display_data"]
    assert [next(kind for kind in data if kind != "text/plain") for data in shown] == [
        *["image/png"] * 5,  # three images of the scene, two test views
        "text/html",  # the video, in the page itself
    ]
    assert "data:video/mp4;base64," in shown[-1]["text/html"]
    said = "".join(output.text for cell in code(notebook) for output in cell.outputs if "text" in output)
    assert "Training Finished: 4 steps" in said
    assert "dB, SSIM" in said
