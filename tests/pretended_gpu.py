"""Runs code as on a GPU that is not there, and counts what would make the host wait for it.

Inside `pretended_gpu()`, a tensor that is moved to "cuda" says that it is there and computes on the CPU. Operations on
it are refused what a GPU refuses (operands on different devices, `numpy()`), and are counted: every kernel that would
be launched, and every place where the host would wait. It waits for a value that it reads (`int`, `bool`, `tolist`),
for a size that only the GPU knows (`nonzero`, an index by a mask), and for a copy between the two memories, unless that
is asynchronous. Triton's kernels are not run: stand-ins write results of the right shape (`stand_ins.py`).

A host that waits for an event of an earlier step (`clear` begins a new one) is not counted: it is a step ahead.

It does not see races, alignment, the layout of results, or how long anything takes. One operation of PyTorch counts as
one kernel, although a sort or a sum may be several.
"""

import collections
import contextlib
import sys
import traceback
from dataclasses import dataclass, field

import stand_ins
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda", 0)
OURS = ("/raygauss_ns/", "/hardmine_ns/", "/ns_support/", "/nerfstudio/", "/gsplat/", "/pytorch_msssim/", "/optim/")
NO_KERNEL = {
    "view", "_unsafe_view", "expand", "permute", "transpose", "t", "slice", "select", "unsqueeze", "squeeze",
    "detach", "alias", "split", "split_with_sizes", "unbind", "as_strided", "reshape", "_reshape_alias",
    "diagonal", "unfold", "narrow", "lift", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty",
    "new_empty_strided", "_local_scalar_dense", "set_", "resize_", "_has_same_storage_numel",
}  # fmt: skip
READS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "unique_consecutive",
    "is_nonzero", "equal", "linalg_eigh", "_linalg_eigh", "_linalg_check_errors", "linalg_pinv",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# Their operands on the CPU are scalars, or are dealt with below.
MAY_MIX = INDEXING | {"copy_", "_local_scalar_dense", "_fused_adam_", "_foreach_copy_"}


@dataclass
class Counts:
    """What happened since the last `clear`."""

    waits: collections.Counter = field(default_factory=collections.Counter)
    """How often the host would have waited: by what for and where."""
    kernels: collections.Counter = field(default_factory=collections.Counter)
    """How often each was launched; those of Triton by "triton " and their name."""
    origins: collections.Counter = field(default_factory=collections.Counter)
    """How many were launched by each module; "backward of" those that differentiate what a module has computed."""

    def clear(self):
        """Begin to count, for instance of a step."""
        self.cleared += 1
        self.waits.clear()
        self.kernels.clear()
        self.origins.clear()

    cleared: int = 0

    def launch(self, name):
        self.kernels[name] += 1
        self.origins[_origin()] += 1

    def wait(self, what):
        self.waits[f"{what} at {_place()}"] += 1

    def __str__(self):
        most = ", ".join(f"{count} {name}" for name, count in self.kernels.most_common(25))
        waits = [f"{count} x {place}" for place, count in self.waits.items()]
        origins = [f"{count} {origin}" for origin, count in self.origins.most_common()]
        lines = [f"{self.waits.total()} waits:", *waits, f"{self.kernels.total()} kernels: {most}", *origins]
        return "\n".join(lines)


_counts = Counts()


def _place():
    """The innermost lines of ours (or of a library's that waits by itself) that led here."""
    frames = [frame for frame in traceback.extract_stack() if any(part in frame.filename for part in OURS)]
    return " < ".join(f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno}" for frame in frames[:-4:-1])


def _origin():
    """The innermost module of ours that a kernel is launched from; in the backward pass, that of what it belongs to.

    PyTorch notes where an operation was called only while it is asked to detect anomalies.
    """
    node = torch._C._current_autograd_node()
    if node is not None and "traceback_" in node.metadata:
        for line in reversed("".join(node.metadata["traceback_"]).split("\n")):
            if any(part in line for part in OURS):
                return f"backward of {'/'.join(line.split(chr(34))[1].split('/')[-2:])}"
    frame = sys._getframe(1)
    while frame is not None and not any(part in frame.f_code.co_filename for part in OURS):
        frame = frame.f_back
    return "elsewhere" if frame is None else "/".join(frame.f_code.co_filename.split("/")[-2:])


