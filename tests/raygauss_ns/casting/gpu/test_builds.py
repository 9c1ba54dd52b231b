"""The Triton kernels built for GPUs that are not there: no spill, no barrier, registers within their limits."""

import pytest

pytest.importorskip("triton")

FLOATS = "origins directions nears records squared_cutoffs boxes shells out grad_out moments tree"
CAST = (
    dict.fromkeys(FLOATS.split(), "*fp32")
    | dict.fromkeys(["counts", "links", "starts"], "*i32")
    | dict.fromkeys(["order", "firsts", "lasts", "before"], "*i64")
    | dict.fromkeys(["number", "width", "nodes", "number_of_shells", "n", "leaves"], "i32")
    | dict.fromkeys(["step", "step_rest", "offset", "eps", "threshold"], "fp32")
)
REGISTERS = {"forward_kernel": 96, "backward_kernel": 168}
"""At most: with these, 21 and 12 warps of 32 lanes share the 65,536 registers of a multiprocessor."""


@pytest.mark.parametrize("slab", [8, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("tiled", "listed"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("name", list(REGISTERS))
def test_caster(name, tiled, listed, slab, capability, triton_build):
    from raygauss_ns.casting.gpu import kernels as gpu_kernels
    from raygauss_ns.casting.gpu import launch as gpu

    assert slab in gpu.SLABS
    constants = {"K": slab, "TILED": tiled, "LISTED": listed}
    build = triton_build(getattr(gpu_kernels, name), CAST, constants, capability)
    assert build.spilled == 0
    assert build.registers <= REGISTERS[name]
    assert build.shared == 0
    assert "bar.sync" not in build.ptx
    # 13 sums over 32 lanes take 16 exchanges; five more for each of the two calls of next_row.
    assert build.ptx.count("shfl.sync") <= (26 if name == "backward_kernel" else 10)


GROWING = (
    CAST
    | {"fars": "*fp32", "samples": "i32"}
    | dict.fromkeys(["step", "step_rest", "growth", "exponent", "limit", "offset"], "fp32")
)
GROWING_REGISTERS = {"growing_forward_kernel": 128, "growing_backward_kernel": 168}


@pytest.mark.parametrize(
    ("capability", "slab", "tiled"),
    [(90, 8, True), (90, 8, False)]
    + [pytest.param(*case, marks=pytest.mark.slow) for case in ((80, 8, True), (120, 8, True), (90, 4, True))],
)
@pytest.mark.parametrize("name", list(GROWING_REGISTERS))
def test_caster_with_a_growing_step(name, capability, slab, tiled, triton_build):
    from raygauss_ns.casting.gpu import kernels_growing as gpu_growing

    build = triton_build(getattr(gpu_growing, name), GROWING, {"K": slab, "TILED": tiled}, capability)
    assert build.spilled == 0
    assert build.registers <= GROWING_REGISTERS[name]
    assert build.shared == 0
    assert "bar.sync" not in build.ptx


def test_hierarchy(capability, triton_build):
    from raygauss_ns.casting.gpu import bvh as gpu_bvh

    build = triton_build(gpu_bvh.write_nodes_kernel, CAST, {"BLOCK": 256}, capability, num_warps=4)
    assert build.spilled == 0
