"""An ESTIMATE of a training step on a GPU, made without one; `benchmarks/gpu/operations.py` says how.

    python -m benchmarks.gpu.roofline                # writes the tables of docs/speed.md
    python -m benchmarks.gpu.roofline --out FILE     # FILE.txt, with the launches of a decoder layer, and FILE.json
    python -m benchmarks.gpu.roofline --host         # measures the host's time of a step and of a wait on this CPU
    python -m benchmarks.gpu.roofline --cpu          # the estimate for a step on this CPU, beside its measured time

The real step runs on the pretend accelerator of `tests/kits/pretend_kit.py` with tensors that hold no data:
LLaMA-3-8B's shapes, 16 rows of about 110 tokens, recipe `llama3-8b`; forward, backward, clip, update. Contestants are
our loop with two methods and Liger-Kernel, or with torch alone, and PEFT's LoRA as the Trainer of transformers
computes it by default: all rows at once, padded on the right.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import DOCS, ROOT
from benchmarks.gpu.operations import DEVICES, OUTPUT, REST, UPDATE, Achieved, Device, Ledger, Watched, estimate
from benchmarks.gpu.race import adapted, lengths, random_model, step_rows
from benchmarks.speed.contestants import our_parts, padded, with_lora
from benchmarks.tables import machine, markdown, publish, spread
from moslora.base.resolve import BUILTIN
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


def ours(mixer: str, rows: Sequence[Encoded], *, on: torch.device, sizes: Mapping[str, Any]) -> Made:
    """By `moslora.training.loop.train`."""
    from moslora.training.loop import train

    recipe, model = adapted(f"adapter.mixer={{kind: {mixer}}}", on=on, sizes=sizes)
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
    "moslora": partial(ours, "dense"),
    "lora": partial(ours, "identity"),
    "moslora:torch": partial(ours, "dense"),
    "peft": peft,
}


HOST = {"moslora": (110e-3, 6.2e-3), "peft": (124e-3, 0.3e-3)}
"""By ``--host``, of ours and of PEFT's: the host's seconds of a step with 32 layers, and of a wait. Our loop waits at
the end of a step, transformers before its first layer."""


def made(contestant: str, rows: Sequence[Encoded], *, on: torch.device, sizes: Mapping[str, Any]) -> Made:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # PEFT's has autocast
    return CONTESTANTS[contestant](rows, on=on, sizes=sizes)


def pretended(contestant: str, sizes: Mapping[str, Any]) -> Ledger:
    """What the second step of a contestant does on a device that holds no data."""
    import pretend_kit

    pretend_kit.held_on = torch.device("meta")
    liger.installed = lambda: not contestant.endswith(":torch")  # which has no need of it
    rows = step_rows(STEP, sizes["vocab_size"])
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


def tables(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The steps on all devices, and the parts on the first, from the estimate of each contestant on each device."""
    devices = list(next(iter(results.values())))
    steps = table_of_steps(results, devices)
    parts = table_of_parts(results, devices[0])
    return f"{markdown(steps, numbers=True)}\n\n{markdown(parts, numbers=True)}"


def table_of_steps(results: Mapping[str, Mapping[str, Any]], devices: Sequence[str]) -> list[list[str]]:
    columns = {"device, ms": "device_ms", "host, ms": "host_ms", "floor, ms": "floor_ms"}
    table = [["ESTIMATE", "", "launches", *columns, "waits", "step, ms", "tokens/s", "of the peak"]]
    for device in devices:
        for name, by_device in results.items():
            found = by_device[device]
            step = found["parts"]["step"]
            times = [f"{found[key]:.0f}" for key in columns.values()]
            table.append(
                [
                    device,
                    name,
                    f"{step['launches']:,}",
                    *times,
                    f"{found['waits']}",
                    f"{step['ms']:.0f}",
                    f"{found['tokens_per_second']:,.0f}",
                    f"{found['share_of_peak']:.0%}",
                ]
            )
    return table


def table_of_parts(results: Mapping[str, Mapping[str, Any]], device: str) -> list[list[str]]:
    """All of the first contestant's, and the times of the others'."""
    first, *others = results
    parts_of = {name: by_device[device]["parts"] for name, by_device in results.items()}
    titles_of_others = [f"{name}: ms" for name in others]
    table = [[f"ESTIMATE, {device}", f"{first}: launches", "GB", "TFLOP", "ms", *titles_of_others]]
    for part, row in parts_of[first].items():
        sizes = [f"{row[key]:.1f}" for key in ("GB", "TFLOP", "ms")]
        times = [f"{parts_of[name][part]['ms']:.1f}" for name in others]
        table.append([part, f"{row['launches']:,}", *sizes, *times])
    return table


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
    """Prints the host's time of a step and of a wait on a core of this CPU: of steps with 32 layers so narrow, and
    rows so short, that products take no time. Times are the process's own, as others may use the machine."""
    long_rows = step_rows(STEP, NARROW["vocab_size"])
    rows = [replace(row, input_ids=row.input_ids[:2], labels=row.labels[:2]) for row in long_rows]
    take_branches_of_gpu()
    waits = Waits()
    took: dict[str, list[float]] = {"moslora": [], "peft": []}
    launches = {}
    steps = {}
    for name in took:
        model, steps[name] = made(name, rows, on=CPU, sizes=NARROW)
        steps[name](1)
        with Watched(Ledger(model)) as seen:
            steps[name](1)
        launches[name] = len(seen.ledger.done)
        waits.end_at_first_layer(model, name)
    for asks in ("tolist", "__bool__"):
        setattr(Tensor, asks, waits.begin_after(getattr(Tensor, asks)))
    for turn in range(repetitions):
        contestants = sorted(took)
        if turn % 2:
            contestants.reverse()
        for name in contestants:
            took[name].append(own_seconds(partial(steps[name], 2)) / 2)
    for name, count in launches.items():
        step = [1e3 * seconds for seconds in took[name]]
        within_pairs = waits.seconds[name][1::2]  # the others have what is between two turns
        wait = [1e3 * seconds for seconds in within_pairs]
        print(f"{name}: {spread(step)} ms a step, of {count} launches, and {spread(wait)} ms a wait")


