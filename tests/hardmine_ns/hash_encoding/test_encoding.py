"""The module itself: shapes, choice of back end, errors, tiny-cuda-nn's place."""

import sys
import types

import pytest
import torch
from torch import nn

from hardmine_ns.hash_encoding import HashEncoding, check_backend
from ns_support.kernels.backend import runs_on

SIZES = {"num_levels": 4, "log2_hashmap_size": 8, "base_resolution": 4, "max_resolution": 32}


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 0, 3), (2, 4, 3)])
def test_leading_dimensions_are_kept(shape):
    encoding = HashEncoding(**SIZES, features_per_level=3)
    assert encoding.out_dim == 12
    assert encoding(torch.rand(shape)).shape == (*shape[:-1], 12)


@pytest.mark.parametrize("shape", [(), (5,), (5, 2), (3, 5)])
def test_positions_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"positions must be \[\.\.\., 3\], got \["):
        HashEncoding(**SIZES)(torch.rand(shape))


def test_integer_positions():
    with pytest.raises(TypeError, match=r"floating point, got torch.int64"):
        HashEncoding(**SIZES)(torch.zeros(5, 3, dtype=torch.long))


def test_positions_on_another_device():
    with pytest.raises(ValueError, match="positions are on meta, the table is on cpu"):
        HashEncoding(**SIZES)(torch.rand(5, 3, device="meta"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"num_levels": 0}, "num_levels must be at least 1, got 0"),
        ({"features_per_level": 0}, "features_per_level must be at least 1, got 0"),
        ({"log2_hashmap_size": 31}, "log2_hashmap_size must be between 3 and 30, got 31"),
        ({"base_resolution": 64}, "got base_resolution=64, max_resolution=32"),
        ({"backend": "cuda"}, "backend must be one of auto, cpu, gpu, reference, tcnn, got 'cuda'"),
    ],
)
def test_arguments_out_of_range(argument, message):
    with pytest.raises(ValueError, match=message):
        HashEncoding(**SIZES | argument)


def test_auto_takes_the_kernels_where_it_can():
    encoding = HashEncoding(**SIZES)
    encoding(torch.rand(5, 3)).sum().backward()
    assert encoding.table.grad.is_sparse
    double = HashEncoding(**SIZES).double()
    output = double(torch.rand(5, 3))
    output.sum().backward()
    assert output.dtype == torch.float64
    assert not double.table.grad.is_sparse


def test_kernels_asked_for_where_they_cannot_run():
    with pytest.raises(TypeError, match=r'backend "cpu" needs a float32 table on the CPU, got torch.float64'):
        HashEncoding(**SIZES, backend="cpu").double()(torch.rand(5, 3))


def test_half_precision_positions_are_computed_in_the_tables_type():
    encoding = HashEncoding(**SIZES)
    positions = torch.rand(5, 3).half()
    assert torch.equal(encoding(positions), encoding(positions.float()))


def test_tiny_cuda_nn_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    with pytest.raises(ImportError, match=r'backend "tcnn" needs tiny-cuda-nn.*use backend "auto"'):
        HashEncoding(**SIZES, backend="tcnn")


class TinyCudaNNEncoding(nn.Module):
    """Behaves as `tinycudann.Encoding` does: a flat float32 parameter, read at each call; half-precision output."""

    def __init__(self, n_input_dims, encoding_config):
        super().__init__()
        assert n_input_dims == 3
        self.config = encoding_config
        self.params = nn.Parameter(torch.zeros(7))

    def forward(self, positions):
        features = self.params.view(-1, self.config["n_features_per_level"])[: self.config["n_levels"]]
        return (positions.sum(1, keepdim=True) * features.flatten()).half()


def test_tiny_cuda_nn_reads_and_trains_our_table(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", types.SimpleNamespace(Encoding=TinyCudaNNEncoding))
    encoding = HashEncoding(**SIZES, backend="tcnn")
    assert [name for name, _ in encoding.named_parameters()] == ["table"]
    assert encoding._native.config == {
        "otype": "HashGrid",
        "n_levels": 4,
        "n_features_per_level": 2,
        "log2_hashmap_size": 8,
        "base_resolution": 4,
        "per_level_scale": pytest.approx(2.0),
    }
    trained = HashEncoding(**SIZES)
    nn.init.uniform_(trained.table, 1, 2)
    encoding.load_state_dict(trained.state_dict())
    output = encoding(torch.ones(2, 3))
    assert output.dtype == torch.float32
    assert output[0].tolist() == pytest.approx((3 * trained.table[:4]).flatten().tolist(), rel=1e-3)
    output.sum().backward()
    assert encoding.table.grad[:4].eq(6).all()
    assert not encoding.table.grad[4:].any()


@pytest.mark.parametrize(
    ("backend", "device", "fits"),
    [
        ("auto", "cpu", True),
        ("auto", "mps", True),
        ("reference", "cuda", True),
        ("cpu", "cpu", True),
        ("cpu", "cuda:1", False),
        ("tcnn", "cuda", True),
        ("tcnn", "cpu", False),
    ],
)
def test_back_ends_are_refused_on_devices_they_do_not_run_on(backend, device, fits):
    if fits:
        check_backend(backend, device)
    else:
        with pytest.raises(ValueError, match=f"hash-backend {backend} does not run on the device {device}"):
            check_backend(backend, device)


def test_triton_back_end_is_refused_on_a_cpu():
    gpu = pytest.importorskip("hardmine_ns.hash_encoding.gpu.encoding")
    check_backend("gpu", "cuda")
    check_backend("auto", "cuda")
    if not runs_on(gpu.forward_kernel, torch.device("cpu")):  # not in the interpreter
        with pytest.raises(ValueError, match="hash-backend gpu does not run on the device cpu"):
            check_backend("gpu", "cpu")
