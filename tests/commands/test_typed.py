"""Both methods through nerfstudio's own commands, as a user types them, on a scene made on the spot."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow


_NEAREST = ("--interpolation-steps", 1, "--pose-source", "train", "--render-nearest-camera", True)
METHODS = {
    "raygauss": ("--pipeline.model.num-random", 300, "--pipeline.model.step-size", 0.02),
    "instant-ngp-hardmine": ("--pipeline.target-num-samples", 1024, "--pipeline.model.log2-hashmap-size", 12),
    "instant-ngp-hardmine-bounded": ("--pipeline.target-num-samples", 1024, "--pipeline.model.log2-hashmap-size", 12),
}


RENDERED = ["raygauss", "instant-ngp-hardmine-bounded"]
"""Methods whose trained runs go through every command: the bounded one differs from the other in its defaults only."""
REFUSING = ["raygauss", "instant-ngp-hardmine"]


@pytest.fixture(scope="module", params=RENDERED)
def trained(request, scene, tmp_path_factory, run):
    """A run of a few steps whose data parser nobody named: (method, its config.yml, the folder it ran in)."""
    folder = tmp_path_factory.mktemp("run")
    words = ("--max-num-iterations", 4, "--vis", "tensorboard", "--timestamp", "now", *METHODS[request.param])
    run("ns-train", request.param, *words, "--data", scene, cwd=folder)
    return request.param, next(folder.rglob("config.yml")), folder


def test_smoke_eval_writes_metrics_and_pictures(trained, run):
    _, config, folder = trained
    words = ("--load-config", config, "--output-path", "eval.json", "--render-output-path", "pictures")
    run("ns-eval", *words, cwd=folder)
    results = json.loads((folder / "eval.json").read_text())["results"]
    assert results["psnr"] > 3
    assert {"psnr", "ssim"} <= results.keys()
    assert len(list((folder / "pictures").glob("eval_img_*.png"))) == 2


@pytest.mark.parametrize(
    "words",
    [
        ("dataset", "--split", "test", "--output-path", "views", "--rendered-output-names", "rgb", "depth"),
        ("interpolate", "--interpolation-steps", 2, "--output-format", "images", "--output-path", "path"),
        ("interpolate", "--interpolation-steps", 2, "--output-path", "path.mp4"),
        ("spiral", "--seconds", 0.2, "--output-path", "spiral.mp4"),
        ("interpolate", *_NEAREST, "--output-format", "images", "--output-path", "nearest"),
    ],
    ids=["dataset", "interpolate", "video", "spiral", "nearest"],
)
def test_render(trained, words, run):
    _, config, folder = trained
    run("ns-render", words[0], "--load-config", config, *words[1:], cwd=folder)
    output = folder / words[words.index("--output-path") + 1]
    written = [output] if output.suffix else [path for path in output.rglob("*.*") if path.is_file()]
    assert written
    assert all(path.stat().st_size > 100 for path in written)


def test_export_and_start_from_it(trained, scene, run):
    method, config, folder = trained
    for kind in ("raygauss", "splat", "points"):
        words = (sys.executable, "-m", "raygauss_ns.export", kind, "--load-config", config)
        code = 0 if method == "raygauss" else 1
        output = run(*words, cwd=folder, code=code)
        assert "Traceback" not in output
        if code:
            said = output.replace("\n", " ")
            assert "only those of raygauss can be exported. Take `ns-export pointcloud`" in said
            continue
        written = config.parent / f"{kind}.ply"
        assert written.stat().st_size > 1000
        if kind != "points":
            words = ("--max-num-iterations", 2, "--vis", "tensorboard", "--timestamp", kind, *METHODS[method])
            words += ("--pipeline.model.initial-ply", written)
            run("ns-train", method, *words, "--data", scene, "blender-data", cwd=folder)
            written.unlink()  # a trained scene does not need what it once started from
            again = next(path for path in folder.rglob("config.yml") if path.parent.name == kind)
            run("ns-eval", "--load-config", again, "--output-path", f"{kind}.json", cwd=folder)


@pytest.mark.parametrize("kind", ["pointcloud", "tsdf", "poisson"])
def test_nerfstudios_exporters(trained, kind, run):
    """Whatever a few steps have learned: a cloud within the scene, meshes with their textures."""
    pytest.importorskip("pymeshlab")
    try:
        import open3d
    except (ImportError, OSError) as error:  # libusb is not a package of Python's
        pytest.skip(str(error))
    method, config, folder = trained
    if kind == "tsdf" and method != "raygauss":
        pytest.skip("four steps make no surface; benchmarks/commands.py exports one after 200")
    texture = ("--num-pixels-per-side", 64, "--target-num-faces", 200)
    cloud = ("--num-points", 3000, "--num-rays-per-batch", 1024)
    words = {"pointcloud": cloud, "tsdf": ("--resolution", 24, "--downscale-factor", 1, *texture)}
    words["poisson"] = (*cloud, *texture)
    output = folder / kind
    run("ns-export", kind, "--load-config", config, "--output-dir", output, *words[kind], cwd=folder)
    if kind == "pointcloud":
        points = np.asarray(open3d.io.read_point_cloud(str(output / "point_cloud.ply")).points)
        assert len(points) > 2000
        assert np.abs(points).max() < 4  # the cameras' distance: what a ray hits lies before the other side
    else:
        mesh = open3d.io.read_triangle_mesh(str(output / f"{kind}_mesh.ply"))
        assert len(mesh.triangles) > 20
        assert np.asarray(Image.open(output / "material_0.png").convert("RGB")).std() > 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("steps", [100_000, 3], ids=["while training", "after the end"])
@pytest.mark.parametrize("method", ["raygauss", "instant-ngp-hardmine"])
def test_a_signal_ends_the_command_well(method, steps, number, scene, tmp_path, run):
    """With its viewer open, as by default: training is saved, and once it is over the command just ends."""
    words = ("ns-train", method, "--data", scene, "--max-num-iterations", steps, "--timestamp", "run", *METHODS[method])
    program = shutil.which(words[0], path=sysconfig.get_path("scripts"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        words = (program, *words[1:], "--viewer.websocket-port", free.getsockname()[1])
    log = tmp_path / "log.txt"
    with log.open("w") as file:
        running = subprocess.Popen([*map(str, words)], cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT)
        try:
            wanted = "Ctrl+C leaves" if steps == 3 else "Ctrl+C stops"
            end = time.monotonic() + 300
            while wanted not in " ".join(log.read_text().split()) and time.monotonic() < end:
                time.sleep(0.2)
            time.sleep(4.0)  # until the first step has begun
            running.send_signal(number)
            assert running.wait(120) == 0, log.read_text()
        finally:
            running.kill()
    output = " ".join(log.read_text().split())
    assert "Traceback" not in output
    assert ("Stopped after step" if steps > 3 else "Training Finished") in output
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    words = ("--max-num-iterations", 1, "--vis", "tensorboard", "--timestamp", "on", *METHODS[method])
    said = run("ns-train", method, *words, "--load-dir", checkpoint.parents[1], "--data", scene, cwd=tmp_path)
    assert f"Resuming at step {int(checkpoint.stem[5:]) + 1:,}, 1 more." in said


def test_resume_goes_on_where_it_stopped(trained, scene, run):
    method, config, folder = trained
    words = ("--max-num-iterations", 3, "--vis", "tensorboard", "--timestamp", "resumed", *METHODS[method])
    checkpoints = config.parent / "nerfstudio_models"
    output = run("ns-train", method, *words, "--load-dir", checkpoints, "--data", scene, "blender-data", cwd=folder)
    assert "Resuming at step 4, 3 more." in output
    names = [path.name for path in next(folder.rglob("resumed")).rglob("*.ckpt")]
    assert names == ["step-000000006.ckpt"]  # steps 0..3, then 4..6


@pytest.mark.parametrize("method", REFUSING)
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: folder / "nowhere", "does not exist"),
        (lambda folder: folder, "no image"),
    ],
    ids=["missing", "empty"],
)
def test_bad_data_ends_in_one_sentence(method, make, sentence, tmp_path, run):
    words = ("--vis", "tensorboard", "--data", make(tmp_path), "blender-data")
    output = run("ns-train", method, *words, cwd=tmp_path, code=1)
    assert re.search(sentence, output.replace("\n", " "))
    assert "Traceback" not in output


@pytest.mark.parametrize("method", REFUSING)
def test_a_single_photograph_ends_in_one_sentence(method, tmp_path, run):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    output = run("ns-train", method, "--vis", "tensorboard", "--data", tmp_path, cwd=tmp_path, code=1)
    assert "walk around it, and do not only turn on the spot" in output.replace("\n", " ")
    assert "Traceback" not in output


def test_bad_step_size_ends_in_one_sentence(scene, tmp_path, run):
    words = ("--vis", "tensorboard", "--pipeline.model.step-size", 0, "--data", scene, "blender-data")
    output = run("ns-train", "raygauss", *words, cwd=tmp_path, code=1)
    assert "--pipeline.model.step-size must be positive, got 0.0" in output
    assert "Traceback" not in output


def test_losing_every_gaussian_ends_in_one_sentence(scene, tmp_path, run):
    """Photographs of nothing but the background: whatever stands in the way of it fades."""
    nothing = tmp_path / "nothing"
    shutil.copytree(scene, nothing)
    for path in nothing.rglob("*.png"):
        Image.new("RGBA", (32, 32)).save(path)
    words = ("--optimizers.densities.optimizer.lr", 1, "--pipeline.model.prune-every", 5, "--vis", "tensorboard")
    words += ("--pipeline.model.num-random", 30, "--max-num-iterations", 300)
    output = run("ns-train", "raygauss", *words, "--data", nothing, "blender-data", cwd=tmp_path, code=1)
    assert "No Gaussian is left at step" in output
    assert "Traceback" not in output


def test_help_describes_the_methods(tmp_path, run):
    output = run("ns-train", "--help", cwd=tmp_path)
    for method in METHODS:
        assert method in output
