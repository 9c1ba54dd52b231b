import inspect
import math
import multiprocessing
import os
import re
import signal
import subprocess
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import numba_cache
import numpy as np
import pytest
import torch

numba_cache.install()  # before anything imports Numba
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Where another process is busy, PyTorch's threads wait for one another by spinning: the interpreter's process is.
torch.set_num_threads(1)


def pytest_configure(config):
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as for a script's job in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "interpreted: runs in Triton's interpreter, in the process that test_triton_interpreter.py starts"
    )


LONG = ("test_triton_interpreter.py", "test_gpu_steps.py", "test_resuming.py", "test_documentation.py")
"""Files that take a process longest: begun first, none of them is left alone at the end."""


def pytest_collection_modifyitems(items):
    """Triton decides at import whether kernels are interpreted, for the whole process."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    for item in items:
        if bool(item.get_closest_marker("interpreted")) != INTERPRETED:
            reason = "is not for the interpreter" if INTERPRETED else "test_triton_interpreter.py runs it"
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish(session):
    """Tests of one module may be work for another process, which begins before the first test.

    Not where pytest-xdist has two processes anyway: each of them would begin it.
    """
    if not session.config.option.collectonly and not hasattr(session.config, "workerinput"):
        for item in session.items:
            if item.name == "test_in_the_interpreter":
                item.module.start_early(session)


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """Where a sentence is wrapped depends on the length of the temporary folder's name, and matters to no test."""
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Uninitialised floating-point tensors hold NaN, so that reading one by mistake shows.

    Not `numpy.empty`: Numba knows that function by its identity and compiles on first use, inside a test.
    """

    def poisoned(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            if tensor.is_floating_point() and type(tensor) is torch.Tensor:  # not a pretended GPU's: it counts
                tensor.detach().fill_(torch.nan)  # detached: a leaf that requires gradients refuses to be written to
            return tensor

        return made

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


def _in_process(work, rank, size, folder):
    torch.set_num_threads(1)  # a forked process has no threads of its parent's, and OpenMP would wait for them
    try:
        meeting = f"file://{folder / 'meeting'}"
        torch.distributed.init_process_group("gloo", init_method=meeting, world_size=size, rank=rank)
        result = work(rank)
        torch.save(result, folder / f"{rank}.pt")
        torch.distributed.destroy_process_group()
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)  # without what pytest does at its end


@pytest.fixture
def run_processes(tmp_path_factory):
    """`run_processes(work, size)`: call `work(rank)` in as many processes joined by gloo; what each returned.

    Forked, so that nothing is imported or compiled again.
    """
    if torch.cuda.is_available():
        pytest.skip("processes with CUDA can't be forked")

    def run(work, size=2):
        folder = tmp_path_factory.mktemp("processes")
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=_in_process, args=(work, r, size, folder)) for r in range(size)]
        for process in processes:
            process.start()
        late, latest = False, time.monotonic() + 600  # seconds: a loaded machine is slow, a deadlock is for ever
        while any(process.is_alive() for process in processes):
            for process in processes:
                process.join(0.02)
            late = time.monotonic() > latest
            if late or any(process.exitcode for process in processes):  # the others would wait for it
                for process in processes:
                    process.terminate()
        assert not late, "the processes wait for one another"
        failures = [path.read_text() for path in sorted(folder.glob("*.txt"))]
        assert not failures, "\n".join(failures)
        assert not any(process.exitcode for process in processes), [process.exitcode for process in processes]
        return [torch.load(folder / f"{r}.pt") for r in range(size)]

    return run


class TritonBuild(NamedTuple):
    """What a kernel takes of a GPU; `spilled` and `shared` in bytes, `ptx` empty for an AMD GPU."""

    registers: int
    spilled: int
    shared: int
    ptx: str


def _compiled(kernel, types, constants, target, num_warps):
    """The kernel as Triton compiles it for a target; `types` and `constants` as for `triton_build`."""
    import triton
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name][0] == "*"}
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=target, options={"num_warps": num_warps})


@pytest.fixture(params=[90, pytest.param(80, marks=pytest.mark.slow), pytest.param(120, marks=pytest.mark.slow)])
def capability(request):
    """Of the GPUs that kernels are built for: H100 and H200, A100, RTX 50. A build takes a second or more."""
    return request.param


@pytest.fixture(scope="session")
def triton_build():
    """`triton_build(kernel, types, constants, capability, num_warps)`: a kernel built for a GPU that is not there.

    `types` names the type of each argument that is not constant; pointers count as aligned, as PyTorch's are.
    """
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    cuobjdump = Path(inspect.getfile(triton)).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

    def build(kernel, types, constants, capability, num_warps=1):
        compiled = _compiled(kernel, types, constants, GPUTarget("cuda", capability, 32), num_warps)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            command = [cuobjdump, "-res-usage", file.name]
            usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
        assert found, usage
        registers, stack, local = map(int, found.groups())
        print(f"{kernel.__name__} {constants} sm_{capability}: {registers} registers, {stack + local} bytes spilled")
        return TritonBuild(registers, stack + local, compiled.metadata.shared, compiled.asm["ptx"])

    return build


@pytest.fixture(scope="session")
def amd_build():
    """`amd_build(kernel, types, constants, architecture, lanes)`: the same for an AMD GPU, with one wavefront."""
    pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    def build(kernel, types, constants, architecture, lanes):
        compiled = _compiled(kernel, types, constants, GPUTarget("hip", architecture, lanes), 1)
        usage = {}
        for name in ("vgpr_count", "private_segment_fixed_size", "wavefront_size"):
            (usage[name],) = map(int, re.findall(rf"\.{name}:\s*(\d+)", compiled.asm["amdgcn"]))
        print(f"{kernel.__name__} {constants} {architecture}: {usage}")
        assert usage["wavefront_size"] == lanes
        return TritonBuild(usage["vgpr_count"], usage["private_segment_fixed_size"], compiled.metadata.shared, "")

    return build


@pytest.fixture(scope="session")
def expected_ray():
    """`expected_ray(camera, row, column)`: origin and direction [3] of a pixel's ray, from closed forms."""
    return _expected_ray


