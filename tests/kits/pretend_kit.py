"""A pretend accelerator: a device beside the CPU, of any build of torch, on which the whole program runs.

Importing this module registers the device, which cannot be undone: only the checks in this folder do, in processes of
their own (`tests/pretend/test_pretend.py` starts them). A tensor of it holds one on the CPU, which computes.

It sees: tensors of two devices in one operation, kernels that only a CPU has, every wait of the host for the device
and where it is caused, how many operations are launched, and a launch by Triton while another device is the current
one. It does not see: what CUDA's kernels themselves demand or return, memory, speed; NF4 and int8, as the weights of
bitsandbytes are of a subclass that a tensor of this device cannot become; several processes, for which it has no NCCL.

With ``PRETEND_DEVICE=1`` in the environment this process has the second of two such devices, and the first stays the
current one until somebody sets another. What is sent to the device's name without an index goes to the first, as torch
does not ask this backend which is current.

With ``held_on`` set to the meta device, its tensors have no data, and models of any size run: see
`benchmarks/gpu/roofline.py`. Every number that the host asks for is then 1.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.nn import functional as F
from torch.optim import optimizer
from torch.utils import _foreach_utils, backend_registration

import flash_kit  # noqa: F401 — computes flash attention
import moslora
from moslora.kernels import attention, liger
from moslora.processes import devices

NAME = "pretend"
PLACE = int(os.environ.get("PRETEND_DEVICE", 0))


class _Event:
    """A place among the operations given to the device."""

    def record(self) -> None:
        _note("record", (), (), launches=False)

    def synchronize(self) -> None:
        _note("synchronize", (), (), launches=False, waits=True)


class _Module(backend_registration._DummyBackendModule):
    """``torch.pretend``, as far as moslora, torch and accelerate ask ``torch.cuda``."""

    current = 0
    Event = _Event

    def device_count(self) -> int:
        return PLACE + 1

    def current_device(self) -> int:
        return self.current

    def set_device(self, device: torch.device) -> None:
        self.current = device.index

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before = self.current
        self.current = device.index
        try:
            yield
        finally:
            self.current = before

    get_device_properties = staticmethod(lambda device=None: SimpleNamespace(total_memory=2**34))
    mem_get_info = staticmethod(lambda device=None: (2**34, 2**34))
    get_device_name = staticmethod(lambda device=None: NAME)
    is_bf16_supported = staticmethod(lambda including_emulation=True: True)
    max_memory_allocated = staticmethod(lambda device=None: 0)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])
    empty_cache = staticmethod(lambda: None)
    synchronize = staticmethod(lambda device=None: _note("synchronize", (), (), launches=False, waits=True))


MODULE = _Module()
backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=MODULE)
DEVICE = torch.device(NAME, PLACE)
"""The device of this process."""

ANOTHER = torch.device(NAME, 1 - PLACE)
"""One that it has nothing to do with."""

torch.autograd.set_multithreading_enabled(False)  # autograd's thread is for the first device alone
SRC = Path(moslora.__file__).parent
aten = torch.ops.aten

COPIES = (aten._to_copy.default, aten.copy_.default)
INDEX = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
TAKE_NUMBERS = (*INDEX, aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor)
"""Beside the pointwise operations those that take a number from the host: a tensor without a dimension."""

EMPTY = (aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.new_empty.default)
FREE = (*EMPTY, aten._unsafe_view.default)
"""Beside the views those that launch nothing."""

held_on = torch.device("cpu")
"""Where the tensors of the device are held."""

WAITING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


@dataclass
class Seen:
    """Operations of the device by name, and waits for it by name and place."""

    operations: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)

    def note(self, function: Any, args: Any, found: Any, *, launches: bool, waits: bool) -> None:
        """An operation, or the name of what :func:`one_kernel` counts, with what it reads and returns."""
        self.operations[str(function)] += launches
        if waits:
            self.waits[f"{function} in {_place()}"] += 1


_watching: list[Any] = []


@contextmanager
def watch(seen: Any = None) -> Iterator[Any]:
    """Collects what the device does within the block, in all threads: in ``seen``, or a :class:`Seen`."""
    if seen is None:
        seen = Seen()
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.remove(seen)


used = set[torch.device]()
"""Devices that have had a tensor."""


class OnDevice(Tensor):
    """A tensor of ``device``. ``held`` is on the CPU; views hold views of it."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> "OnDevice":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        of_inference = held.is_inference()  # which a view of another tensor is not
        with nullcontext() if of_inference == torch.is_inference_mode_enabled() else torch.inference_mode(of_inference):
            made = Tensor._make_wrapper_subclass(cls, held.size(), dtype=held.dtype, device=device, **layout)
        made.held = held
        used.add(device)
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(function, *args, **(kwargs or {}))

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __setitem__(self, place: Any, value: Any) -> None:
        if not isinstance(value, Tensor):  # for CUDA torch makes a tensor of it on the host, and copies that
            value = torch.tensor(value, dtype=self.dtype)
        super().__setitem__(place, value)

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.held!r})"


