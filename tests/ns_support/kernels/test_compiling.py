"""The word to the user that kernels are being compiled: when they are, once, and only then."""

import subprocess
import sys

import pytest

PROGRAM = """
import torch
from raygauss_ns.casting import CastSettings, Gaussians, cast
one, far = torch.ones(1, 3), torch.full((1,), torch.inf)
print("imported", flush=True)
gaussians = Gaussians(0 * one, one, torch.ones(1, 4), torch.ones(1))
for _ in range(2):
    cast(gaussians, one, -9 * one, one / 3**0.5, torch.zeros(1), far, CastSettings(step=0.1, density_threshold=0.1))
"""


@pytest.mark.slow
def test_said_once_and_not_again_by_the_next_process(tmp_path, monkeypatch):
    from ns_support.kernels.compiling import MESSAGE

    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    runs = [subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True) for _ in range(2)]
    assert all(done.returncode == 0 for done in runs), runs[0].stderr[-2000:]
    assert runs[0].stderr.count(MESSAGE) == 1
    assert MESSAGE not in runs[1].stderr


def test_kernels_of_others_are_their_own_business(capsys):
    from numba import njit

    from ns_support.kernels.compiling import announcement

    said, announcement.said = announcement.said, False
    njit(lambda x: x + 1)(1)
    assert announcement.said is False
    announcement.said = said
    assert capsys.readouterr().err == ""
