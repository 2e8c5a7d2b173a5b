"""An ESTIMATE of a training step on a GPU, made without one; `benchmarks/gpu/operations.py` says how.

    python -m benchmarks.gpu.roofline                # writes the table of docs/speed.md
    python -m benchmarks.gpu.roofline --out FILE     # FILE.txt, with the launches of a decoder layer, and FILE.json
    python -m benchmarks.gpu.roofline --host         # measures the host's time of a step on this CPU

The real step runs on the pretend accelerator of `tests/kits/pretend_kit.py` with tensors that hold no data:
LLaMA-3-8B's shapes, 16 rows of about 110 tokens, recipe `llama3-8b`; forward, backward, clip, update. Contestants are
our loop with Liger-Kernel, without dropout, and with torch alone, and PEFT's LoRA as the Trainer of transformers
computes it by default: all rows at once, padded on the right.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import DOCS, ROOT
from benchmarks.gpu.operations import ACHIEVED, DEVICES, OUTPUT, REST, UPDATE, Ledger, estimate
from benchmarks.gpu.race import ROWS, adapted, lengths, random_model, step_rows
from benchmarks.speed.contestants import our_parts, padded, with_lora
from benchmarks.tables import machine, markdown, publish, spread
from moslora.base.shapes import SHAPES
from moslora.data.encode import Encoded
from moslora.data.steps import StepPlan
from moslora.kernels import liger
from moslora.recipe import load_recipe

sys.path.append(str(ROOT / "tests" / "kits"))
LLAMA = SHAPES["Meta-Llama-3-8B"]
CPU = torch.device("cpu")

STEP = 8
"""Of `race.step_rows` the one whose tokens, 1,749, and padding are most like the mean of the first thirty."""

Made = tuple[nn.Module, Callable[[int], Any]]  # a model, and so many steps of training it


def ours(override: str, rows: Sequence[Encoded], *, on: torch.device, sizes: Mapping[str, Any]) -> Made:
    """By `moslora.training.loop.train`."""
    from moslora.training.loop import train

    recipe, model = adapted(override, on=on, sizes=sizes)
    parts = replace(our_parts(model, recipe.training), rows=rows)

    def nothing(*_: Any, **__: Any) -> None:
        """Reports and checkpoints go nowhere."""

    def never(*_: int) -> bool:
        return False

    def steps(count: int) -> None:
        plan = StepPlan(rows=len(rows), global_batch_size=len(rows), epochs=None, max_steps=count, seed=0)
        planned = replace(parts, plan=plan)
        train(planned, first_step=0, report=nothing, checkpoint=nothing, validate=never, stop_requested=never)

    return model, steps


def peft(rows: Sequence[Encoded], *, on: torch.device, sizes: Mapping[str, Any]) -> Made:
    """As the Trainer does it."""
    from accelerate import Accelerator

    accelerate = Accelerator(mixed_precision="bf16")
    model = with_lora(random_model(on, sizes), load_recipe("llama3-8b").adapter).train()
    model.config.use_cache = False
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    prepared, optimizer = accelerate.prepare(model, torch.optim.AdamW(learned, fused=True, weight_decay=0))
    batch = padded([{"input_ids": row.input_ids, "labels": row.labels} for row in rows])
    batch["num_items_in_batch"] = torch.tensor(sum(len(row.labels) - 1 for row in rows))
    if on != CPU:
        batch = {key: value.pin_memory() for key, value in batch.items()}

    def steps(count: int) -> None:
        for _ in range(count):
            on_device = {key: x.to(on, non_blocking=True) for key, x in batch.items()}
            accelerate.backward(prepared(**on_device).loss)
            accelerate.clip_grad_norm_(learned, 1.0)
            optimizer.step()
            prepared.zero_grad()

    return model, steps


CONTESTANTS: dict[str, Callable[..., Made]] = {
    "moslora": partial(ours, "adapter.dropout=0.05"),
    "moslora:no dropout": partial(ours, "adapter.dropout=0"),
    "moslora:torch": partial(ours, "adapter.dropout=0.05"),
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
    model, steps = made(contestant, rows, on=pretend_kit.DEVICE, sizes=sizes)
    steps(1)
    seen = Ledger(model)
    with pretend_kit.watch(seen):
        steps(1)
    return seen


def by_layer(seen: Ledger, layers: int) -> list[tuple[str, str, str, float]]:
    """Launches of a decoder layer by phase, part and operation."""
    within = [one for one in seen.done if one.part not in (OUTPUT, UPDATE, REST)]
    counts = Counter((one.phase, one.part, one.name) for one in within)
    return [(phase, part, name, count / layers) for (phase, part, name), count in sorted(counts.items())]


Results = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""Contestant and device -> the fast and the slow end of its estimate."""


def tables(results: Results) -> str:
    """The steps on all devices, and the parts on the first."""
    devices = list(next(iter(results.values())))
    steps = table_of_steps(results, devices)
    parts = table_of_parts(results, devices[0])
    return f"{markdown(steps, numbers=True)}\n\n{markdown(parts, numbers=True)}"


def table_of_steps(results: Results, devices: Sequence[str]) -> list[list[str]]:
    columns = {"device, ms": "device_ms", "host, ms": "host_ms", "floor, ms": "floor_ms", "step, ms": "step_ms"}
    table = [["ESTIMATE", "", "launches", "waits", *columns, "tokens/s", "of the peak"]]
    for device in devices:
        for name, by_device in results.items():
            ends = by_device[device]
            table.append(
                [
                    device,
                    name,
                    f"{ends[0]['parts']['step']['launches']:,}",
                    f"{ends[0]['waits']}",
                    *(between([end[key] for end in ends], ".0f") for key in columns.values()),
                    between([end["tokens_per_second"] for end in ends], ",.0f"),
                    between([end["share_of_peak"] for end in ends], ".0%"),
                ]
            )
    return table


