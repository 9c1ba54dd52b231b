"""Commands as the pages show them, really run: on a scene of a few pixels, with options at the end that make it short.

`tests/test_documented_commands.py` has their parsers accept every command; this is for those that users type first.
"""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from typing import NamedTuple

import pytest
from documented_commands import ROOT, commands
from photo_scenes import write_photographs

PAGES = ("README.md", *(f"docs/{name}.md" for name in ("export", "photos", "raycasting", "raygauss", "viewer")))
PROGRAMS = ("ns-train", "ns-eval", "ns-render", "ns-export", "ns-viewer", "raygauss-")
SMALL = {
    "raygauss": "--pipeline.model.num-random 300 --pipeline.model.step-size 0.02",
    "instant-ngp-hardmine": "--pipeline.model.log2-hashmap-size 10 --pipeline.model.grid-resolution 16 "
    "--pipeline.target-num-samples 1024",
}
SMALL["instant-ngp-hardmine-bounded"] = SMALL["instant-ngp-hardmine"]


class Plan(NamedTuple):
    """How a command is run, and what it leaves behind."""

    leaves: str = ""
    """Glob pattern of files, of which there must be some."""
    more: str = ""
    """Options that make it short."""
    needs: str = ""
    """A module that it needs."""


PLANS = {
    "ns-train raygauss --data DIR --max-num-iterations 1500": Plan("outputs/*/raygauss/*/nerfstudio_models/*.ckpt"),
    "ns-eval --load-config outputs/.../config.yml --output-path eval.json": Plan("eval.json"),
    "ns-render interpolate --load-config outputs/.../config.yml --interpolation-steps 2 --output-path video.mp4": Plan(
        "video.mp4"
    ),
    "raygauss-render camera-path --load-config outputs/... --camera-path-filename FILE --aperture 0.1 "
    "--focus-distance 2": Plan("renders/*.mp4", "--lens-samples 2"),
    "raygauss-render camera-path --load-config outputs/.../config.yml --camera-path-filename path.json --aperture 0.2 "
    "--focus-distance 2.15 --lens-samples 128": Plan("through.mp4", "--lens-samples 2 --output-path through.mp4"),
    "raygauss-export splat --load-config outputs/...": Plan("outputs/*/raygauss/*/splat.ply"),
    "raygauss-export raygauss --load-config outputs/...": Plan("outputs/*/raygauss/*/raygauss.ply"),
    "raygauss-export splat --load-config CONFIG --output-path scene.spz": Plan("scene.spz", needs="gsply"),
    "raygauss-export splat --fine-tune MINUTES": Plan("fitted.ply", "--load-config CONFIG --output-path fitted.ply"),
    "raygauss-export splat --fine-tune 5": Plan(
        "fitted.ply", "--fine-tune 0.05 --load-config CONFIG --output-path fitted.ply"
    ),
    "ns-train raygauss --pipeline.model.initial-ply FILE --data DIR": Plan(),
    "ns-train raygauss --load-dir outputs/... --data DIR": Plan(),
    "ns-train instant-ngp-hardmine-bounded --data DIR": Plan(),
    "ns-train instant-ngp-hardmine-bounded --data DIR --max-num-iterations 500 --viewer.quit-on-train-completion "
    "True": Plan("outputs/*/instant-ngp-hardmine-bounded/*/nerfstudio_models/*.ckpt"),
    "ns-train raygauss --data DIR --pipeline.datamanager.points-from outputs/.../config.yml": Plan(),
    "ns-viewer --load-config outputs/.../config.yml": Plan(),
    "raygauss-view splat.ply": Plan(),
    "raygauss-view outputs/.../config.yml": Plan(),
    "ns-train raygauss --data photos/": Plan("photos-colmap/sparse/0/cameras.bin"),
    "raygauss-photos photos/ scene/": Plan("scene/transforms.json"),
}
SAME = {
    "ns-train nerfacto --data scene/": "nerfstudio's own, which needs a GPU and downloads weights",
    "ns-train raygauss --data DIR": "as with a number of steps",
    "ns-train raygauss --data PHOTOS": "as photos/",
    "raygauss-photos fox scene": "as photos/",
    "ns-train instant-ngp-hardmine --data DIR": "as the bounded one",
    "ns-train raygauss --data clip.mp4": "tests/ns_support/photos/test_end_to_end.py has a video",
    "ns-train raygauss --data photos/ auto-data --photos.camera-model OPENCV_FISHEYE --photos.max-size 2400": "photos/",
    # In an environment with libusb: benchmarks/commands.py runs the exporters.
    "ns-export pointcloud --load-config CONFIG --output-dir OUT": "needs libusb",
    "ns-export poisson    --load-config CONFIG --output-dir OUT": "needs libusb",
    "ns-export tsdf       --load-config CONFIG --output-dir OUT --bounding-box-min -0.8 -1.3 -0.6 "
    "--bounding-box-max 0.8 1.3 1.2": "needs libusb",
}
STAY = ("ns-viewer", "raygauss-view")
"""Commands that go on until Ctrl+C."""


