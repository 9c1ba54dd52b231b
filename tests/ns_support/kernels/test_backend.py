"""What is said at the start where Triton can't compile kernels for the GPU."""

import sys

import pytest

from ns_support.errors import UserError
from ns_support.kernels.backend import check_gpu


def test_a_cpu_needs_no_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "ns_support.kernels.gpu", None)
    check_gpu("cpu")


def test_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "ns_support.kernels.gpu", None)
    with pytest.raises(UserError, match=r"^Computing on cuda needs Triton 3.2 or newer .*pip install"):
        check_gpu("cuda")


def test_without_a_c_compiler(monkeypatch):
    gpu = pytest.importorskip("ns_support.kernels.gpu")

    def launch(device):
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(gpu, "launch", launch)
    with pytest.raises(UserError, match=r"^Triton can't run a kernel on cuda:0: Failed to find C compiler.*gcc.*CC"):
        check_gpu("cuda:0")


def test_it_is_checked_before_any_data_are_loaded(monkeypatch, tmp_path):
    import ns_support.pipeline
    from raygauss_ns.method import raygauss

    def refuse(device):
        raise UserError(f"no kernels on {device}")

    monkeypatch.setattr(ns_support.pipeline, "check_gpu", refuse)
    config = raygauss.config.pipeline
    with pytest.raises(UserError, match="no kernels on cuda"):
        config.setup(device="cuda")
