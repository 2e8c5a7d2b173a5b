"""An ESTIMATE of a training step on a GPU, made without one: what each operation multiplies and moves.

    python benchmarks/roofline.py                        # LLaMA-3-8B's shapes: moslora, lora, and PEFT's LoRA

The real step runs on the pretend accelerator of `tests/pretend`, whose tensors hold no data: 16 rows of about 110
tokens, recipe `llama3-8b`, forward, backward, clip, update. Then

    time of an operation = max(operations of its products / (achieved share · peak),
                               bytes / (achieved share · bandwidth),
                               the shortest time between two kernels)
    time of the step     = max(Σ time of its operations, host's time) + waits · time of a wait

The host's time is launches · time of a launch on the host.

What counts, here :data:`LAUNCH_NOTHING` and the functions below it say how: views and empty tensors launch nothing. All
else is one kernel, as are a norm, an attention, what `torch._foreach_*` and `torch._fused_*` do, and an operation of
moslora's own. A kernel reads each of its inputs once and writes each of its outputs once.
"""

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from pretend import accelerator  # isort: skip

from contestants import our_parts, padded, with_lora
from gpu_race import adapted, lengths, random_model, step_rows
from moslora.base.shapes import SHAPES
from moslora.data.steps import StepPlan
from moslora.recipe import load_recipe
from written import markdown

STEP = 8
"""Of `gpu_race.step_rows`, the one whose tokens, 1,749, and padding are most like those of the first thirty's mean."""

PRODUCTS, OUTPUT, UPDATE, SUMS = "products, frozen layers", "output layer, loss", "optimizer, clip", "sums"
PARTS = {
    PRODUCTS: None,
    OUTPUT: r"training/objective\.py|kernels/vocabulary\.py|transformers/loss/|accelerate/utils/operations|training/loop\.py:accumulate",
    "adapters": r"moslora/adapters/|kernels/(recompute|dropout|adapter)\w*\.py|peft/tuners/",
    "norms": r"RMSNorm|kernels/norm\.py|moslora\.\w*norm",
    "RoPE": r"[Rr]otary|rotate_half|kernels/rope|RoPE|moslora\.\w*ro(pe|tary)",
    "attention": r"kernels/attention\.py|kernels/rows\.py:Group|Attention\.forward|sdpa_attention|varlen|moslora\.\w*att",
    "SwiGLU": r"GatedMLP|SwiGLU|LlamaMLP|SiLU|kernels/mlp\.py|moslora\.\w*(glu|silu)",
    SUMS: r"DecoderLayer",
    UPDATE: r"torch/optim/|clip_grad|training/loop\.py|accelerator\.py:Accelerator",
    "rest": r"Embedding|data/steps\.py|masking_utils|LlamaModel",
}
"""Parts of a step, and the places in the code that belong to each: the innermost decides. A product with a frozen
weight is a product, or the output layer's, wherever it is."""

WRITTEN_ONLY = {"zero_", "fill_", "bernoulli_", "copy_", "uniform_", "normal_"}
"""Operations that do not read the tensor that they change."""

CHOSEN = {"index_select", "embedding", "gather", "index", "nll_loss_forward"}
"""Operations that read of a tensor what they return."""

PLACED = {"scatter_", "index_add_", "index_put_", "index_copy_"}
"""Operations that change a tensor where their other tensors say."""


class Operation(NamedTuple):
    """A kernel: where it belongs, what it is, operations of its products and their dtype, bytes moved."""

    phase: str
    part: str
    name: str
    flops: float
    dtype: torch.dtype
    bytes: float


