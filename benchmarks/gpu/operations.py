"""What a step of training has a device do, and an ESTIMATE of how long that takes.

A view or an empty tensor (:data:`NOTHING`) is nothing. Everything else is one kernel, as are a norm, each
`torch._foreach_*` and `torch._fused_*`, and an operation of moslora's own; attention of unequal rows is several
(:data:`KERNELS`). A kernel reads each of its inputs once and writes each of its outputs once, but for :data:`WRITTEN`,
:data:`CHOSEN` and :data:`PLACED`. Then

    time of a kernel  = max(operations of its products · unevenness / (share · peak), bytes / (share · bandwidth),
                            random numbers / rate, shortest kernel)
    time of the step  = max(Σ time of its kernels, time of the host)

where a product is uneven as far as its tiles leave multiprocessors idle (:func:`unevenness`), and the share of the
bandwidth is less for products with a short side and for what torch does not vectorise. It is a range, as the shares
are (:data:`ACHIEVED`). Not seen: kernels that find their inputs in the device's cache; and where
the host waits for the device, what that costs, as the next step's forward pass is on its way by then.
"""

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.timing import PART

PRODUCTS = "frozen products"
OUTPUT = "output layer, loss"
SUMS = "sums"
UPDATE = "clip, optimizer"
REST = "rest"
IDLE = "idle"
PARTS = {
    PRODUCTS: None,
    OUTPUT: r"training/objective|kernels/vocabulary|transformers/loss/|utils/operations|loop\.py:accumulate",
    "adapters": r"moslora/adapters/|kernels/(recompute|dropout|adapter)|peft/tuners/",
    "norms": r"RMSNorm|kernels/norm|moslora\.\w*norm",
    "RoPE": r"[Rr]otary|rotate_half|kernels/rope|moslora\.\w*(rope|turn)",
    "attention": r"kernels/attention|rows\.py:Group|Attention\.forward|(sdpa|flash)_attention|moslora\.\w*atten",
    "SwiGLU": r"GatedMLP|SwiGLU|LlamaMLP|SiLU|kernels/mlp|moslora\.\w*(glu|silu)",
    SUMS: r"DecoderLayer",
    UPDATE: r"torch/optim/|clip_grad|training/loop",
    REST: r"Embedding|data/steps|masking_utils|LlamaModel",
}
"""Parts of a step, and places in the code, as file:function, or operations that belong to them; the innermost place
decides. A product with a frozen weight is one wherever it is: of a layer, or of the output layer."""

NOTHING = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}
MULTIPLY = {"mm", "addmm", "bmm", "baddbmm", "_linear_pointwise", "project", "project_backward"}
"""Operations that launch nothing, and products: in place, too. The last two are those of `moslora.kernels.dropped`."""

WRITTEN = {"zero_", "fill_", "bernoulli_", "copy_", "uniform_", "normal_"}
"""Operations that do not read the tensor that they change."""

CHOSEN = {"index_select", "embedding", "gather", "index", "nll_loss_forward"}
"""Operations that read of a tensor only what they return."""

PLACED = {"scatter_", "index_add_", "index_put_", "index_copy_"}
"""Operations that change a tensor only where the others belong."""

RANDOM = {"bernoulli_", "uniform_", "normal_", "native_dropout", "project", "project_backward"}
"""Operations that draw a random number for every entry of the largest of their tensors."""

CAST = {"add", "sub", "mul", "div", "addcmul"}
"""Operations that take entries of any dtypes. Of a bool and a number torch's kernel on a GPU loads and casts one entry
at a time (``gpu_kernel_impl`` in its ``CUDALoops.cuh``); it vectorises one dtype, and float32 with 16 bits."""

SHORT = 128
"""The longest short side of a product, such as an adapter's rank."""

KERNELS = {"_flash_attention_backward": 5, "project": 2}
"""Those of the gradient of attention of unequal rows: Σ_j dO ∘ O, the gradients, that of q in 16 bits, and the sums of
those of k and of v over the heads that share them (torch's ``flash_api.cpp``). Those of the skinny product with
dropout: sums over parts of the columns, and what they add up to."""