def take_branches_of_gpu() -> None:
    """From here on kernels are chosen as for a GPU, and norms and attentions cost the host what one kernel does."""
    from moslora.kernels.dropout import Dropout

    dropout: Any = Dropout
    dropout.kernel = staticmethod(partial(chosen_as_on_gpu, dropout.kernel))
    loaded: list[tuple[str, Any]] = list(sys.modules.items())
    for name, module in loaded:
        if name.startswith("moslora.kernels.") and hasattr(module, "kernel"):
            module.kernel = partial(chosen_as_on_gpu, module.kernel)
    functional.rms_norm = one_kernel
    functional.scaled_dot_product_attention = one_kernel


def chosen_as_on_gpu(kernel: Callable[..., str], _: torch.device, *others: Any) -> str:
    return kernel(torch.device("cuda"), *others)


class Waits:
    """How long the device is idle after the host has waited for it: until the next step's first layer begins."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)  # by contestant
        self._began = 0.0

    def begin_after(self, method: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        """The ``method``, for whose answer the host waits."""

        def asked(x: Tensor) -> Any:
            value = method(x)
            self._began = time.process_time()
            return value

        return asked

    def end_at_first_layer(self, model: Any, name: str) -> None:
        seconds = self.seconds[name]

        def first_layer_begins(*_: Any) -> None:
            seconds.append(time.process_time() - self._began)

        model.get_decoder().layers[0].register_forward_pre_hook(first_layer_begins)


def on_this_cpu(repetitions: int) -> None:
    """Prints the ESTIMATE of a step of SmolLM2-135M's shapes, with what a core of this CPU reaches, and its time. Times
    are the process's own, as others may use the machine."""
    from moslora.kernels.linear import product

    rows = step_rows(STEP, SHAPES[BUILTIN]["vocab_size"])
    model, steps = made("moslora", rows, on=CPU, sizes=SHAPES[BUILTIN])
    with Watched(Ledger(model)) as seen:
        steps(1)
    x = torch.randn(2048, 576).bfloat16()
    weight = torch.randn(1536, 576).bfloat16()
    large = torch.ones(2, 2**25)

    def median_seconds(work: Callable[[], Any]) -> float:
        return statistics.median(own_seconds(work) for _ in range(repetitions + 1))

    speed = 2 * x.numel() * len(weight) / median_seconds(partial(product, x, weight))
    bandwidth = large.nbytes / median_seconds(partial(large[0].copy_, large[1]))
    step_seconds = median_seconds(partial(steps, 1))
    here = Device(speed, speed, bandwidth)
    achieved = Achieved(products=1, bandwidth=1, kernel=5e-6)
    found = estimate(seen.ledger, here, achieved, tokens=sum(lengths(rows)))
    print(tables({"moslora": {"this CPU": found}}))
    print(f"{speed / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s; a step took {1e3 * step_seconds:.0f} ms")


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
    parser.add_argument("--host", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--repetitions", type=int, default=9, help="of what is measured (%(default)s)")
    for name, value in asdict(Achieved()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value, help="see Achieved (%(default)s)")
    options = parser.parse_args(arguments)
    if options.host or options.cpu:
        torch.set_num_threads(1)
        if options.host:
            host(options.repetitions)
        else:
            on_this_cpu(options.repetitions)
        print(machine())
        return
    achieved = Achieved(**{name: getattr(options, name) for name in asdict(Achieved())})
    sizes = LLAMA | {"num_hidden_layers": options.layers}
    tokens = sum(lengths(step_rows(STEP, sizes["vocab_size"])))
    results: dict[str, dict[str, Any]] = {}
    layers = {}
    for name in options.contestants:
        seen = pretended(name, sizes)
        layers[name] = by_layer(seen, options.layers)
        host_time, wait = HOST.get(name, HOST["moslora"])
        host_time *= options.layers / LLAMA["num_hidden_layers"]
        results[name] = {}
        for device in options.devices:
            found = estimate(seen, DEVICES[device], achieved, tokens=tokens, host=host_time, wait=wait)
            results[name][device] = found
    if not options.out:
        publish(tables(results), DOCS / "speed.md", "roofline table", print_only=False)
        return
    document = {"tokens": tokens, "achieved": asdict(achieved), "contestants": results, "launches_per_layer": layers}
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