class Ledger(accelerator.Seen):
    """Operations of the device, with their parts. ``model`` is the one whose frozen weights are products'."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.done: list[Operation] = []
        output: Any = model.get_output_embeddings()  # type: ignore[operator]
        linear = [m for m in model.modules() if isinstance(m, nn.Linear) and not m.weight.requires_grad]
        self._weights = {_storage(m.weight): PRODUCTS for m in linear} | {_storage(output.weight): OUTPUT}
        self._part_of_node: dict[int, str] = {}

    def note(self, function: Any, args: Any, found: Any, *, launches: bool, waits: bool) -> None:
        super().note(function, args, found, launches=launches, waits=waits)
        name = str(function).removeprefix("aten.")
        read, written = tensors(args), tensors(found)
        node = torch._C._current_autograd_node()
        part = self._part(name, read, node)
        if node is None:  # what is made here, its gradient belongs to
            self._part_of_node.setdefault(torch._C._autograd._get_sequence_nr() - 1, part)
        if launches:
            phase = "backward" if node else "update" if part == UPDATE else "forward"
            dtype = read[0].dtype if read else torch.float32
            self.done.append(
                Operation(phase, part, name, flops(function, args, found), dtype, moved(name, read, written))
            )

    def _part(self, name: str, read: Sequence[Tensor], node: Any) -> str:
        if (multiplies(name)) and (weights := [w for x in read if (w := self._weights.get(_storage(x)))]):
            return weights[0]
        if (part := _place(name)) is not None:
            return part
        made = self._part_of_node.get(node._sequence_nr(), "rest") if node else "rest"
        # What autograd adds up, where a tensor was used more than once.
        return SUMS if node and name.startswith("add") and made != "RoPE" else made


def _storage(x: Tensor) -> int:
    return int(getattr(x, "held", x).untyped_storage()._cdata)


def multiplies(name: str) -> bool:
    return name.split(".")[0] in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "linear")


@cache
def _part_of_code(code: CodeType) -> str | None:
    place = f"{code.co_filename}:{code.co_qualname}"
    return next((part for part, places in PARTS.items() if places and re.search(places, place)), None)


def _place(name: str) -> str | None:
    """The part that an operation of moslora's is called after, or else of the innermost place in the code; of the
    backward pass only within a node."""
    if name.startswith("moslora."):
        called = [part for part, places in PARTS.items() if places and re.search(places, name)]
        if called:
            return called[0]
    frame: Any = sys._getframe(2)
    while frame := frame.f_back:
        if frame.f_code.co_name in ("_engine_run_backward", "apply") and "torch/autograd" in frame.f_code.co_filename:
            if frame.f_code.co_name == "_engine_run_backward" or "Backward" in frame.f_code.co_qualname:
                return None
        if part := _part_of_code(frame.f_code):
            return part
    return None


def tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    accelerator.each(value, lambda x: found.append(x))
    return [x for n, x in enumerate(found) if all(x is not other for other in found[:n])]


def flops(function: Any, args: Any, found: Any) -> float:
    """2 · m · n · k of a product; a causal attention has half of the scores. Everything else is nothing."""
    if function == "scaled_dot_product_attention":
        return sdpa_flop_count(*(x.shape for x in args[:3])) / (2 if len(args) == 3 else 1)
    if function == "backward of scaled_dot_product_attention":
        return sdpa_backward_flop_count(args[1].shape, *(x.shape for x in args[0][:3])) / (
            2 if len(args[0]) == 3 else 1
        )
    counted = flop_registry.get(getattr(function, "overloadpacket", None))
    return counted(*args[0], **args[1], out_val=found) if counted else 0.0


def moved(name: str, read: Sequence[Tensor], written: Sequence[Tensor]) -> float:
    """Bytes of the inputs, each read once, and of the outputs."""
    name = name.split(".")[0]
    size = [entries(x) * x.itemsize for x in read], [entries(x) * x.itemsize for x in written]
    if name in CHOSEN:
        return 2.0 * sum(size[1])
    if name in PLACED:
        return 3.0 * max(size[0][1:])
    if name in WRITTEN_ONLY:
        return float(sum(size[0]))  # the one it changes stands for what is written
    return float(sum(size[0]) + sum(size[1]))


def entries(x: Tensor) -> int:
    """Those in memory: an expanded dimension has one."""
    count = 1
    for length, stride in zip(x.shape, x.stride(), strict=True):
        count *= length if stride else min(length, 1)
    return count


def _autocast_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Of what CUDA's autocast casts the one operation that a LLaMA has in another dtype."""
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
    with torch._C._ExcludeDispatchKeyGuard(key):
        dtype = torch.get_autocast_dtype(accelerator.NAME)
        return nn.functional.linear(*(x if x is None else x.to(dtype) for x in (x, weight, bias)))