class Operation(NamedTuple):
    """One or several kernels; ``flops`` are those of its products, whose factors are of ``dtype``."""

    part: str
    name: str
    flops: float
    bytes: float
    dtype: torch.dtype
    slow: bool = False  # whether it is of those that reach less of the bandwidth
    drawn: int = 0  # random numbers
    kernels: int = 1
    shape: tuple[int, int] = (0, 0)  # of the result of a product without a short side


class Ledger:
    """The kernels of a step, and how often the host waits for them. ``model`` is the one whose frozen weights count."""

    def __init__(self, model: nn.Module) -> None:
        self.done: list[Operation] = []
        self.waits = 0
        self.device = next(model.parameters()).device.type
        output: Any = model.get_output_embeddings()  # type: ignore[operator]
        self._weights: dict[int, str] = {}  # storage of a frozen weight: part
        for module in model.modules():
            if isinstance(module, nn.Linear) and not module.weight.requires_grad:
                self._weights[_storage(module.weight)] = PRODUCTS
        self._weights[_storage(output.weight)] = OUTPUT
        self._made_in: dict[int, str] = {}  # number of a node of autograd's graph: part

    def note(self, function: Any, args: Any, found: Any, *, launches: bool, waits: bool) -> None:
        """Takes down an operation, or the name of a kernel, with what it reads and returns."""
        node = torch._C._current_autograd_node()
        part = self.part(function, tensors(args))
        if node is None:  # its gradient, whose node was the last to be made, belongs to the same part
            self._made_in.setdefault(torch._C._autograd._get_sequence_nr() - 1, part)
        if waits:
            self.waits += 1
        if launches:
            self.done.append(described(function, args, found, part=part))

    def part(self, function: Any, read: Sequence[Tensor]) -> str:
        if operation(function).rstrip("_") in MULTIPLY:
            for x in read:
                if x.is_mkldnn:  # a packed copy of a layer's weight
                    return PRODUCTS
                if _storage(x) in self._weights:
                    return self._weights[_storage(x)]
        part = _part_of(str(function)) or _part_of_place()
        if part:
            return part
        node = torch._C._current_autograd_node()
        if node is None:
            return REST
        made_in = self._made_in.get(node._sequence_nr(), REST)
        if operation(function) in ("add", "add_") and made_in != "RoPE":
            return SUMS  # what autograd adds up where a tensor was used more than once
        return made_in


def described(function: Any, args: Any, found: Any, *, part: str) -> Operation:
    """Operation ``function`` with its positional and named ``args`` and its result ``found``, as a ledger records
    it."""
    name = operation(function)
    read = tensors(args)
    written = tensors(found)
    is_slow = slow(name, [*read, *written])
    shape = (0, 0)
    if name.rstrip("_") in MULTIPLY and not is_slow:
        columns = written[0].shape[-1]
        shape = (written[0].numel() // columns, columns)
    return Operation(
        part=part,
        name=name,
        flops=flops(function, args, found),
        bytes=moved(name, read, written),
        dtype=read[0].dtype if read else torch.float32,
        slow=is_slow,
        drawn=max(x.numel() for x in (*read, *written)) if name in RANDOM else 0,
        kernels=KERNELS.get(name, 1),
        shape=shape,
    )


class Watched(TorchDispatchMode):
    """Takes down in ``ledger`` what runs on a device that is there, and names the parts to torch's profiler."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self.device = ledger.device

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = kwargs or {}
        arguments = (args, keywords)
        with record_function(f"{PART}{self.ledger.part(function, tensors(arguments))}"):
            found = function(*args, **keywords)
        name = operation(function)
        devices_read = {x.device.type for x in tensors(arguments)}
        devices_written = {x.device.type for x in tensors(found)}
        launches = not function.is_view and name not in NOTHING and self.device in devices_read | devices_written
        to_host = self.device != "cpu" and self.device in devices_read and "cpu" in devices_written
        waits = to_host or name == "_local_scalar_dense"
        self.ledger.note(function, arguments, found, launches=launches, waits=waits)
        return found


def operation(function: Any) -> str:
    """Name of an operation, without namespace and overload."""
    first, *others = str(function).split(".")
    return others[0] if len(others) == 2 else first


def _storage(x: Tensor) -> int:
    return int(getattr(x, "held", x).untyped_storage()._cdata)


@cache
def _part_of(place: str) -> str | None:
    for part, places in PARTS.items():
        if places and re.search(places, place):
            return part
    return None


def _part_of_place() -> str | None:
    """Part of the innermost place in the code; in the backward pass, within the node of autograd's graph."""
    frame = sys._getframe(1).f_back
    while frame is not None:
        function = frame.f_code.co_qualname
        if function in ("_engine_run_backward", "BackwardCFunction.apply"):
            return None
        part = _part_of(f"{frame.f_code.co_filename}:{function}")
        if part:
            return part
        frame = frame.f_back
    return None


def tensors(value: Any) -> list[Tensor]:
    """Tensors in ``value``, each once."""
    by_id = {id(leaf): leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)}
    return list(by_id.values())


