"""An ESTIMATE of a training step on a GPU, made without one; `benchmarks/gpu/operations.py` says how.

    python -m benchmarks.gpu.roofline                # writes the table of docs/speed.md
    python -m benchmarks.gpu.roofline --rows 2       # prints those of smaller steps
    python -m benchmarks.gpu.roofline --host         # measures the host's time of a step on this CPU

The real step runs on the pretend accelerator of `tests/kits/pretend_kit.py` with tensors that hold no data:
LLaMA-3-8B's shapes, 16 rows of about 110 tokens, recipe `llama3-8b`; forward, backward, clip, update. Contestants are
our loop with Liger-Kernel and with torch alone, and PEFT's LoRA as the Trainer of transformers
computes it by default: all rows at once, padded on the right.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import DOCS, ROOT
from benchmarks.commands import command
from benchmarks.gpu.operations import ACHIEVED, DEVICES, Ledger, estimate
from benchmarks.gpu.race import ROWS, TINY, adapted, lengths, random_model, step_rows
from benchmarks.speed.contestants import features, our_parts, padded, with_lora
from benchmarks.tables import machine, markdown, publish, spread
from benchmarks.timing import alternate
from moslora.base.shapes import SHAPES
from moslora.data.encode import Encoded
from moslora.data.steps import StepPlan
from moslora.kernels import liger
from moslora.processes.devices import keep_freed_memory
from moslora.recipe import load_recipe

sys.path.append(str(ROOT / "tests" / "kits"))
LLAMA = SHAPES["Meta-Llama-3-8B"]
CPU = torch.device("cpu")

STEP = 8
"""Of `race.step_rows` the one whose tokens, 1,749, and padding are most like the mean of the first thirty."""

Made = tuple[nn.Module, Callable[[], object]]  # a model, and a step of training it


def ours(rows: Sequence[Encoded], *, on: torch.device, sizes: Mapping[str, Any]) -> Made:
    """By `moslora.training.loop.train`, for a step. Reports and checkpoints go nowhere."""
    from moslora.training.loop import train

    recipe, model = adapted("adapter.dropout=0.05", on=on, sizes=sizes)
    plan = StepPlan(rows=len(rows), global_batch_size=len(rows), epochs=None, max_steps=1, seed=0)
    parts = replace(our_parts(model, recipe.training), rows=rows, plan=plan)
    told: Any = dict.fromkeys(("report", "checkpoint", "validate", "stop_requested"), lambda *_, **__: False)
    return model, partial(train, parts, first_step=0, **told)


def peft(rows: Sequence[Encoded], *, on: torch.device, sizes: Mapping[str, Any]) -> Made:
    """As the Trainer does it."""
    from accelerate import Accelerator

    accelerate = Accelerator(mixed_precision="bf16")
    model = with_lora(random_model(on, sizes), load_recipe("llama3-8b").adapter).train()
    model.config.use_cache = False
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    prepared, optimizer = accelerate.prepare(model, torch.optim.AdamW(learned, fused=True, weight_decay=0))
    batch = padded(features(rows))
    batch["num_items_in_batch"] = torch.tensor(sum(len(row.labels) - 1 for row in rows))
    if on != CPU:
        batch = {key: value.pin_memory() for key, value in batch.items()}

    def step() -> None:
        on_device = {key: x.to(on, non_blocking=True) for key, x in batch.items()}
        accelerate.backward(prepared(**on_device).loss)
        accelerate.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        prepared.zero_grad()

    return model, step


CONTESTANTS: dict[str, Callable[..., Made]] = {
    "moslora": ours,
    "moslora:torch": ours,
    "peft": peft,
}


HOST = 115e-3
"""The host's seconds of a step with 32 layers by ``--host``, ours and PEFT's alike."""


def made(contestant: str, rows: Sequence[Encoded], *, on: torch.device, sizes: Mapping[str, Any]) -> Made:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # PEFT's has autocast
    return CONTESTANTS[contestant](rows, on=on, sizes=sizes)


def pretended(contestant: str, sizes: Mapping[str, Any], count: int) -> Ledger:
    """What the second step of a contestant, of ``count`` rows, does on a device that holds no data."""
    import pretend_kit

    pretend_kit.held_on = torch.device("meta")
    liger.installed = lambda: not contestant.endswith(":torch")  # which has no need of it
    rows = step_rows(STEP, sizes["vocab_size"])[:count]
    model, step = made(contestant, rows, on=pretend_kit.DEVICE, sizes=sizes)
    step()
    seen = Ledger(model)
    with pretend_kit.watch(seen):
        step()
    return seen


def estimated(contestant: str, layers: int, count: int) -> dict[str, list[dict[str, Any]]]:
    """Device -> the fast and the slow end of the estimate of a step of ``count`` rows."""
    sizes = LLAMA | {"num_hidden_layers": layers}
    seen = pretended(contestant, sizes, count)
    tokens = sum(lengths(step_rows(STEP, sizes["vocab_size"])[:count]))
    host_time = HOST * layers / LLAMA["num_hidden_layers"]
    found = {}
    for name, device in DEVICES.items():
        found[name] = [estimate(seen, device, achieved, tokens=tokens, host=host_time) for achieved in ACHIEVED]
    return found


Results = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""Contestant and device -> the fast and the slow end of its estimate."""