def our_step(sizes: dict[str, Any], *overrides: str) -> tuple[nn.Module, Callable[[], Any]]:
    """A model, and a step of training it: `moslora.training.loop.train`."""
    from moslora.training.loop import train

    recipe, model = adapted(*overrides, on=accelerator.DEVICE, sizes=sizes)
    rows = step_rows(STEP, sizes["vocab_size"])
    plan = StepPlan(rows=len(rows), global_batch_size=len(rows), epochs=None, max_steps=9, seed=0)
    parts = replace(our_parts(model, recipe.training), rows=rows, plan=plan)
    told: dict[str, Any] = dict.fromkeys(("report", "checkpoint", "validate"), lambda *_, **__: None)
    return model, lambda: train(parts, recipe.training, first_step=0, **told, stop_requested=lambda: True)


def peft_step(sizes: dict[str, Any]) -> tuple[nn.Module, Callable[[], Any]]:
    """The same with PEFT's LoRA, as the Trainer of transformers does it: all rows at once, padded on the right."""
    from accelerate import Accelerator

    recipe = load_recipe("llama3-8b")
    host = Accelerator(mixed_precision="bf16")
    model = with_lora(random_model(accelerator.DEVICE, sizes), recipe.adapter).train()
    model.config.use_cache = False
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, fused=True, weight_decay=0)
    prepared, optimizer = host.prepare(model, optimizer)
    rows = [{"input_ids": row.input_ids, "labels": row.labels} for row in step_rows(STEP, sizes["vocab_size"])]
    labels = torch.tensor(sum(len(row["labels"]) - 1 for row in rows))

    def step() -> None:
        batch = {key: value.pin_memory().to(host.device, non_blocking=True) for key, value in padded(rows).items()}
        count = labels.pin_memory().to(host.device, non_blocking=True)
        host.backward(prepared(**batch, num_items_in_batch=count).loss)
        host.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        prepared.zero_grad()

    return model, step


CONTESTANTS: dict[str, Callable[[dict[str, Any]], tuple[nn.Module, Callable[[], Any]]]] = {
    "moslora": our_step,
    "lora": lambda sizes: our_step(sizes, "adapter.mixer={kind: identity}"),
    "peft": peft_step,
}