def table_of_parts(results: Results, device: str) -> list[list[str]]:
    """All of the first contestant's, and the times of the others'."""
    first, *others = results
    parts_of = {name: [end["parts"] for end in by_device[device]] for name, by_device in results.items()}
    table = [[f"ESTIMATE, {device}", f"{first}: launches", "GB", "TFLOP", "ms", *(f"{name}: ms" for name in others)]]
    for part, row in parts_of[first][0].items():
        times = [between([end[part]["ms"] for end in ends], ".1f") for ends in parts_of.values()]
        table.append([part, f"{row['launches']:,}", f"{row['GB']:.1f}", f"{row['TFLOP']:.1f}", *times])
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
        gradients: list[Tensor | None] = []
        for x, wanted in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True):
            if wanted:
                gradients.append(torch.zeros_like(x))
            else:
                gradients.append(None)
        return tuple(gradients)


def one_kernel(*arguments: Any, **options: Any) -> Tensor:
    inputs = [x for x in arguments if isinstance(x, Tensor)]
    return _OneKernel.apply(*inputs)


NARROW = LLAMA | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "vocab_size": 1024,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""Sizes of a model whose products take no time."""


def host(repetitions: int) -> None:
    """Prints the host's time of a step on a core of this CPU: of steps with 32 layers so narrow, and rows so short,
    that products take no time. Times are the process's own, as others may use the machine."""
    long_rows = step_rows(STEP, NARROW["vocab_size"])
    rows = [replace(row, input_ids=row.input_ids[:2], labels=row.labels[:2]) for row in long_rows]
    take_branches_of_gpu()
    took: dict[str, list[float]] = {"moslora": [], "peft": []}
    steps = {}
    for name in took:
        _, steps[name] = made(name, rows, on=CPU, sizes=NARROW)
        steps[name](1)
    for turn in range(repetitions):
        contestants = sorted(took)
        if turn % 2:
            contestants.reverse()
        for name in contestants:
            took[name].append(own_seconds(partial(steps[name], 2)) / 2)
    for name, seconds in took.items():
        print(f"{name}: {spread([1e3 * one for one in seconds])} ms a step")


def take_branches_of_gpu() -> None:
    """From here on kernels are chosen as for a GPU, with flash attention and Liger-Kernel; and norms and Liger-Kernel's
    cost the host what one operation does, attention what its kernels do."""
    from moslora.kernels.dropout import WITHIN, Dropout

    changed: dict[str, Any] = {"attention": "has_flash_attention", "liger": "takes"}
    for module, asks in changed.items():
        setattr(sys.modules[f"moslora.kernels.{module}"], asks, lambda _: True)
    dropout: Any = Dropout
    dropout.kernel = staticmethod(lambda *_: WITHIN)
    loaded: list[tuple[str, Any]] = list(sys.modules.items())
    for name, module in loaded:
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


def own_seconds(work: Callable[[], Any]) -> float:
    """Time of this process alone."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=list(CONTESTANTS))
    parser.add_argument("--devices", nargs="+", default=list(DEVICES), choices=list(DEVICES))
    parser.add_argument("--layers", type=int, default=LLAMA["num_hidden_layers"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS, help="of a step on a device (%(default)s)")
    parser.add_argument("--host", action="store_true")
    parser.add_argument("--repetitions", type=int, default=9, help="of what is measured (%(default)s)")
    options = parser.parse_args(arguments)
    if options.host:
        torch.set_num_threads(1)
        host(options.repetitions)
        print(machine())
        return
    sizes = LLAMA | {"num_hidden_layers": options.layers}
    tokens = sum(lengths(step_rows(STEP, sizes["vocab_size"])[: options.rows]))
    results: dict[str, dict[str, Any]] = {}
    layers = {}
    for name in options.contestants:
        seen = pretended(name, sizes, options.rows)
        layers[name] = by_layer(seen, options.layers)
        host_time = HOST * options.layers / LLAMA["num_hidden_layers"]
        results[name] = {}
        for device in options.devices:
            estimated = partial(estimate, seen, DEVICES[device], tokens=tokens, host=host_time)
            results[name][device] = [estimated(achieved) for achieved in ACHIEVED]
    if not options.out:
        steps = table_of_steps(results, options.devices)
        publish(markdown(steps, numbers=True), DOCS / "speed.md", "roofline table", print_only=False)
        return
    assumed = [asdict(achieved) for achieved in ACHIEVED]
    document = {"tokens": tokens, "achieved": assumed, "contestants": results, "launches_per_layer": layers}
    write_results(document, options.out)


def write_results(document: Mapping[str, Any], out: Path) -> None:
    """Writes the tables with the launches of a layer, and all of ``document``."""
    text = tables(document["contestants"])
    print(text)
    lines = [text, ""]
    for contestant, rows in document["launches_per_layer"].items():
        for phase, part, name, count in rows:
            lines.append(f"{contestant} {count:6.2f} a layer  {phase} {part} {name}")
    lines.append("")
    out.with_suffix(".txt").write_text("\n".join(lines), encoding="utf-8")
    out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
