"""An ESTIMATE of a training step on a GPU, made without one; `benchmarks/gpu/operations.py` says how.

    python -m benchmarks.gpu.roofline                # writes the table of docs/speed.md
    python -m benchmarks.gpu.roofline --rows 2       # prints those of smaller steps

The real step runs on the pretend accelerator of `tests/kits/pretend_kit.py` with tensors that hold no data:
LLaMA-3-8B's shapes, 16 rows of about 110 tokens, recipe `llama3-8b`; forward, backward, clip, update. Contestants are
our loop with Liger-Kernel and with torch alone, and PEFT's LoRA as the Trainer of transformers
computes it by default: all rows at once, padded on the right.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks import DOCS, ROOT
from benchmarks.commands import command
from benchmarks.gpu.operations import ACHIEVED, DEVICES, Ledger, estimate
from benchmarks.gpu.race import ROWS, adapted, lengths, random_model, step_rows
from benchmarks.speed.contestants import features, our_loop, padded, with_lora
from benchmarks.tables import markdown, publish
from moslora.base.shapes import SHAPES
from moslora.data.encode import Encoded
from moslora.kernels import liger
from moslora.recipe import load_recipe

sys.path.append(str(ROOT / "tests" / "kits"))
LLAMA = SHAPES["Meta-Llama-3-8B"]
SHOWN = ("H100", "A100", "RTX 4090")

STEP = 8
"""Of `race.step_rows` the one whose tokens, 1,749, and padding are most like the mean of the first thirty."""

HOST = 115e-3
"""The host's seconds of a step with 32 layers, ours and PEFT's alike, of layers so narrow, and rows so short, that
their products take no time: on a core of an AMD EPYC, by ``--host`` of this file at commit 2dd233c9."""

Made = tuple[nn.Module, Callable[[], object]]  # a model, and a step of training it


def ours(rows: Sequence[Encoded], sizes: Mapping[str, Any], on: torch.device) -> Made:
    """By `moslora.training.loop.train`, for a step. Reports and checkpoints go nowhere."""
    recipe, model = adapted("adapter.dropout=0.05", on=on, sizes=sizes)
    return model, partial(our_loop(model, recipe.training, rows, steps=1, each=len(rows)), first_step=0)


def peft(rows: Sequence[Encoded], sizes: Mapping[str, Any], on: torch.device) -> Made:
    """Step of PEFT's LoRA as the Trainer computes it."""
    from accelerate import Accelerator

    accelerate = Accelerator(mixed_precision="bf16")
    model = with_lora(random_model(on, sizes), load_recipe("llama3-8b").adapter).train()
    model.config.use_cache = False
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    prepared, optimizer = accelerate.prepare(model, torch.optim.AdamW(learned, fused=True, weight_decay=0))
    batch = padded(features(rows))
    batch["num_items_in_batch"] = torch.tensor(sum(len(row.labels) - 1 for row in rows))
    batch = {key: value.pin_memory() for key, value in batch.items()}

    def step() -> None:
        on_device = {key: x.to(on, non_blocking=True) for key, x in batch.items()}
        accelerate.backward(prepared(**on_device).loss)
        accelerate.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        prepared.zero_grad()

    return model, step


CONTESTANTS: dict[str, Callable[..., Made]] = {"moslora": ours, "moslora:torch": ours, "peft": peft}


def estimated(contestant: str, layers: int, count: int) -> dict[str, list[dict[str, Any]]]:
    """Device -> fast and slow end of the estimate of a step of ``count`` rows.

    The second step on a device without data is estimated.
    """
    from accelerate.state import AcceleratorState

    import pretend_kit

    AcceleratorState._reset_state(reset_partial_state=True)  # PEFT's has autocast
    pretend_kit.held_on = torch.device("meta")
    liger.is_used = lambda: not contestant.endswith(":torch")  # which has no need of it
    sizes = LLAMA | {"num_hidden_layers": layers}
    rows = step_rows(STEP, sizes["vocab_size"])[:count]
    model, step = CONTESTANTS[contestant](rows, sizes, pretend_kit.DEVICE)
    step()
    seen = Ledger(model)
    with pretend_kit.watch(seen):
        step()
    tokens = sum(lengths(rows))
    host = HOST * layers / LLAMA["num_hidden_layers"]
    found = {}
    for name in SHOWN:
        found[name] = [estimate(seen, DEVICES[name], achieved, tokens=tokens, host=host) for achieved in ACHIEVED]
    return found


Results = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""Contestant -> device -> fast and slow end of its estimate."""


def table_of_steps(results: Results) -> list[list[str]]:
    times = ("device", "host", "floor", "step")
    table = [["ESTIMATE", "", "launches", "waits", *(f"{time}, ms" for time in times), "tokens/s", "of the peak"]]
    for device in SHOWN:
        for name, by_device in results.items():
            ends = by_device[device]
            row = [device, name, f"{ends[0]['parts']['step']['launches']:,}", f"{ends[0]['waits']}"]
            row += [between([end[f"{time}_ms"] for end in ends], ".0f") for time in times]
            row.append(between([end["tokens_per_second"] for end in ends], ",.0f"))
            row.append(between([end["share_of_peak"] for end in ends], ".0%"))
            table.append(row)
    return table


def between(ends: Sequence[float], digits: str) -> str:
    """Text of the smaller and the larger end, or of one if both are written alike."""
    return "–".join(dict.fromkeys(f"{end:{digits}}" for end in sorted(ends)))


def main(*, rows: int = ROWS) -> None:
    results = {name: estimated(name, LLAMA["num_hidden_layers"], rows) for name in CONTESTANTS}
    table = markdown(table_of_steps(results), numbers=True)
    publish(table, DOCS / "speed.md", "roofline table", print_only=rows != ROWS)


if __name__ == "__main__":
    command(main, estimated)