class OnGpu(torch.Tensor):
    """Wraps the tensor of the CPU that does its work. C++ takes it for one of the CPU, Python for one of the GPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device="cpu",
        )
        self.inner = inner
        return self

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self):
        return f"OnGpu({list(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo):
        return OnGpu(self.inner.detach().clone()).requires_grad_(self.requires_grad)

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def data_ptr(self):
        return self.inner.data_ptr()

    def tolist(self):
        _counts.wait("tolist")
        return self.inner.detach().tolist()

    def cpu(self, *args, **kwargs):
        return self.to("cpu")

    def cuda(self, *args, **kwargs):
        return self

    def is_pinned(self, *args, **kwargs):
        return False

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees the operations that make a tensor on the GPU from none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _inner(value):
    return value.inner if isinstance(value, OnGpu) else value


def _run(func, args, kwargs):
    """One operation of PyTorch: counted, computed on the CPU, its results wrapped."""
    name = func._schema.name.split("::")[1]
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
    others = [tensor for tensor in tensors if not isinstance(tensor, OnGpu)]
    device = kwargs.get("device")
    device = None if device is None else torch.device(device)
    if not ours and (device is None or device.type != "cuda"):
        return func(*args, **kwargs)
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    if name == "_to_copy" and device is not None:
        if ours and device.type == "cpu":
            _counts.wait("copy to the host")
            return func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if not ours and not _asynchronous(others[0], kwargs.get("non_blocking", False)):
            _counts.wait("copy from the host")
    _note_reads(name, args, kwargs, ours, others)
    if name not in NO_KERNEL:
        _counts.launch(name)
    found = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if name == "_local_scalar_dense":
        return found
    known = {id(tensor.inner): tensor for tensor in ours}  # what is written in place is handed back as it came

    def wrapped(value):
        if type(value) is not torch.Tensor:
            return value
        return known[id(value)] if id(value) in known else OnGpu(value)

    return tree_map(wrapped, found)


def _note_reads(name, args, kwargs, ours, others):
    """Count what the host would wait for; raises what PyTorch raises for operands of both devices."""
    large = [tensor for tensor in others if tensor.dim() > 0 and tensor.numel() > 0]
    if ours and large:
        if name not in MAY_MIX or (name in INDEXING and not isinstance(args[0], OnGpu)):
            shapes = [list(tensor.shape) for tensor in large]
            raise RuntimeError(f"{name}: expected all tensors on cuda:0, got {shapes} on the cpu at {_place()}")
        asked = kwargs.get("non_blocking", len(args) > 2 and args[2])
        if name == "copy_" and not any(_asynchronous(tensor, asked) for tensor in args[:2]):
            _counts.wait("copy between host and GPU")
        if name in INDEXING:
            _counts.wait("copy of an index from the host")
    if name in READS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        _counts.wait(name)
    if name in INDEXING:
        indices = [index for index in args[1] if isinstance(index, torch.Tensor)]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            _counts.wait(f"{name} by a mask")


def _asynchronous(source, asked):
    return bool(asked) and getattr(source, "pretends_to_be_pinned", False)


def _pin(tensor, *args, **kwargs):
    pinned = tensor.clone()
    pinned.pretends_to_be_pinned = True
    return pinned


def _moved(to):
    """`Tensor.to`, which C++ would take for a move within the CPU."""

    def moved(tensor, *args, **kwargs):
        if args and isinstance(args[0], torch.Tensor):
            args, kwargs = (), kwargs | {"device": args[0].device, "dtype": args[0].dtype}
        device = kwargs.pop("device", None)
        if args and isinstance(args[0], (str, torch.device)):
            device, args = args[0], args[1:]
        device = None if device is None else torch.device(device)
        rest = bool(args or any(value is not None for name, value in kwargs.items() if name != "non_blocking"))
        if isinstance(tensor, OnGpu) and device is not None and device.type == "cpu":
            _counts.wait("copy to the host")
            inner = tensor.inner.detach()
            return to(inner, *args, **kwargs) if rest else inner.clone()
        if isinstance(tensor, OnGpu):
            return to(tensor, *args, **kwargs) if rest else tensor
        if device is not None and device.type == "cuda" and not tensor.requires_grad:  # in any thread
            if _asynchronous(tensor, kwargs.get("non_blocking", False)):
                _counts.launch("copy from the host")
            else:
                _counts.wait("copy from the host")
            return OnGpu((to(tensor, *args, **kwargs) if rest else tensor).clone())
        return to(tensor, *args, **kwargs) if device is None else to(tensor, device, *args, **kwargs)

    return moved


def _module_moved(to):
    """`Module.to`: parameters and buffers of the GPU instead of the CPU's."""

    def moved(module, *args, **kwargs):
        device = kwargs.get("device", args[0] if args else None)
        if not isinstance(device, (str, torch.device)) or torch.device(device).type != "cuda":
            return to(module, *args, **kwargs)
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None and not isinstance(parameter, OnGpu):
                    part._parameters[name] = torch.nn.Parameter(OnGpu(parameter.data), parameter.requires_grad)
            for name, buffer in part._buffers.items():
                if buffer is not None and not isinstance(buffer, OnGpu):
                    part._buffers[name] = OnGpu(buffer)
        return module

    return moved


class _Launch:
    """In the place of a Triton kernel."""

    def __init__(self, kernel, work):
        self.kernel, self.work, self.arg_names = kernel, work, kernel.arg_names

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            name = self.kernel.__name__
            _counts.launch(f"triton {name}")
            named = dict(zip(self.arg_names, args, strict=False)) | kwargs
            for argument, value in named.items():
                if isinstance(value, torch.Tensor) and not isinstance(value, OnGpu) and value.numel():
                    raise ValueError(f"{name} was given {argument} {list(value.shape)} on the cpu at {_place()}")
            with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
                self.work(grid, {argument: _inner(value) for argument, value in named.items()})

        return launch


class _Event:
    """In the place of `torch.cuda.Event`: a host that waits for what was launched in an earlier step is not counted."""

    recorded = None

    def record(self):
        self.recorded = _counts.cleared

    def synchronize(self):
        if self.recorded == _counts.cleared:
            _counts.wait("event of the same step")


@contextlib.contextmanager
def pretended_gpu(monkeypatch):
    """In here there is a GPU; yields the `Counts`."""
    with monkeypatch.context() as patch:
        for module, name, work in stand_ins.all_of_them():
            patch.setattr(module, name, _Launch(getattr(module, name), work))
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "Event", _Event)
        patch.setattr(torch.cuda, "get_device_name", lambda device: "none")
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        patch.setattr(torch.Tensor, "to", _moved(torch.Tensor.to))
        patch.setattr(torch.Tensor, "pin_memory", _pin)
        patch.setattr(torch.nn.Module, "to", _module_moved(torch.nn.Module.to))
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            with _Mode(), torch.autograd.set_detect_anomaly(True, check_nan=False):
                _counts.clear()
                yield _counts
        finally:
            torch._C._set_only_lift_cpu_tensors(False)
