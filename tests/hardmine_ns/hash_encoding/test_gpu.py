"""The Triton kernels of the hash encoding: against the reference in Triton's interpreter, and built for absent GPUs."""

import sys

import pytest
import torch

from hardmine_ns.hash_encoding import HashEncoding
from hardmine_ns.hash_encoding.encoding import reference

pytest.importorskip("triton")

TOLERANCE = 1e-5
SIZES = {"num_levels": 6, "log2_hashmap_size": 10, "base_resolution": 5, "max_resolution": 100}


@pytest.fixture(autouse=True)
def seeded():
    """Always the same points."""
    torch.manual_seed(0)


def relative_error(value, expected):
    return float((value.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))


def both(positions, cotangent, table_type=torch.float32, **sizes):
    """Output, gradient of positions and of the table, from the kernels and from the reference in float64."""
    torch.manual_seed(0)
    encoding = HashEncoding(**SIZES | sizes, backend="gpu").to(table_type)
    with torch.no_grad():
        encoding.table.normal_()
    points = positions.clone().requires_grad_()
    output = encoding(points)
    assert output.dtype == table_type
    output.backward(cotangent.to(output))
    table = encoding.table.detach().double().requires_grad_()
    exact = positions.double().requires_grad_()
    expected = reference.encode(exact, table, encoding.levels)
    expected.backward(cotangent.double())
    return zip(
        (output.detach(), points.grad, encoding.table.grad),
        (expected.detach(), exact.grad, table.grad),
        strict=True,
    )


@pytest.mark.interpreted
@pytest.mark.parametrize("features", [1, 2, 3])
@pytest.mark.parametrize("points", [1, 63, 300])
def test_agrees_with_the_reference(points, features):
    positions, cotangent = torch.rand(points, 3), torch.randn(points, 6 * features)
    # Of a single point the levels' parts of a gradient may nearly cancel, and their rounding shows more.
    tolerance = TOLERANCE if points > 1 else 3 * TOLERANCE
    for value, expected in both(positions, cotangent, features_per_level=features):
        assert value.dtype == torch.float32
        assert relative_error(value, expected) < tolerance


@pytest.mark.interpreted
def test_half_precision_tables_are_summed_in_single_precision():
    positions, cotangent = torch.rand(200, 3), torch.randn(200, 12).half()
    for value, expected in both(positions, cotangent, torch.float16):
        assert relative_error(value, expected) < 5e-4  # half of float16's spacing, 2^-11


@pytest.mark.interpreted
@pytest.mark.parametrize("reach", [0.0, 1.0, -0.7, 1.3, 1e4, 1e12])
def test_agrees_on_the_border_and_outside(reach):
    positions, cotangent = torch.rand(20, 3), torch.randn(20, 12)
    positions[:, 1] = reach
    for value, expected in both(positions, cotangent):
        # A float32 position of 1e4 has no digits left for the fraction of its cell; the reference rounds alike.
        assert value.isfinite().all()
        if abs(reach) < 10:
            assert relative_error(value, expected) < TOLERANCE


@pytest.mark.interpreted
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_positions_that_are_not_finite_harm_no_other(bad):
    positions = torch.rand(9, 3)
    encoding = HashEncoding(**SIZES, backend="gpu")
    expected = encoding(positions)
    positions[4, 0] = bad
    output = encoding(positions)
    others = torch.arange(9) != 4
    torch.testing.assert_close(output[others], expected[others])
    assert not output[4].isfinite().all()


@pytest.mark.interpreted
def test_no_points():
    encoding = HashEncoding(**SIZES, backend="gpu")
    output = encoding(torch.rand(0, 3))
    output.sum().backward()
    assert output.shape == (0, 12)
    assert not encoding.table.grad.any()


@pytest.mark.interpreted
def test_types_that_the_kernels_do_not_take():
    with pytest.raises(TypeError, match=r"needs a float32 or float16 table on a GPU, got torch.float64 on cpu"):
        HashEncoding(**SIZES, backend="gpu").double()(torch.rand(5, 3))


def test_needs_a_gpu():
    with pytest.raises(TypeError, match=r"needs a float32 or float16 table on a GPU, got torch.float32 on cpu"):
        HashEncoding(**SIZES, backend="gpu")(torch.rand(5, 3))


def test_triton_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "hardmine_ns.hash_encoding.gpu.encoding", None)
    with pytest.raises(ImportError, match=r'needs Triton 3.2 or newer .*pip install "triton>=3.2"'):
        HashEncoding(**SIZES, backend="gpu")(torch.rand(5, 3))


@pytest.mark.parametrize("table", ["*fp32", "*fp16"])
@pytest.mark.parametrize("name", ["forward_kernel", "table_gradient_kernel", "position_gradient_kernel"])
def test_builds_without_spilling(name, table, capability, triton_build):
    from hardmine_ns.hash_encoding.gpu import encoding as gpu

    types = {"positions": "*fp32", "scales": "*fp32", "geometry": "*i32", "number": "i32", "num_levels": "i32"}
    types |= {"table": table, "out": table, "cotangent": table, "gradient": "*fp32"}
    sizes = gpu._sizes(2)
    num_warps = sizes.pop("num_warps")
    build = triton_build(getattr(gpu, name), types, sizes, capability, num_warps)
    assert build.spilled == 0
    assert build.registers <= 128