def each(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """``value`` with ``change`` of every tensor in it."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: each(part, change) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)([each(part, change) for part in value])
    return value


def wrapped(found: Any, given: Iterable[OnDevice], device: torch.device) -> Any:
    """``found`` with tensors of ``device`` around those held: of ``given``, where one holds it, or new ones."""
    by_held = {id(x.held): x for x in given}
    return each(found, lambda held: by_held[id(held)] if id(held) in by_held else OnDevice(held, device))


def compute(function: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation that has come to the device: checked, counted, and left to the CPU."""
    if _is_composed(function):  # in inference mode they come whole
        return function.decompose(*args, **kwargs)
    if function.namespace == "moslora":
        found = getattr(liger, function._opname)(*args, **kwargs)
        _note(function, (args, kwargs), found)
        return found
    there: list[OnDevice] = []
    hosts: list[Tensor] = []

    def held(x: Tensor) -> Tensor:
        if isinstance(x, OnDevice):
            there.append(x)
            return x.held
        hosts.append(x)
        return x

    held_args, held_kwargs = each((args, kwargs), held)
    target = _target(function, args, kwargs, there)
    to_host = target.type == "cpu"
    if "device" in kwargs:
        held_kwargs["device"] = target if to_host else held_on
    if function not in COPIES:
        _refuse(function, target, [x for x in (*there, *hosts) if not _may_be_there(function, x, args, target)])
    reads_number = function == aten._local_scalar_dense.default
    if held_on.type == "meta" and (to_host or reads_number):
        found = _without_data(function, args, kwargs)
    else:
        found = function(*held_args, **held_kwargs)
        if not to_host:
            found = wrapped(found, there, target)
    launches = function not in FREE and not function.is_view
    _note(function, (args, kwargs), found, launches=launches, waits=_waits(function, args, kwargs))
    return found


def _without_data(function: Any, args: Any, kwargs: Any) -> Any:
    """What comes to the host from a device that holds no data."""
    if function == aten._local_scalar_dense.default:
        return torch.ones((), dtype=args[0].dtype).item()
    if function == aten.copy_.default:
        return args[0].fill_(1)
    return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)


@cache
def _is_composed(function: Any) -> bool:
    if function.namespace not in ("aten", "moslora"):
        raise NotImplementedError(f"{function}: only on a CPU")
    has_kernel = partial(torch._C._dispatch_has_kernel_for_dispatch_key, function.name())
    return has_kernel("CompositeImplicitAutograd") and not has_kernel("CPU")


def _target(function: Any, args: Any, kwargs: Any, there: list[OnDevice]) -> torch.device:
    """Where the result is: of what makes a tensor of none, and is told no index, the current device."""
    if function == aten.copy_.default:
        return args[0].device
    named = kwargs.get("device")
    if named is None:
        return there[0].device
    if named.type == "cpu" or named.index is not None:
        return named
    return torch.device(NAME, MODULE.current)


