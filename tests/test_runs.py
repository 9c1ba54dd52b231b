"""Runs of both methods that are stopped, resumed, repeated or begun wrongly: nothing that was saved is lost."""

import copy
import errno
import json
import os
import re
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_runs import METHODS, begin, both, configure, said, steps_in
from small_scenes import write_disc

from ns_support import trainer as module
from ns_support.errors import UserError
from ns_support.runs.saved_runs import checkpoints_in, read_checkpoint
from ns_support.runs.summary import resume_command


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_disc(tmp_path_factory.mktemp("scene") / "disc")


# ---- stopping -------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_with_the_step_at_hand(method, number, scene, tmp_path, capsys):
    trainer = begin(configure(method, scene, tmp_path), 3, lambda _: os.kill(os.getpid(), number))
    assert steps_in(trainer) == [3]
    state = read_checkpoint(trainer.saved)
    assert state["step"] == 3
    assert "Stopped after step 4 of 8" in said(capsys)
    resumed = begin(configure(method, scene, tmp_path, 4, load_dir=trainer.base_dir))
    assert "Resuming at step 4, 4 more" in said(capsys)
    assert steps_in(resumed) == [7]
    assert steps_in(trainer) == [3]


@both
def test_a_signal_during_a_save_leaves_it_whole(method, scene, tmp_path, monkeypatch):
    def interrupted(state, path, only_latest):
        os.kill(os.getpid(), signal.SIGINT)
        write(state, path, only_latest)

    write = module.write_checkpoint
    monkeypatch.setattr(module, "write_checkpoint", interrupted)
    trainer = begin(configure(method, scene, tmp_path, steps_per_save=2))
    assert steps_in(trainer) == [2]
    assert read_checkpoint(trainer.saved)["step"] == 2


def test_a_second_signal_stops_at_once_and_names_what_there_is(scene, tmp_path, capsys):
    def twice(trainer):
        trainer.save_checkpoint(3)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        begin(configure("raygauss", scene, tmp_path), 3, twice)
    assert "Stopped at once. The newest checkpoint is" in said(capsys)


def test_with_a_viewer_the_command_waits_for_a_signal(scene, tmp_path, monkeypatch, capsys):
    def stand_in(trainer):
        trainer.viewer_state = type("Viewer", (), {"training_complete": lambda self: None})()
        trainer.config.vis = "viewer"
        trainer._update_viewer_state = lambda step: None

    slept = []

    def sleep(seconds):
        slept.append(seconds)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(module, "sleep", sleep)
    trainer = begin(configure("raygauss", scene, tmp_path), 0, stand_in)
    assert len(slept) == 1
    assert steps_in(trainer) == [7]
    text = said(capsys)
    assert text.index("Training Finished") < text.index("ns-viewer --load-config") < text.index("Ctrl+C leaves")


def test_a_stop_before_the_first_step_saves_nothing(scene, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        module.SharedTrainer, "_init_viewer_state", lambda trainer: setattr(trainer, "stop_training", True)
    )
    trainer = begin(configure("raygauss", scene, tmp_path))
    assert steps_in(trainer) == []
    assert "there is nothing to save" in said(capsys)


# ---- saving ---------------------------------------------------------------------------------------------------------


@both
def test_a_checkpoint_is_written_by_the_clock(method, scene, tmp_path):
    found = []
    config = configure(method, scene, tmp_path, minutes_per_save=1e-9)
    begin(config, 4, lambda trainer: found.extend(steps_in(trainer)))
    assert found in ([3], [4])  # before or after this callback's own turn


