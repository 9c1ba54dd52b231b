import io
import subprocess
import sys

import numpy as np
import pytest
import torch

from ns_support.startup import checkpoints  # the import is what registers

SCALARS = [np.float64(0.1), np.float32(2.0), np.int64(3), np.int32(-1), np.bool_(True)]


def reload(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("scalar", SCALARS, ids=lambda s: s.dtype.name)
def test_numpy_scalars_load(scalar):
    checkpoints.allow_numpy_scalars()  # twice does no harm
    loaded = reload({"schedulers": {"means": {"_last_lr": [scalar]}}})["schedulers"]["means"]["_last_lr"][0]
    assert loaded == scalar
    assert loaded.dtype == scalar.dtype


def test_a_checkpoint_from_the_other_numpy_loads():
    file = io.BytesIO()
    torch.save({"lr": np.float64(0.1)}, file, _use_new_zipfile_serialization=False)
    here = b"numpy._core.multiarray" if b"numpy._core.multiarray" in file.getvalue() else b"numpy.core.multiarray"
    there = {b"numpy.core.multiarray": b"numpy._core.multiarray", b"numpy._core.multiarray": b"numpy.core.multiarray"}
    other = io.BytesIO(file.getvalue().replace(b"c" + here + b"\n", b"c" + there[here] + b"\n"))
    assert torch.load(other, weights_only=True) == {"lr": 0.1}


def test_what_is_not_a_number_is_still_refused():
    with pytest.raises(Exception, match="Weights only load failed"):
        reload({"lr": subprocess.Popen})


@pytest.mark.skipif(torch.__version__ < "2.6", reason="older torch loads anything")
def test_without_the_module_they_do_not_load():
    code = (
        "import io, numpy, torch; f = io.BytesIO(); torch.save(numpy.float64(1), f); f.seek(0)\n"
        "try: torch.load(f)\nexcept Exception as error: print(type(error).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "UnpicklingError\n"