def _may_be_there(function: Any, x: Tensor, args: Any, target: torch.device) -> bool:
    """Besides tensors of the device ``target``: on the host places, and numbers in what is computed entry by entry."""
    if isinstance(x, OnDevice):
        return x.device == target or target.type == "cpu"
    if function in INDEX and any(x is index for index in args[1]):
        return True
    return not x.dim() and (torch.Tag.pointwise in function.tags or function in TAKE_NUMBERS)


def _refuse(function: Any, device: torch.device, others: list[Tensor]) -> None:
    for other in others:
        where = "the CPU" if other.device.type == "cpu" else other.device
        raise RuntimeError(f"{function}: tensors on {device} and on {where}, {tuple(other.shape)}")


def _note(function: Any, args: Any, found: Any, *, launches: bool = True, waits: bool = False) -> None:
    for seen in _watching:
        seen.note(function, args, found, launches=launches, waits=waits)


def _waits(function: Any, args: Any, kwargs: Any) -> bool:
    if function in COPIES:
        return _copy_waits(function, args, kwargs)
    if function in INDEX:
        return _index_waits(function, args)
    if function == aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    return function == aten.equal.default or not WAITING.isdisjoint(function.tags)


def _copy_waits(function: Any, args: Any, kwargs: Any) -> bool:
    """Between host and device, of pageable memory or if nobody asks for a copy that does not block."""
    if function == aten.copy_.default:
        source, target = args[1], args[0].device
    else:
        source, target = args[0], kwargs.get("device")
    if target is None or source.device.type == target.type:
        return False
    non_blocking = kwargs.get("non_blocking") or True in args[2:]
    pageable = source.device.type != NAME and not hasattr(source, "pinned")
    return pageable or not non_blocking


def _index_waits(function: Any, args: Any) -> bool:
    """What is on the host is copied; a mask's entries are counted, unless a number fills them."""
    indices = [index for index in args[1] if index is not None]
    if any(index.device.type == "cpu" for index in indices):
        return True
    masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
    number = function != aten.index.Tensor and args[2].device.type == "cpu"
    if masks and len(masks) == len(indices):
        return not number
    return number or bool(masks)


def _place() -> str:
    """The innermost function of moslora's that is running."""
    frame = sys._getframe().f_back
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(SRC):
            return f"{path.relative_to(SRC)}:{frame.f_lineno} {frame.f_code.co_qualname}"
        frame = frame.f_back
    return "no function of moslora's"