def flops(function: Any, args: Any, found: Any) -> float:
    """Number of operations: 2 · m · n · k of a product, half of that for causal attention, 0 for all others."""
    name = str(function)
    read = tensors(args)
    backward = "backward" in name
    if name.endswith("scaled_dot_product_attention"):
        query, key, value = (x.shape for x in read[:3])
        if backward:
            return sdpa_backward_flop_count(read[-1].shape, query, key, value) / 2
        return sdpa_flop_count(query, key, value) / 2
    if name.startswith("aten._flash_attention"):  # of rows end to end, as if they were of one length
        ends = next(x for x in read if x.dtype == torch.int32)  # of the rows, behind a zero
        products = 5 if backward else 2
        return products * read[0].numel() * len(read[0]) / (len(ends) - 1)
    if name.startswith("moslora.project"):
        products = 2 if backward else 1
        return 2.0 * products * max(x.numel() for x in read) * len(read[1])
    if operation(function) == "_linear_pointwise":
        return 2.0 * read[0].numel() * found.shape[-1]
    count = flop_registry.get(getattr(torch.ops.aten, operation(function).rstrip("_"), None))
    if count is None:
        return 0.0
    positional, keywords = args
    counted: float = count(*positional, **keywords, out_val=found)
    return counted / 2 if "attention" in name else counted


def slow(name: str, tensors: Sequence[Tensor]) -> bool:
    """Whether a product has a short side, or a bool meets a number."""
    kind = name.rstrip("_")
    if kind in MULTIPLY:
        return min(min(x.shape[-2:]) for x in tensors if x.dim() > 1) <= SHORT
    dtypes = {x.dtype for x in tensors}
    return kind in CAST and torch.bool in dtypes and len(dtypes) > 1


def moved(name: str, read: Sequence[Tensor], written: Sequence[Tensor]) -> float:
    """Bytes of all inputs and outputs, each counted once; :data:`CHOSEN`, :data:`PLACED` and :data:`WRITTEN` differ."""
    inputs = [size(x) for x in read]
    outputs = [size(x) for x in written]
    if name in CHOSEN:
        return 2.0 * sum(outputs)
    if name in PLACED:
        return 3.0 * max(inputs[1:])
    if name in WRITTEN:
        return float(sum(inputs))
    if name == "_flash_attention_backward":  # q's gradient in float32, added to and read; k's and v's of each head too
        outputs.append(10 * outputs[0])
    return float(sum(inputs) + sum(outputs))


def size(x: Tensor) -> int:
    """Bytes of a tensor in memory, where an expanded dimension has one entry."""
    if x.is_mkldnn:
        return x.numel() * x.itemsize
    return x.itemsize * math.prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride)


@dataclass(frozen=True)
class Device:
    """Peaks: operations a second of bfloat16 products, not sparse, and of float32 ones; bytes a second."""

    bfloat16: float
    float32: float
    bandwidth: float
    multiprocessors: int


DEVICES = {
    "H100": Device(989e12, 67e12, 3.35e12, 132),  # SXM: H100 datasheet, half of the figure with sparsity
    "H200": Device(989e12, 67e12, 4.8e12, 132),  # SXM: H200 datasheet, likewise
    "A100": Device(312e12, 19.5e12, 2.039e12, 108),  # 80 GB, SXM: A100 datasheet
    "RTX 4090": Device(165.2e12, 82.6e12, 1.008e12, 128),  # Ada GPU architecture whitepaper, float32 accumulation
}


