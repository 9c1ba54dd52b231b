"""The kernels without AVX-512, and as LLVM builds them for ARM, which is not here to run them."""

import json
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
from hardmine_ns.rendering.field import HashField, UnitCube
from hardmine_ns.rendering.visibility import Rays as FieldRays
from hardmine_ns.rendering.visibility import render_visible, search
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
    "test_processors.py::test_kernels_are_built_without_avx512",
    "ns_support/kernels/test_simd.py",
    "raygauss_ns/casting/cpu/test_march.py::test_gradient_of_each_output",
    "raygauss_ns/casting/test_growing.py",
    "hardmine_ns/hash_encoding/test_cpu.py",
    "hardmine_ns/marching/test_marching.py",
    "hardmine_ns/rendering/test_cpu.py",
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
    field, cube = (
        HashField(HashEncoding(num_levels=2, max_resolution=32)),
        UnitCube(torch.zeros(3), torch.ones(3), False),
    )
    with torch.no_grad():
        rays = FieldRays(origins, directions)
        render_visible(field, search(field, samples, rays, cube), rays)


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


@pytest.mark.skipif(not MASKED, reason="the test below runs it without AVX-512")
def test_kernels_are_built_without_avx512(kernels):
    assert any("march_growing._backward_chunk" in name for name in kernels)
    for library in kernels.values():
        assert library.codegen.magic_tuple()[1:] == (AVX2["NUMBA_CPU_NAME"], AVX2["NUMBA_CPU_FEATURES"])


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


BUILDER = """
import json, sys
import llvmlite.binding as llvm
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
machine = llvm.Target.from_triple(sys.argv[1]).create_target_machine(cpu=sys.argv[2], opt=3)
built = {}
for name, text in json.load(sys.stdin).items():
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = sys.argv[1], str(machine.target_data)
    module.verify()
    built[name] = machine.emit_assembly(module)
json.dump(built, sys.stdout)
"""
"""Compiles modules of LLVM for another processor; a process of its own, as LLVM ends it where it cannot."""

NUMBAS_OWN = re.compile(r"^define linkonce_odr void @NRT_(decref|incref)\((ptr|i8\*).*?^}$", re.MULTILINE | re.DOTALL)
"""Numba's counting of references. It is no part of the kernels, and LLVM has written an x86 instruction into it by the
time that a kernel is kept; Numba makes it anew on each processor."""


def in_llvm(library):
    """A kernel as LLVM's text: what other kernels would link with, which there is of kernels out of the cache, too."""
    return NUMBAS_OWN.sub(r"declare void @NRT_\1(\2)", str(library._get_module_for_linking()))


def test_llvm_builds_the_kernels_for_arm(kernels):
    """For an ARM processor of 64 bits with nothing but the basic NEON instructions."""
    triple = "aarch64-linux-gnu"
    llvm.initialize_all_targets()
    try:
        llvm.Target.from_triple(triple)
    except RuntimeError:
        pytest.skip("this llvmlite has no code generator for ARM")
    texts = json.dumps({name: in_llvm(library) for name, library in kernels.items()})
    words = [sys.executable, "-c", BUILDER, triple, "generic"]
    done = subprocess.run(words, input=texts, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = json.loads(done.stdout)

    marches = "march._forward_chunk", "march._backward_chunk", "march_growing._backward_chunk"
    for name in (*marches, "networks._color_rows"):
        (assembly,) = [assembly for full, assembly in built.items() if full.endswith(f"cpu.{name}.0")]
        # A vector of 16 floats is four registers of 4.
        fused = len(re.findall(r"\bfml[as]\s+v\d+\.4s", assembly))
        assert fused >= 4 * LANES, f"{name}: {fused} fused multiplications of 4 floats"
