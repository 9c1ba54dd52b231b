"""The kernels without AVX-512, and as LLVM builds them for ARM, which is not here to run them."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest
import torch
from numba.core.dispatcher import Dispatcher

from hardmine_ns.hash_encoding import HashEncoding
from hardmine_ns.marching import OccupancyGrid, composite, march_rays
from ns_support.kernels.simd import LANES
from raygauss_ns.casting import CastSettings, Gaussians, Rays, cast

TESTS = Path(__file__).resolve().parent
AVX2 = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+avx,+avx2,+bmi,+bmi2,+cx16,+f16c,+fma,+lzcnt,+movbe,+popcnt,+sse,+sse2,+sse3,+sse4.1,"
    "+sse4.2,+ssse3",
}
MASKED = os.environ.get("NUMBA_CPU_NAME") == AVX2["NUMBA_CPU_NAME"]
AGAINST_THE_REFERENCE = (
    "test_processors.py::test_kernels_are_built_for_what_is_asked",
    "ns_support/kernels/test_simd.py",
    "raygauss_ns/casting/cpu/test_march.py::test_gradient_of_each_output",
    "raygauss_ns/casting/test_growing.py",
    "hardmine_ns/hash_encoding/test_cpu.py",
    "hardmine_ns/marching/test_marching.py",
)


def small_cast(**changes):
    generator = torch.Generator().manual_seed(0)
    scales, quats = 0.1 + 0.2 * torch.rand(20, 3, generator=generator), torch.randn(20, 4, generator=generator)
    means = torch.rand(20, 3, generator=generator, requires_grad=True)
    origins, directions = (
        torch.rand(32, 3) - torch.tensor([0.0, 0.0, 3.0]),
        torch.tensor([[0.0, 0.0, 1.0]]).repeat(32, 1),
    )
    settings = CastSettings(step=0.05, density_threshold=0.02)._replace(**changes)
    for width in (8, 0):
        rays = Rays(origins, directions, torch.zeros(32), torch.full((32,), 6.0), width)
        cast(Gaussians(means, scales, quats, torch.ones(20)), torch.ones(20, 3), rays, settings).rgb.sum().backward()


def small_march():
    grid = OccupancyGrid(torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]), resolution=16)
    origins, directions = torch.tensor([[0.0, 0.0, -3.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    samples = march_rays(origins, directions, torch.zeros(1), torch.full((1,), 9.0), grid, step_size=0.1)
    density = torch.ones(len(samples), requires_grad=True)
    composite(density, torch.ones(len(samples), 3), samples).accumulation.sum().backward()
    HashEncoding(num_levels=2, max_resolution=32)(torch.rand(4, 3)).sum().backward()


@pytest.fixture(scope="module")
def kernels():
    """All compiled functions that a small cast, a march and an encoding need: name and Numba's library of each."""
    small_cast()
    small_cast(step_growth=0.03)
    small_march()
    found = {}
    for name, module in list(sys.modules.items()):
        if name.startswith(("raygauss_ns.", "hardmine_ns.")):
            for function in vars(module).values():
                if isinstance(function, Dispatcher) and function.py_func.__module__ == name:
                    for number, compiled in enumerate(function.overloads.values()):
                        found[f"{name}.{function.py_func.__name__}.{number}"] = compiled.library
    return found


def test_kernels_are_built_for_what_is_asked(kernels):
    """On this processor, or in the process below without AVX-512."""
    assert any("march_growing._backward_chunk" in name for name in kernels)
    for library in kernels.values():
        _, cpu, features = library.codegen.magic_tuple()
        if MASKED:
            assert (cpu, features) == (AVX2["NUMBA_CPU_NAME"], AVX2["NUMBA_CPU_FEATURES"])
            assert "avx512" not in features


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86-64 only")
@pytest.mark.skipif(MASKED, reason="is without AVX-512 already")
def test_agrees_with_the_references_without_avx512():
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow"]
    places = [str(TESTS / place) for place in AGAINST_THE_REFERENCE]
    done = subprocess.run(
        [*words, *places], env=os.environ | AVX2, cwd=TESTS.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 20


@pytest.fixture(scope="module")
def arm():
    """`arm(library)`: assembly of a kernel for an ARM processor of 64 bits with nothing but the basic NEON."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple = "aarch64-linux-gnu"
    try:
        target = llvm.Target.from_triple(triple)
    except RuntimeError:
        pytest.skip("this llvmlite has no code generator for ARM")
    machine = target.create_target_machine(cpu="generic", opt=3)

    def build(library):
        # What other kernels would link with: there for kernels out of Numba's cache, too.
        module = llvm.parse_bitcode(library._get_module_for_linking().as_bitcode())
        module.triple, module.data_layout = triple, str(machine.target_data)
        module.verify()
        return machine.emit_assembly(module)

    return build


def test_llvm_builds_the_kernels_for_arm(kernels, arm):
    built = {name: arm(library) for name, library in kernels.items()}
    assert all(".cfi_endproc" in assembly for assembly in built.values())
    assert not any(re.search(r"\b[yz]mm\d", assembly) for assembly in built.values())
    for name in ("march._forward_chunk", "march._backward_chunk", "march_growing._backward_chunk"):
        (assembly,) = [assembly for full, assembly in built.items() if full.endswith(f"cpu.{name}.0")]
        # A vector of 16 floats is four registers of 4.
        fused = len(re.findall(r"\bfml[as]\s+v\d+\.4s", assembly))
        assert fused >= 4 * LANES, f"{name}: {fused} fused multiplications of 4 floats"
