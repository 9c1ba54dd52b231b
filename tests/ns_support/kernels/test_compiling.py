"""The word to the user that kernels are being compiled: when they are, once, and only then."""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import torch
from raygauss_ns.casting import CastSettings, Gaussians, Rays, cast
one, far = torch.ones(1, 3), torch.full((1,), torch.inf)
print("imported", flush=True)
gaussians = Gaussians(0 * one, one, torch.ones(1, 4), torch.ones(1))
for _ in range(2):
    rays = Rays(-9 * one, one / 3**0.5, torch.zeros(1), far)
    cast(gaussians, one, rays, CastSettings(step=0.1, density_threshold=0.1))
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


@pytest.mark.parametrize("index", ["another class", "cut off", "empty"])
def test_an_index_that_cannot_be_read_is_none(index, tmp_path):
    """As an older version leaves it, whose kernels' arguments are of a class that has another name now."""
    from numba.core import caching

    from ns_support.kernels import compiling  # noqa: F401 - acts on import

    file = caching.IndexDataCacheFile(str(tmp_path), "kernel", source_stamp=1)
    file._save_index({"signature": "kernel.1.nbc"})
    assert file._load_index() == {"signature": "kernel.1.nbc"}
    whole = Path(file._index_path).read_bytes()
    another = pickle.dumps(file._version, protocol=-1) + b"cns_support.kernels.compiling\nGone\n."
    Path(file._index_path).write_bytes({"another class": another, "cut off": whole[:-4], "empty": b""}[index])
    assert file._load_index() == {}
    assert file.load("signature") is None
    file.save("signature", b"a kernel")
    assert file.load("signature") == b"a kernel"


def test_every_module_of_kernels_has_it_before_they_are_declared():
    root = Path(__file__).resolve().parents[3]
    with_kernels = [
        path
        for package in ("raygauss_ns", "hardmine_ns", "ns_support")
        for path in (root / package).rglob("*.py")
        if re.search("^from numba import .*njit", path.read_text(), re.MULTILINE)
    ]
    assert len(with_kernels) > 8
    for path in with_kernels:
        assert re.search(r"ns_support\.kernels[. ](simd|arrays|compiling|import simd)", path.read_text()), path
