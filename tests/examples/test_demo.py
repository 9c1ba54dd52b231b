import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from nerfstudio.cameras.camera_paths import get_path_from_json
from PIL import Image


@pytest.fixture
def demo(example, monkeypatch, tmp_path):
    module = example("demo")
    monkeypatch.setattr(module, "OUTPUT", tmp_path)
    return module


def write_eval_images(folder, count, size=8):
    """What `ns-eval` leaves: red truth, green prediction, black error, and depth as bright as the view's number."""
    folder.mkdir(exist_ok=True)
    triple = np.zeros((size, 3 * size, 3), np.uint8)
    triple[:, :size, 0] = triple[:, size : 2 * size, 1] = 255
    for i in range(count):
        Image.fromarray(triple).save(folder / f"eval_img_{i:04d}.png")
        Image.fromarray(np.full((size, size, 3), i, np.uint8)).save(folder / f"eval_depth_{i:04d}.png")


class TestPicture:
    def middle(self, demo, sheet, row, column):
        step = demo.TILE + demo.GAP
        at = demo.GAP + column * step + demo.TILE // 2, demo.CAPTION + row * step + demo.TILE // 2
        return sheet.getpixel(at)

    def test_columns_and_rows(self, demo, tmp_path):
        write_eval_images(tmp_path / "images", 20)
        sheet = demo.picture(tmp_path / "images", ["ground truth", "prediction", "depth"], views=3)
        for row, view in enumerate((0, 6, 13)):
            found = [self.middle(demo, sheet, row, column) for column in range(3)]
            assert found == [(255, 0, 0), (0, 255, 0), (view, view, view)]
        assert sheet.size == (3 * demo.TILE + 4 * demo.GAP, demo.CAPTION + 3 * (demo.TILE + demo.GAP))

    def test_fewer_views_than_rows(self, demo, tmp_path):
        write_eval_images(tmp_path / "images", 1)
        sheet = demo.picture(tmp_path / "images", ["ground truth", "prediction", "depth"], views=3)
        assert sheet.height == demo.CAPTION + demo.TILE + demo.GAP

    def test_no_images(self, demo, tmp_path):
        with pytest.raises(SystemExit, match="found no images of the test views"):
            demo.picture(tmp_path, ["", "", ""])


class TestRun:
    def test_a_missing_command_is_named(self, demo):
        with pytest.raises(SystemExit, match="needs nerfstudio's command ns-nonsense"):
            demo.run("ns-nonsense")

    @pytest.mark.parametrize("code", [0, 3])
    def test_the_exit_code_decides(self, demo, monkeypatch, code):
        monkeypatch.setattr(demo.shutil, "which", lambda command, path=None: sys.executable)
        if code == 0:
            demo.run("ns-eval", "-c", "pass")
        else:
            with pytest.raises(SystemExit, match="stopped because ns-eval failed with exit code 3"):
                demo.run("ns-eval", "-c", f"raise SystemExit({code})")

    def test_nerfstudios_import_warnings_are_silent_and_others_are_not(self, demo, monkeypatch, capfd):
        monkeypatch.setattr(demo.shutil, "which", lambda command, path=None: sys.executable)
        lines = [f"warnings.warn({text + ' by now'!r}, FutureWarning)" for text in demo._NERFSTUDIOS_WARNINGS]
        demo.run("ns-train", "-c", "; ".join(["import warnings", *lines, "warnings.warn('heard')"]))
        heard = capfd.readouterr().err
        assert "heard" in heard
        assert "by now" not in heard


def test_the_whole_way(demo, monkeypatch, capsys, tmp_path):
    ran = []

    def pretend(command, *arguments):
        words = [str(argument) for argument in arguments]
        ran.append([command, *words])
        if command == "ns-train":
            assert len(list((tmp_path / "scene" / "train").glob("*.png"))) == 60
            (tmp_path / "training").mkdir()
        elif command == "ns-eval":
            write_eval_images(tmp_path / "eval_images", 20)
            (tmp_path / "eval.json").write_text(json.dumps({"results": {"psnr": 31.234, "ssim": 0.95}}))

    monkeypatch.setattr(demo, "run", pretend)
    (tmp_path / "eval_images").mkdir()
    (tmp_path / "eval_images" / "stale.png").touch()
    demo.demo(method="some-method", steps=7, options="--pipeline.model.a 1", resolution=8)

    (train, evaluate, render), out = ran, capsys.readouterr().out.splitlines()
    assert train[:4] == ["ns-train", "some-method", "--data", str(tmp_path / "scene")]
    assert train[-1] == "blender-data"
    assert "--max-num-iterations 7" in " ".join(train)
    assert "--pipeline.model.a 1" in " ".join(train)
    assert evaluate[:3] == ["ns-eval", "--load-config", str(tmp_path / "training/demo/some-method/run/config.yml")]
    assert not (tmp_path / "eval_images" / "stale.png").exists()
    assert "some-method on the test views: 31.23 dB PSNR, 0.950 SSIM" in out
    assert out[-3].split() == ["The", "test", "views:", str(tmp_path / "picture.png")]
    assert Image.open(out[-3].split()[-1]).mode == "RGB"
    assert render[:4] == ["ns-render", "camera-path", "--load-config", evaluate[2]]
    assert out[-2].split()[-1] == render[render.index("--output-path") + 1] == str(tmp_path / "turntable.mp4")
    assert out[-1].endswith(f"ns-viewer --load-config {evaluate[2]}")


def test_the_turntable_looks_at_the_middle(demo, tmp_path):
    demo.turntable(tmp_path / "path.json", 40)
    path = json.loads((tmp_path / "path.json").read_text())
    cameras = get_path_from_json(path)
    assert cameras.size == demo.TURN
    assert int(cameras.width[0]) == int(cameras.height[0]) == 40
    assert path["seconds"] <= 5
    for pose in cameras.camera_to_worlds.double():
        torch.testing.assert_close(pose[:, :3] @ pose[:, :3].T, torch.eye(3).double(), atol=1e-6, rtol=0)
        assert float(torch.linalg.det(pose[:, :3])) > 0
        # The camera looks along -z of its own.
        ahead = -pose[:, 2] * pose[:, 3].norm()
        torch.testing.assert_close(pose[:, 3] + ahead, torch.zeros(3).double(), atol=1e-5, rtol=0)


def test_help_works_from_anywhere(demo, tmp_path):
    done = subprocess.run(
        [sys.executable, demo.__file__, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "--steps" in done.stdout