def shown():
    return [
        command.text
        for page in PAGES
        for command in commands((ROOT / page).read_text(), page)
        if command.text.startswith(PROGRAMS)
        and (command.whole or len(command.text.split()) > 2)
        and not command.text.endswith("--help")
    ]


def test_every_command_of_the_pages_is_planned():
    unknown = [text for text in shown() if text not in PLANS and text not in SAME]
    assert not unknown, "give each a plan in PLANS, or say in SAME what stands for it"
    assert {*PLANS, *SAME} <= set(shown()), "no longer on the pages"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, scene):
    """Where the commands run: a scene DIR, a camera path, photographs."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(scene, folder / "DIR")
    write_photographs(folder / "photos")
    pose = [1.0, 0, 0, 0, 0, 0, -1, -3.0, 0, 1, 0, 0.5, 0, 0, 0, 1]
    views = [{"camera_to_world": pose, "fov": 40.0, "aspect": 1.0}] * 2
    size = {"camera_type": "perspective", "render_height": 32, "render_width": 32, "fps": 2, "seconds": 1.0}
    (folder / "path.json").write_text(json.dumps({**size, "camera_path": views}))
    return folder


def real_words(text, folder):
    """A documented command with files that exist for its placeholders, short; the run is the first of `raygauss`."""
    plan = PLANS[text]
    words = shlex.split(text)
    if words[0] == "ns-train":
        words[2:2] = shlex.split(SMALL[words[1]])
        if "--max-num-iterations" in words:
            place = words.index("--max-num-iterations")
            del words[place : place + 2]
        end = ["--max-num-iterations", "6", "--viewer.websocket-port", str(free_port())]
        words += [*end, "--viewer.quit-on-train-completion", "True"]
    words += shlex.split(plan.more)
    if words[0] == "ns-viewer":
        words += ["--viewer.websocket-port", str(free_port())]
    if words[0] == "raygauss-view":
        words += ["--port", str(free_port())]
    # The shortened value of an option that stands twice is the last one.
    run = next(iter(sorted(folder.glob("outputs/*/raygauss/*"))), folder / "outputs" / "none")
    stands_for = {"outputs/.../config.yml": run / "config.yml", "CONFIG": run / "config.yml", "outputs/...": run}
    stands_for |= {"MINUTES": "0.05", "splat.ply": run / "splat.ply"}
    stands_for["FILE"] = "path.json" if "--camera-path-filename" in words else run / "raygauss.ply"
    return [str(stands_for.get(word, word)) for word in words]


@pytest.mark.slow
@pytest.mark.parametrize("text", PLANS)
def test_it_runs(text, folder, run):
    plan = PLANS[text]
    if plan.needs:
        pytest.importorskip(plan.needs)
    words = real_words(text, folder)
    said = until_it_answers(words, folder) if words[0] in STAY else run(*words, cwd=folder)
    # The page may answer before the command has come to where it waits for Ctrl+C.
    assert "Traceback" not in said or said.rstrip().endswith("KeyboardInterrupt"), said[-3000:]
    if plan.leaves:
        assert list(folder.glob(plan.leaves)), said[-3000:]


def until_it_answers(words, folder):
    """Start a command that stays, wait until its page is there, and press Ctrl+C; what it said."""
    program = shutil.which(words[0], path=sysconfig.get_path("scripts"))
    port = int(words[-1])
    with open(folder / "said.txt", "w+") as file:
        process = subprocess.Popen([program, *words[1:]], cwd=folder, stdout=file, stderr=file, env=dict(os.environ))
        try:
            end = time.monotonic() + 240
            while process.poll() is None and time.monotonic() < end:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.3)
            time.sleep(2)
            running = process.poll() is None
            process.send_signal(signal.SIGINT)
            process.wait(60)
        finally:
            process.kill()
        said = (folder / "said.txt").read_text()
    assert running, said
    return said