TILES = {(128, 256): 1.0, (128, 128): 0.9, (64, 128): 0.75}
"""Entries of a product that a multiprocessor computes at a time, and its speed then, of that with the largest: cuBLAS
has tiles of these sizes; the shares are an assumption."""


def unevenness(rows: int, columns: int, multiprocessors: int) -> float:
    """Time of a product, of that if its tiles kept all multiprocessors busy: by the best of :data:`TILES`.

    On an H100 q, o and down of 1,749 tokens are 224 tiles, in two waves of 132: 1.21, with what the last tiles lack.
    """
    found = []
    for (height, width), speed in TILES.items():
        tiles = math.ceil(rows / height) * math.ceil(columns / width)
        waves = math.ceil(tiles / multiprocessors)
        found.append(waves * multiprocessors * height * width / (rows * columns) / speed)
    return min(found)


MEASURED_PRODUCT = 798e12
"""Operations a second of an 8192 × 8192 × 8192 product in bfloat16, on random data, on an H100 80GB HBM3 (torch
2.11.0+cu130)."""

MEASURED_COPY = 3.0e12
"""Bytes a second, read and written, of a copy on the same GPU."""


@dataclass(frozen=True)
class Achieved:
    """Shares and rates: at the fast end measured for large products and copies, otherwise assumptions."""

    products: float  # share of the peak that large products reach, if no multiprocessor is idle
    bandwidth: float  # share of it that kernels reach
    slow: float  # the same of slow ones
    drawn: float  # random numbers a second
    host: float  # the host's time as a share of that on the machine where it was measured
    kernel: float = 3e-6  # seconds of the shortest kernel with the gap before it

    def seconds(self, one: Operation, on: Device) -> float:
        peak = on.float32 if one.dtype == torch.float32 else on.bfloat16
        share = self.slow if one.slow else self.bandwidth
        uneven = unevenness(*one.shape, on.multiprocessors) if all(one.shape) else 1.0
        multiplying = one.flops * uneven / (self.products * peak)
        moving = one.bytes / (share * on.bandwidth)
        return max(multiplying, moving, one.drawn / self.drawn, one.kernels * self.kernel)


H100 = DEVICES["H100"]
PRODUCTS_OF_PEAK = MEASURED_PRODUCT / H100.bfloat16 * unevenness(8192, 8192, H100.multiprocessors)
ACHIEVED = (
    Achieved(PRODUCTS_OF_PEAK, MEASURED_COPY / H100.bandwidth, slow=0.5, drawn=5e11, host=0.4),
    Achieved(0.9 * PRODUCTS_OF_PEAK, 0.72, slow=0.4, drawn=3e11, host=0.9),
)
"""The fast and the slow end of an estimate. At the fast end products and copies are as fast as they were measured; the
slow end assumes a tenth less for products in a row, which heat the GPU, and much less for kernels that do not copy."""


def estimate(seen: Ledger, on: Device, achieved: Achieved, *, tokens: int, host: float = 0) -> dict[str, Any]:
    """Launches, GB, TFLOP and milliseconds of each part and of the step, and the sums that make up the step's time.

    ``host`` is the measured time of the step on the host, in seconds.
    """
    parts = {part: {"launches": 0, "GB": 0.0, "TFLOP": 0.0, "ms": 0.0} for part in (*PARTS, IDLE)}
    for one in seen.done:
        part = parts[one.part]
        part["launches"] += one.kernels
        part["GB"] += one.bytes / 1e9
        part["TFLOP"] += one.flops / 1e12
        part["ms"] += achieved.seconds(one, on) * 1e3
    step = {key: sum(part[key] for part in parts.values()) for key in parts[REST]}
    device = step["ms"]
    host_ms = host * achieved.host * 1e3
    parts[IDLE]["ms"] = max(0.0, host_ms - device)
    step["ms"] += parts[IDLE]["ms"]
    return {
        "parts": parts | {"step": step},
        "step_ms": step["ms"],
        "device_ms": device,
        "host_ms": host_ms,
        "waits": seen.waits,
        "floor_ms": sum(achieved.seconds(one, on) for one in seen.done if one.part in (PRODUCTS, OUTPUT) and one.flops)
        * 1e3,
        "tokens_per_second": tokens / step["ms"] * 1e3,
        "share_of_peak": step["TFLOP"] * 1e15 / step["ms"] / on.bfloat16,
    }