def measure(contestant: str, sizes: dict[str, Any]) -> Ledger:
    """What the second step of a contestant does on the device."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    model, step = CONTESTANTS[contestant](sizes)
    step()
    with accelerator.watch(Ledger(model)) as seen:
        step()
    assert isinstance(seen, Ledger)
    return seen


@dataclass(frozen=True)
class Device:
    """Peaks in operations and bytes a second: of bfloat16 products, not sparse, of float32 ones, and of the memory."""

    bfloat16: float
    float32: float
    bandwidth: float


DEVICES = {
    "H100": Device(989e12, 67e12, 3.35e12),  # SXM; H100 datasheet, half of the figure with sparsity
    "A100 80GB": Device(312e12, 19.5e12, 2.039e12),  # SXM; A100 datasheet
    "RTX 4090": Device(165.2e12, 82.6e12, 1.008e12),  # Ada GPU architecture whitepaper, float32 accumulation
}


@dataclass(frozen=True)
class Achieved:
    """Shares of the peaks that a large product and a large copy reach, and seconds: between the beginnings of two
    kernels at least, of a launch on the host, and of a wait."""

    products: float = 0.66
    bandwidth: float = 0.78
    kernel: float = 3e-6
    launch: float = 20e-6
    wait: float = 20e-6

    def seconds(self, one: Operation, on: Device) -> float:
        peak = on.float32 if one.dtype == torch.float32 else on.bfloat16
        return max(one.flops / (self.products * peak), one.bytes / (self.bandwidth * on.bandwidth), self.kernel)


WAITING = "waiting for the host"


def estimate(seen: Ledger, on: Device, achieved: Achieved, *, tokens: int) -> dict[str, Any]:
    """Launches, GB, TFLOP and milliseconds of each part, and of the step."""
    rows = {part: {"launches": 0, "GB": 0.0, "TFLOP": 0.0, "ms": 0.0} for part in PARTS}
    for one in seen.done:
        row = rows[one.part]
        row["launches"] += 1
        row["GB"] += one.bytes / 1e9
        row["TFLOP"] += one.flops / 1e12
        row["ms"] += achieved.seconds(one, on) * 1e3
    device, host = sum(row["ms"] for row in rows.values()), len(seen.done) * achieved.launch * 1e3
    waits = seen.waits.total()
    idle = max(0.0, host - device) + waits * achieved.wait * 1e3
    step = device + idle
    return {
        "parts": rows | {WAITING: {"launches": 0, "GB": 0.0, "TFLOP": 0.0, "ms": idle}},
        "step": {key: sum(row[key] for row in rows.values()) for key in ("launches", "GB", "TFLOP")} | {"ms": step},
        "device_ms": device,
        "host_ms": host,
        "waits": waits,
        "floor_ms": rows[PRODUCTS]["ms"],
        "tokens_per_second": tokens / step * 1e3,
        "floor_tokens_per_second": tokens / rows[PRODUCTS]["ms"] * 1e3,
    }


def by_layer(seen: Ledger, layers: int) -> list[tuple[str, str, str, float]]:
    """Launches a decoder layer, of what runs at least once in each of them, by phase, part and operation."""
    counts = Counter((one.phase, one.part, one.name) for one in seen.done if one.part not in (OUTPUT, UPDATE, "rest"))
    return [(*key, count / layers) for key, count in sorted(counts.items())]


def text(name: str, device: str, found: dict[str, Any]) -> str:
    rows = [("part", "launches", "GB", "TFLOP", "ms")]
    for part, row in [*found["parts"].items(), ("step", found["step"])]:
        rows.append((part, f"{row['launches']:,}", *(f"{row[key]:.1f}" for key in ("GB", "TFLOP", "ms"))))
    totals = (
        f"ESTIMATE for {name} on {device}: {found['step']['ms']:.1f} ms, {found['tokens_per_second']:,.0f} tokens/s;"
        f" device {found['device_ms']:.1f} ms, host {found['host_ms']:.1f} ms, waits {found['waits']};"
        f" floor {found['floor_ms']:.1f} ms, {found['floor_tokens_per_second']:,.0f} tokens/s"
    )
    return f"{totals}\n\n{markdown(rows, numbers=True)}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=list(CONTESTANTS))
    parser.add_argument("--devices", nargs="+", default=list(DEVICES), choices=list(DEVICES))
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("roofline"), help="of OUT.txt and OUT.json (%(default)s)")
    for name, value in vars(Achieved()).items():
        parser.add_argument(f"--{name}", type=float, default=value, help="(%(default)s)")
    options = parser.parse_args(arguments)
    achieved = Achieved(**{name: getattr(options, name) for name in vars(Achieved())})
    accelerator.held_on = torch.device("meta")
    every, linear = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    linear.impl("linear", _autocast_linear, "AutocastPrivateUse1")
    sizes = SHAPES["Meta-Llama-3-8B"] | {"num_hidden_layers": options.layers}
    tokens, results, said = sum(lengths(step_rows(STEP, sizes["vocab_size"]))), {}, []
    for contestant in options.contestants:
        seen = measure(contestant, sizes)
        found = {device: estimate(seen, DEVICES[device], achieved, tokens=tokens) for device in options.devices}
        layer = by_layer(seen, options.layers)
        results[contestant] = {"devices": found, "launches_per_layer": layer, "waits": seen.waits}
        said += [text(contestant, device, one) for device, one in found.items()]
        print("\n".join(said[-len(found) :]), flush=True)
        said.append(
            "\n".join(
                f"{contestant} {count:6.2f} a layer  {phase:8}  {part:24}  {name}" for phase, part, name, count in layer
            )
            + "\n"
        )
    options.out.with_suffix(".txt").write_text("\n".join(said), encoding="utf-8")
    document = {"tokens": tokens, "sizes": sizes, "achieved": vars(achieved), "contestants": results}
    options.out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