@both
def test_a_full_disk_is_a_sentence_and_the_checkpoint_before_stays(method, scene, tmp_path, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(trainer):
        assert steps_in(trainer) == [2]
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))

    config = configure(method, scene, tmp_path, steps_per_save=2, vis="none")
    try:
        with pytest.raises(UserError, match=r"step-000000007\.ckpt can't be written: File too large"):
            begin(config, 3, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "step-000000004.ckpt can't be written" in said(capsys)
    assert [c.step for c in checkpoints_in(config.get_checkpoint_dir())] == [2]
    assert read_checkpoint(config.get_checkpoint_dir() / "step-000000002.ckpt")["step"] == 2


# ---- resuming -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(scene, tmp_path_factory):
    """A finished run of each method."""
    return {method: begin(configure(method, scene, tmp_path_factory.mktemp("runs"))) for method in METHODS}


@both
def test_a_configuration_that_is_loaded_again_takes_no_runs_place(method, finished, capsys):
    old = finished[method]
    config = copy.deepcopy(old.config)  # with its timestamp, as `--load-config` has it
    again = begin(config)
    assert again.base_dir != old.base_dir
    assert steps_in(old) == steps_in(again) == [7]
    assert "holds a trained model, which stays" in said(capsys)


def test_a_run_goes_on_in_its_own_folder(finished, scene, tmp_path):
    folder = tmp_path / "test" / "raygauss" / "own"
    shutil.copytree(finished["raygauss"].base_dir, folder)
    config = configure("raygauss", scene, tmp_path, 2, timestamp="own", load_dir=folder)
    assert steps_in(begin(config)) == [9]


@both
def test_a_checkpoint_of_another_method_is_refused_before_the_data_are_loaded(method, finished, scene, tmp_path):
    other = next(name for name in ("raygauss", "instant-ngp-hardmine") if name != method)
    config = configure(method, scene, tmp_path, load_dir=finished[other].base_dir)
    said = rf"is not a checkpoint of {method}\. It is one of {other}: `ns-train {other} --load-dir"
    with pytest.raises(UserError, match=said):
        config.print_to_terminal()
    assert not tmp_path.joinpath("test").exists()


def test_settings_that_do_not_fit_a_checkpoint_are_a_sentence(finished, scene, tmp_path):
    with pytest.raises(UserError, match=r"step-\d+\.ckpt: .*does not fit this configuration.*size mismatch"):
        begin(
            configure(
                "instant-ngp-hardmine-bounded", scene, tmp_path, load_dir=finished["instant-ngp-hardmine"].base_dir
            )
        )


CHANGES = {
    "fewer photographs": (
        {"views": 3},
        r"there were 4 images .*, and now there are 3; gone: train_3\.png",
    ),
    "moved cameras": ({"away": 5.0}, "the cameras of 4 of 4 images are not where they were"),
    "other lenses": ({"fov": 0.9}, "focal lengths, centres or distortion differ"),
}


@both
@pytest.mark.parametrize("change", CHANGES)
def test_other_data_than_the_runs_are_refused_unless_one_insists(method, change, finished, tmp_path, capsys):
    options, sentence = CHANGES[change]
    other = write_disc(tmp_path / "other", **options)
    config = configure(method, other, tmp_path, 1, load_dir=finished[method].base_dir)
    with pytest.raises(UserError, match=sentence):
        begin(config)
    insisting = configure(method, other, tmp_path, 1, load_dir=finished[method].base_dir, resume_on_other_data=True)
    assert steps_in(begin(insisting)) == [8]
    assert "The data are not those that" in said(capsys)


def test_an_older_runs_normalization_is_compared(finished, scene, tmp_path):
    """Before checkpoints said what they were trained on, nerfstudio's own file beside them did."""
    folder = tmp_path / "old"
    shutil.copytree(finished["raygauss"].base_dir, folder)
    path = folder / "nerfstudio_models" / "step-000000007.ckpt"
    state = read_checkpoint(path)
    del state["trained_on"], state["method_name"]
    torch.save(state, path)
    assert steps_in(begin(configure("raygauss", scene, tmp_path, 1, load_dir=folder))) == [8]
    transforms = json.loads((folder / "dataparser_transforms.json").read_text())
    (folder / "dataparser_transforms.json").write_text(json.dumps(transforms | {"scale": 0.5}))
    sentence = r"transforms\.json places the scene differently, and the scene is scaled by 1, then by 0\.5"
    with pytest.raises(UserError, match=sentence):
        begin(configure("raygauss", scene, tmp_path, 1, load_dir=folder))


def test_a_smaller_resolution_is_not_other_data(finished, scene, tmp_path):
    half = write_disc(tmp_path / "half")
    for path in half.glob("*.png"):
        Image.open(path).resize((12, 12)).save(path)
    assert steps_in(begin(configure("raygauss", half, tmp_path, 1, load_dir=finished["raygauss"].base_dir))) == [8]


# ---- beginning ------------------------------------------------------------------------------------------------------


def with_model(**settings):
    return lambda config: [setattr(config.pipeline.model, name, value) for name, value in settings.items()]


def with_option(name, value):
    return lambda config: setattr(config, name, value)


def with_optimizers(name, value):
    return lambda config: [setattr(group["optimizer"], name, value) for group in config.optimizers.values()]


WRONG = {
    "no data": (lambda c: setattr(c.pipeline.datamanager, "data", c.output_dir / "no"), "does not exist"),
    "no steps": (with_option("max_num_iterations", 0), "max-num-iterations must be at least 1, got 0"),
    "output": (with_option("output_dir", Path("/proc/nowhere")), "can't be written"),
    "load-dir": (with_option("load_dir", Path("nowhere")), "nowhere does not exist"),
    "load-step": (with_option("load_step", 3), "needs --load-dir"),
    "device": (lambda c: setattr(c.machine, "device_type", "mps"), "must be cpu or cuda, got mps"),
    "learning rates": (with_optimizers("lr", -1.0), r"--optimizers\..*\.lr must be finite and at least 0, got -1.0"),
    "a rate of NaN": (with_optimizers("lr", float("nan")), "lr must be finite and at least 0, got nan"),
    "epsilon": (with_optimizers("eps", -1e-8), "eps must be finite and at least 0, got -1e-08"),
    "setting": (with_model(near_plane=-1.0), "near-plane must be"),
}


@both
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_before_anything_is_printed_or_made(method, wrong, scene, tmp_path, capsys):
    change, sentence = WRONG[wrong]
    config = configure(method, scene, tmp_path / "outputs")
    change(config)
    config.set_timestamp()
    with pytest.raises(UserError, match=sentence):
        config.print_to_terminal()
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "outputs").exists()