def table_of_steps(results: Results, devices: Sequence[str]) -> list[list[str]]:
    times = ("device", "host", "floor", "step")
    table = [["ESTIMATE", "", "launches", "waits", *(f"{time}, ms" for time in times), "tokens/s", "of the peak"]]
    for device in devices:
        for name, by_device in results.items():
            ends = by_device[device]
            row = [device, name, f"{ends[0]['parts']['step']['launches']:,}", f"{ends[0]['waits']}"]
            row += [between([end[f"{time}_ms"] for end in ends], ".0f") for time in times]
            row.append(between([end["tokens_per_second"] for end in ends], ",.0f"))
            row.append(between([end["share_of_peak"] for end in ends], ".0%"))
            table.append(row)
    return table


def between(ends: Sequence[float], digits: str) -> str:
    """The smaller and the larger, or the one that both are as it is written."""
    return "–".join(dict.fromkeys(f"{end:{digits}}" for end in sorted(ends)))


class _OneKernel(torch.autograd.Function):
    """Costs the host what a kernel and its gradient's cost it, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        return inputs[0].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        wanted = zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True)
        return tuple(torch.zeros_like(x) if needed else None for x, needed in wanted)


def one_kernel(*arguments: Any, **options: Any) -> Tensor:
    inputs = [x for x in arguments if isinstance(x, Tensor)]
    return _OneKernel.apply(*inputs)


NARROW = LLAMA | TINY | {"num_hidden_layers": LLAMA["num_hidden_layers"]}
"""Sizes of a model whose products take no time."""


def measure_host(repetitions: int) -> None:
    """Prints the host's time of a step on a core of this CPU: of steps with 32 layers so narrow, and rows so short,
    that products take no time. Times are the process's own, as others may use the machine."""
    torch.set_num_threads(1)
    keep_freed_memory()
    long_rows = step_rows(STEP, NARROW["vocab_size"])
    rows = [replace(row, input_ids=row.input_ids[:2], labels=row.labels[:2]) for row in long_rows]
    take_branches_of_gpu()
    names = ("moslora", "peft")
    steps = [made(name, rows, on=CPU, sizes=NARROW)[1] for name in names]
    took = alternate(*steps, repetitions=repetitions, warmup=1, clock=time.process_time)
    for name, of_steps in zip(names, took, strict=True):
        print(f"{name}: {spread([1e3 * each for each in of_steps])} ms a step")
    print(machine())


def take_branches_of_gpu() -> None:
    """From here on kernels are chosen as for a GPU, with flash attention and Liger-Kernel; and norms and Liger-Kernel's
    cost the host what one operation does, attention what its kernels do."""
    from moslora.kernels.dropout import WITHIN, Dropout

    changed: dict[str, Any] = {"attention": "has_flash_attention", "liger": "takes"}
    for module, asks in changed.items():
        setattr(sys.modules[f"moslora.kernels.{module}"], asks, lambda _: True)
    dropout: Any = Dropout
    dropout.kernel = staticmethod(lambda *_: WITHIN)
    loaded: dict[str, Any] = dict(sys.modules)
    for name, module in loaded.items():
        if name.startswith("moslora.kernels.") and hasattr(module, "kernel"):
            module.kernel = partial(chosen_as_on_gpu, module.kernel)
    functional.rms_norm = one_kernel
    functional.scaled_dot_product_attention = one_kernel

    @torch.library.impl("aten::_flash_attention_forward", "CPU")
    def forward(q: Tensor, *_: Any, **__: Any) -> tuple[Tensor, ...]:
        return q.clone(), q.new_empty(q.shape[1], len(q)), *(q.new_empty(0) for _number in range(3))

    @torch.library.impl("aten::_flash_attention_backward", "CPU")
    def backward(_: Tensor, q: Tensor, k: Tensor, v: Tensor, *__: Any, **___: Any) -> tuple[Tensor, Tensor, Tensor]:
        for _number in range(2):
            q.clone()
        return q.clone(), k.clone(), v.clone()

    swiglu: Any = ModuleType("swiglu")
    swiglu.swiglu_forward = lambda gate, up: (gate, up, gate.clone())
    swiglu.swiglu_backward = lambda gate, up, _: (gate.zero_(), up)
    rope: Any = ModuleType("rope")
    rope.rope_forward = rope.rope_backward = lambda q, *others: (q.zero_(), *others)
    dropped: Any = ModuleType("dropped")
    dropped.project = lambda x, a, h, *_: h.zero_()
    dropped.project_backward = lambda g, a, x, of_x, d_a, *_: d_a.zero_()
    stand_ins = {"liger_kernel.ops.swiglu": swiglu, "liger_kernel.ops.rope": rope, "moslora.kernels.dropped": dropped}
    sys.modules |= stand_ins


def chosen_as_on_gpu(kernel: Callable[..., str], _: torch.device, *others: Any) -> str:
    return kernel(torch.device("cuda"), *others)


def main(
    *,
    contestants: tuple[str, ...] = tuple(CONTESTANTS),
    devices: tuple[str, ...] = tuple(DEVICES),
    rows: int = ROWS,
    host: bool = False,
    repetitions: int = 9,
) -> None:
    if host:
        measure_host(repetitions)
        return
    results = {name: estimated(name, LLAMA["num_hidden_layers"], rows) for name in contestants}
    table = markdown(table_of_steps(results, devices), numbers=True)
    publish(table, DOCS / "speed.md", "roofline table", print_only=rows != ROWS)


if __name__ == "__main__":
    command(main, estimated, contestants=CONTESTANTS, devices=DEVICES)