def one_kernel(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function that CUDA computes in one kernel, as well as its gradient, and others compose."""

    def computed(*args: Any, **kwargs: Any) -> Tensor:
        tensors: list[Tensor] = []
        each((args, kwargs), tensors.append)
        there = [x for x in tensors if isinstance(x, OnDevice)]
        if not there:
            return function(*args, **kwargs)
        device = there[0].device
        _refuse(function.__name__, device, [x for x in tensors if x.device != device])

        def of(values: Iterable[Tensor]) -> Tensor:
            values = iter(values)
            others, named = each((args, kwargs), lambda _: next(values))
            return function(*others, **named)

        return _OneKernel.apply(function.__name__, of, *tensors)

    return computed


class _OneKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, of: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        ctx.name = name
        ctx.of = of
        ctx.save_for_backward(*tensors)
        found = OnDevice(of(x.held for x in tensors), tensors[0].device)
        _note(name, tensors, found)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        wanted = ctx.needs_input_grad[2:]
        saved = ctx.saved_tensors  # once: checkpointing computes them again
        held = [x.held.detach().requires_grad_(wants) for x, wants in zip(saved, wanted, strict=True)]
        with torch.enable_grad():
            out = ctx.of(held)
        found = iter(torch.autograd.grad(out, [x for x in held if x.requires_grad], gradient.held))
        gradients = [OnDevice(next(found), gradient.device) if wants else None for wants in wanted]
        _note(f"backward of {ctx.name}", (saved, gradient), gradients)
        return None, None, *gradients


def autocast_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Of what autocast casts on a GPU all that a LLaMA has in another dtype."""
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
        dtype = torch.get_autocast_dtype(NAME)
        return F.linear(*each((x, weight, bias), lambda given: given.to(dtype)))


def by_triton(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A function of Liger's or ours: Triton launches its kernel on the current device, wherever the tensors are."""

    def launched(*given: Any) -> Any:
        where = torch.device(NAME, MODULE.current)
        tensors: list[Any] = []
        each(given, tensors.append)
        _refuse(kernel.__name__, where, [x for x in tensors if x.device != where])
        return wrapped(kernel(*each(given, lambda x: x.held)), tensors, where)

    return launched


def swiglu_forward(gate: Tensor, up: Tensor) -> tuple[Tensor, ...]:
    return gate, up, F.silu(gate) * up


def swiglu_backward(gate: Tensor, up: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    of_gate = gradient * up * aten.silu_backward(torch.ones_like(gate), gate)
    of_up = gradient * F.silu(gate)
    return gate.copy_(of_gate), up.copy_(of_up)


def rope_forward(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    """In their places, ``(1, heads, T, size)``; angles ``(1, T, size)``."""
    for x in (q, k):
        first, second = x.chunk(2, dim=-1)
        x.copy_(x * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None])
    return q, k, cos, sin


def rope_backward(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    return rope_forward(q, k, cos, -sin)


def project(x: Tensor, a: Tensor, h: Tensor, seed: float, p: float) -> None:
    h.copy_(x * mask(x, seed, p) @ a.T)


def project_backward(g: Tensor, a: Tensor, x: Any, of_x: Any, d_a: Any, d_x: Any, seed: float, p: float) -> None:
    if x is not None:
        d_a.copy_(g.flatten(0, -2).T @ (x * mask(x, seed, p)).flatten(0, -2))
    if of_x is not None:
        d_x.copy_((g @ a) * mask(of_x, seed, p) + of_x)


def mask(x: Tensor, seed: float, p: float) -> Tensor:
    """The one that Triton draws from a seed, of ones where no tensor has data."""
    from moslora.selfcheck.pieces import (
        kept_by_philox,  # loads what starts autograd's threads, before there is a device
    )

    if x.is_meta:
        return torch.ones_like(x)
    return kept_by_philox(x.shape, seed, p).to(x.dtype)


def _pin(tensor: Tensor) -> Tensor:
    pinned = tensor.clone()
    pinned.pinned = True
    return pinned


_every = torch.library.Library("_", "IMPL")
_aten = torch.library.Library("aten", "IMPL")
_every.fallback(compute, "PrivateUse1")  # what makes a tensor of none
_aten.impl("copy_", partial(compute, aten.copy_.default), "PrivateUse1")  # of torch.tensor, which passes by the class
# A kernel of the CPU and CUDA, which others compose.
_aten.impl("silu_backward", partial(compute, aten.silu_backward.default), "PrivateUse1")
_every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
_aten.impl("linear", autocast_linear, "AutocastPrivateUse1")
F.scaled_dot_product_attention = one_kernel(F.scaled_dot_product_attention)
F.rms_norm = one_kernel(F.rms_norm)
Tensor.pin_memory = _pin  # needs a driver
for _types in (optimizer._foreach_supported_types, _foreach_utils._foreach_supported_types):
    _types.append(OnDevice)
torch.backends.cuda.is_flash_attention_available = lambda: True
_kernel = attention.kernel
attention.kernel = lambda device, dtype, size: _kernel(device, dtype, 64)  # the tests' models have other heads
for _name, _kernels in {
    "liger_kernel.ops.swiglu": (swiglu_forward, swiglu_backward),
    "liger_kernel.ops.rope": (rope_forward, rope_backward),
    "moslora.kernels.dropped": (project, project_backward),
}.items():
    sys.modules[_name] = ModuleType(_name)
    for _one in _kernels:
        setattr(sys.modules[_name], _one.__name__, by_triton(_one))
PartialState.default_device = property(lambda _: DEVICE)
devices.GPU = NAME
devices.local_rank = lambda: PLACE


def on_cpu(compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The same without the device."""
    os.environ["ACCELERATE_USE_CPU"] = "1"
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return compute(*args, **kwargs)
    finally:
        del os.environ["ACCELERATE_USE_CPU"]
        AcceleratorState._reset_state(reset_partial_state=True)