def test_cuda_where_there_is_none(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = configure("raygauss", scene, tmp_path)
    config.machine.device_type = "cuda"
    with pytest.raises(UserError, match="finds no CUDA device here"):
        config.print_to_terminal()


def test_a_log_on_a_full_disk_is_a_sentence_too(scene, tmp_path):
    def full(trainer):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"Training stopped: .* can't be written: No space left on device"):
        begin(configure("raygauss", scene, tmp_path), 2, full)


def test_what_a_training_says(scene, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "argv", ["ns-train", "raygauss", "--data", str(scene)])
    trainer = begin(configure("raygauss", scene, tmp_path))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    text = " ".join(" ".join(lines).split())
    assert "Blender scene: 4 images to train on and 1 to evaluate on, 24 x 24 pixels." in text
    assert "CPU, " in text
    assert "300 Gaussians to start with, at most 100,000" in text
    assert "step 0.02 units" in text
    assert "8 steps." in text
    assert "Saved every 1,000 steps and every 10 minutes." in text
    result = f"{trainer.progress.psnr:.1f} dB PSNR on training images; 300 Gaussians."
    assert re.search(rf"Training Finished: 8 steps in \d+ s; {re.escape(result)}", text)
    for command in ("ns-viewer", "ns-eval", "ns-render interpolate", "raygauss-export splat", "ns-train raygauss"):
        assert any(command in line for line in lines), command
    assert "\x1b" not in text
    assert "class" not in text  # of the configuration's settings
    assert len(lines) < 25


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (
            "ns-train raygauss --data x --timestamp now --max-num-iterations 50 blender-data --alpha-color white",
            "ns-train raygauss --load-dir RUN --data x --max-num-iterations 50 blender-data --alpha-color white",
        ),
        (
            "/bin/ns-train raygauss --load_dir a --load-step=3 --data x",
            "ns-train raygauss --load-dir RUN --data x",
        ),
        ("python", "ns-train raygauss --load-dir RUN --data DATA"),
    ],
)
def test_the_command_that_trains_on(words, command, tmp_path):
    config = configure("raygauss", "DATA", tmp_path)
    config.get_base_dir = lambda: "RUN"
    assert resume_command(words.split(), config) == command