def _opencv(point, k):
    x, y = point
    r2 = x * x + y * y
    d = 1 + k[0] * r2 + k[1] * r2**2 + k[2] * r2**3 + k[3] * r2**4
    u = x * d + 2 * k[4] * x * y + k[5] * (r2 + 2 * x * x)
    return np.array([u, y * d + k[4] * (r2 + 2 * y * y) + 2 * k[5] * x * y])


def _aria(point, k):
    """https://facebookresearch.github.io/projectaria_tools/docs/tech_insights/camera_intrinsic_models"""
    theta = math.hypot(*point)
    x, y = np.asarray(point) * (1 + sum(k[i] * theta ** (2 * i + 2) for i in range(6)))
    r2 = x * x + y * y
    u = x + (2 * x * x + r2) * k[6] + 2 * x * y * k[7] + k[8] * r2 + k[9] * r2 * r2
    return np.array([u, y + (2 * y * y + r2) * k[7] + 2 * x * y * k[6] + k[10] * r2 + k[11] * r2 * r2])


def _expected_ray(camera, row, column):
    """Origin and direction in the scene of one pixel's ray."""
    from nerfstudio.cameras.cameras import CameraType
    from scipy.optimize import fsolve

    kind = CameraType(int(camera.camera_type))
    k = None if camera.distortion_params is None else camera.distortion_params.reshape(-1).double().numpy()
    u, v = (column + 0.5 - camera.cx.item()) / camera.fx.item(), (row + 0.5 - camera.cy.item()) / camera.fy.item()
    origin = np.zeros(3)
    if kind in (CameraType.PERSPECTIVE, CameraType.FISHEYE, CameraType.FISHEYE624):
        forward = _aria if kind is CameraType.FISHEYE624 else _opencv
        x, y = u, v
        if k is not None:
            x, y = fsolve(lambda point: forward(point, k) - (u, v), (u, v), xtol=1e-12)
        direction = np.array([x, -y, -1.0])
        if kind is not CameraType.PERSPECTIVE:
            theta = math.hypot(x, y)
            toward = np.array([x, -y]) / theta if theta > 0 else np.zeros(2)
            direction = np.array([*(math.sin(theta) * toward), -math.cos(theta)])
    elif kind is CameraType.ORTHOPHOTO:
        origin, direction = np.array([u, -v, 0.0]), np.array([0.0, 0.0, -1.0])
    else:
        right = math.pi * u * (0.5 if kind in (CameraType.VR180_L, CameraType.VR180_R) else 1.0)
        up = math.pi / 2 - math.pi * (v + 0.5)
        direction = np.array([math.cos(up) * math.sin(right), math.sin(up), -math.cos(up) * math.cos(right)])
        eye = {"L": -0.032, "R": 0.032}.get(kind.name[-1], 0.0)
        if kind in (CameraType.VR180_L, CameraType.VR180_R):
            origin = np.array([eye, 0.0, 0.0])
        elif kind is not CameraType.EQUIRECTANGULAR:
            origin = eye * np.array([math.cos(right), 0.0, math.sin(right)])  # to the right of where the ray points
    pose = camera.camera_to_worlds.reshape(3, 4).double().numpy()
    direction = pose[:, :3] @ (direction / np.linalg.norm(direction))
    return pose[:, :3] @ origin + pose[:, 3], direction / np.linalg.norm(direction)
