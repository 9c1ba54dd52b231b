"""The ffmpeg that is offered where the machine has none."""

import os
import shutil
import subprocess

import pytest

from ns_support.startup import ffmpeg as video


@pytest.fixture
def no_ffmpeg(monkeypatch, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    return empty


def test_offers_a_program_that_runs(no_ffmpeg, tmp_path):
    program = video.offer_ffmpeg(tmp_path / "bin")
    assert shutil.which("ffmpeg") == str(program)
    assert "ffmpeg version" in subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True).stdout
    assert [p.name for p in program.parent.iterdir()] == [program.name]


def test_a_second_process_finds_the_first_ones_link(no_ffmpeg, tmp_path, monkeypatch):
    program = video.offer_ffmpeg(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(no_ffmpeg))
    monkeypatch.setattr(video, "_place", lambda _: pytest.fail("placed twice"))
    assert video.offer_ffmpeg(tmp_path / "bin") == program


def test_replaces_a_dangling_link(no_ffmpeg, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ffmpeg").symlink_to(tmp_path / "gone")
    assert video.offer_ffmpeg(tmp_path / "bin").exists()


def test_leaves_the_machines_own_alone(no_ffmpeg, tmp_path):
    own = no_ffmpeg / "ffmpeg"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert video.offer_ffmpeg(tmp_path / "bin") is None
    assert os.environ["PATH"] == str(no_ffmpeg)
    assert not (tmp_path / "bin").exists()


def test_a_folder_that_cannot_be_made_is_no_error(no_ffmpeg, tmp_path):
    (tmp_path / "bin").write_text("a file in the way")
    assert video.offer_ffmpeg(tmp_path / "bin") is None
    assert os.environ["PATH"] == str(no_ffmpeg)
