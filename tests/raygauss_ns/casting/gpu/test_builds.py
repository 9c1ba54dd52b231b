"""The Triton kernels built for GPUs that are not there: no spill, no barrier, registers within their limits."""

import pytest

pytest.importorskip("triton")

FLOATS = "origins directions nears records squared_cutoffs bounds blocks intervals out grad_out moments"
CAST = (
    dict.fromkeys(FLOATS.split(), "*fp32")
    | dict.fromkeys(["counts", "entries", "lengths"], "*i32")
    | {"order": "*i64"}
    | dict.fromkeys(["number", "width", "first1", "first2", "first3", "roots", "capacity"], "i32")
    | dict.fromkeys(["step", "step_rest", "offset", "eps", "threshold"], "fp32")
)
REGISTERS = {"collect_kernel": 80, "forward_kernel": 96, "backward_kernel": 168}
"""At most: with these 25, 21 and 12 warps of 32 lanes share the 65,536 registers of a multiprocessor."""
GROWING = (
    CAST
    | {"fars": "*fp32", "samples": "i32"}
    | dict.fromkeys(["step", "step_rest", "growth", "exponent", "limit", "offset"], "fp32")
)
GROWING_REGISTERS = {"growing_collect_kernel": 96, "growing_forward_kernel": 128, "growing_backward_kernel": 168}
WINDOWED_REGISTERS = 255
"""The kernels for packets whose list is too short hold the sums of a slab while they traverse the hierarchy."""
SPILLED = 16
"""Bytes at most: assemblers differ."""


def check(build, registers):
    assert build.spilled <= SPILLED
    assert build.registers <= registers
    assert build.shared == 0
    assert "bar.sync" not in build.ptx


@pytest.mark.parametrize("slab", [8, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("tiled", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["forward_kernel", "backward_kernel"])
def test_caster(name, tiled, slab, capability, triton_build):
    from raygauss_ns.casting.gpu import kernels, launch

    assert slab in launch.SLABS
    constants = {"K": slab, "TILED": tiled, "WINDOWED": False}
    build = triton_build(getattr(kernels, name), CAST, constants, capability)
    check(build, REGISTERS[name])
    # 13 sums over 32 lanes take 16 exchanges.
    assert build.ptx.count("shfl.sync") <= (16 if name == "backward_kernel" else 0)


@pytest.mark.parametrize("tiled", [True, False])
def test_collecting(tiled, capability, triton_build):
    from raygauss_ns.casting.gpu import kernels

    check(triton_build(kernels.collect_kernel, CAST, {"TILED": tiled}, capability), REGISTERS["collect_kernel"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["forward_kernel", "backward_kernel"])
def test_windows(name, triton_build):
    from raygauss_ns.casting.gpu import kernels

    constants = {"K": 8, "TILED": True, "WINDOWED": True}
    check(triton_build(getattr(kernels, name), CAST, constants, 90), WINDOWED_REGISTERS)


@pytest.mark.parametrize(
    ("capability", "slab", "tiled"),
    [(90, 8, True)]
    + [pytest.param(*case, marks=pytest.mark.slow) for case in ((90, 8, False), (80, 8, True), (120, 8, True))],
)
@pytest.mark.parametrize("name", list(GROWING_REGISTERS))
def test_caster_with_a_growing_step(name, capability, slab, tiled, triton_build):
    from raygauss_ns.casting.gpu import kernels_growing

    kernel = getattr(kernels_growing, name)
    constants = {"K": slab, "TILED": tiled, "WINDOWED": False}
    constants = {constant: value for constant, value in constants.items() if constant in kernel.arg_names}
    check(triton_build(kernel, GROWING, constants, capability), GROWING_REGISTERS[name])


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "lanes"), [("gfx942", 64), ("gfx1100", 32)])
@pytest.mark.parametrize("name", ["collect_kernel", "forward_kernel", "backward_kernel"])
def test_amd(name, architecture, lanes, amd_build):
    """A packet is 32 rays there too: a wavefront of 64 holds each of them twice."""
    from raygauss_ns.casting.gpu import kernels

    kernel = getattr(kernels, name)
    constants = {"K": 8, "TILED": True, "WINDOWED": False}
    constants = {constant: value for constant, value in constants.items() if constant in kernel.arg_names}
    build = amd_build(kernel, CAST, constants, architecture, lanes)
    assert build.spilled <= SPILLED
    assert build.registers <= 256
    assert build.shared == 0


@pytest.mark.slow
def test_windows_with_a_growing_step(triton_build):
    from raygauss_ns.casting.gpu import kernels_growing

    constants = {"K": 8, "TILED": True, "WINDOWED": True}
    check(triton_build(kernels_growing.growing_forward_kernel, GROWING, constants, 90), WINDOWED_REGISTERS)
