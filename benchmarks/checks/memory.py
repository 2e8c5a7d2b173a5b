"""The memory that `moslora plan` computes against that of real steps on this CPU, on the quickstart's model.

    python -m benchmarks.checks.memory steps      # the first table of docs/plan.md
    python -m benchmarks.checks.memory loading    # the last one, while a base is loaded: 4 GB on disk
    python -m benchmarks.checks.memory merging    # the one of docs/merging.md: 15 GB on disk
    python -m benchmarks.checks.memory work '{"rows": [64]}'    # one case, as JSON; with torchrun in several processes

Each case is a process of its own (or two, over gloo): two training steps of one micro-batch each, with random tokens. A
thread reads the process's anonymous memory (RssAnon) every two milliseconds. Measured is the peak
above the process before it loads the model. A base in the dtype of its file stays mapped from it, is no anonymous
memory, and is not counted; in float32, or in two processes, it is a copy.
"""

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks import DOCS, ROOT
from benchmarks.tables import machine, markdown, write_between
from moslora.adapters import inject, named_adapters
from moslora.base.load import load_base
from moslora.base.quantized import quantization_config
from moslora.base.shapes import SHAPES, meta_model
from moslora.convert.export import export_peft
from moslora.convert.merge import SHARD_BYTES, merge
from moslora.data.encode import Encoded
from moslora.data.steps import StepPlan
from moslora.plan.memory import Devices, memory
from moslora.plan.step import Work
from moslora.ranks import is_main_process
from moslora.recipe import ModelSection, load_recipe
from moslora.runs.adapter_folder import save_adapter
from moslora.training.loop import Parts, accumulate
from moslora.training.objective import LabelLoss
from moslora.training.optimizer import build_optimizer
from moslora.training.prepare import adapt

STEPS, LABELS = 2, 8
RETURNED = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
"""Has the C library return every tensor of 128 kB and more to the system at once. By default it keeps what is freed,
with gaps."""

CASES: tuple[dict[str, Any], ...] = (
    {"rows": [64] * 8},
    {"rows": [128] * 16},
    {"rows": [512] * 4},
    {"rows": [40, 60, 80, 100, 120, 160, 200, 240]},
    {"rows": [128] * 16, "dropout": 0},
    {"rows": [128] * 8, "labels": 127},
    {"rows": [128] * 8, "dtype": "float32"},
    {"rows": [128] * 16, "checkpointing": True},
    {"rows": [512] * 8, "checkpointing": True},
    {"rows": [128] * 8, "checkpointing": True, "dtype": "float32"},
    {"rows": [128] * 4, "processes": 2},
    {"rows": [128] * 8, "processes": 2, "checkpointing": True},
)
"""`rows` are the lengths of those of one process; `labels` of each are labelled."""


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    with open("/proc/self/status", encoding="ascii") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


@contextmanager
def sampled() -> Iterator[list[int]]:
    """Anonymous memory, every two milliseconds while the block runs."""
    seen, done = [anonymous()], threading.Event()

    def sample() -> None:
        while not done.wait(0.002):
            seen.append(anonymous())

    thread = threading.Thread(target=sample)
    thread.start()
    yield seen
    done.set()
    thread.join()


def work(case: dict[str, Any]) -> dict[str, int]:
    """Planned and measured bytes."""
    lengths, labels, processes = case["rows"], case.get("labels", LABELS), case.get("processes", 1)
    changes = {
        "model.dtype": case.get("dtype", "bfloat16"),
        "model.gradient_checkpointing": str(case.get("checkpointing", False)).lower(),
        "adapter.dropout": case.get("dropout", 0.05),
        "training.global_batch_size": len(lengths) * processes,
    }
    recipe = load_recipe("smollm2-135m", [f"{key}={value}" for key, value in changes.items()])
    meta = adapt(meta_model(recipe.model), recipe)
    planned_for = Work(tuple(lengths), labels * len(lengths) / sum(lengths))
    planned = memory(meta, recipe.model, planned_for, Devices(on_gpu=False, processes=processes))
    accelerator = Accelerator(mixed_precision="no", cpu=True)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number, length in enumerate(n for n in lengths for _ in range(processes)):
        ids = torch.randint(0, 49_152, (length,), generator=generator).tolist()
        rows.append(Encoded(f"row/{number}", "boolq", ids, [-100] * (length - labels) + ids[length - labels :], False))
    idle = anonymous()
    model = load_base(recipe.model)
    inject(model, **recipe.adapter_options())
    parts = Parts(
        accelerator=accelerator,
        settings=recipe.training,
        model=model,
        objective=accelerator.prepare_model(LabelLoss(model)),
        optimizer=build_optimizer(model, recipe.training),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        rows=rows,
        plan=StepPlan(rows=len(rows), global_batch_size=len(rows), epochs=1, max_steps=None, seed=0),
        micro_batch_tokens=sum(lengths),
    )
    parts.objective.train()
    with sampled() as seen:
        for _ in range(STEPS):
            accumulate(parts, rows)
            parts.optimizer.step()
            parts.optimizer.zero_grad()
    peak = accelerator.gather(torch.tensor([max(seen)])).max().item()
    # DDP sends the base to every process, which then has a copy of its own.
    mapped = planned.weights if recipe.model.dtype == "bfloat16" and processes == 1 else 0
    return {"planned": planned.total - mapped, "measured": int(peak) - idle}


def load(case: dict[str, Any]) -> dict[str, int]:
    """Anonymous bytes while the base of ``case``, a recipe's model, is loaded, and afterwards."""
    quantization_config(ModelSection(name="x", quantization="nf4"), on_cpu=True)  # imports bitsandbytes
    idle = anonymous()
    with sampled() as seen:
        model = load_base(ModelSection(**case))
    gc.collect()
    largest = max(weight.numel() for weight in model.parameters())
    return {"peak": max(seen) - idle, "end": anonymous() - idle, "largest": 2 * largest}


def merging_case(case: dict[str, Any]) -> dict[str, int]:
    """Anonymous bytes and milliseconds of the processor for merging ``case``: its adapter, into its out."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    idle, began = anonymous(), time.process_time()
    with sampled() as seen:
        if case["by"] == "PEFT":
            model = AutoModelForCausalLM.from_pretrained(case["base"], dtype=torch.bfloat16)
            merged = PeftModel.from_pretrained(model, case["adapter"]).merge_and_unload()
            merged.save_pretrained(case["out"], max_shard_size=SHARD_BYTES)
        else:
            merge(Path(case["adapter"]), out=Path(case["out"]))
    return {"peak": max(seen) - idle, "milliseconds": round(1000 * (time.process_time() - began))}


def measured(command: str, case: dict[str, Any], environment: dict[str, str]) -> dict[str, int]:
    """:func:`work` or :func:`load` in a process of its own, or in two."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if "processes" in case else []
    ran = subprocess.run(
        [sys.executable, *launch, "-m", "benchmarks.checks.memory", command, json.dumps(case)],
        env=os.environ | environment | {"ACCELERATE_USE_CPU": "true"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, int] = json.loads(next(line for line in ran.stdout.splitlines() if line.startswith("{")))
    return found


def steps() -> Iterator[list[str]]:
    names = {"dtype": "float32", "checkpointing": "checkpointing", "dropout": "no dropout", "labels": "loss on all"}
    yield ["rows", "", "planned, MB", "measured, MB", "error", "with the heap's gaps, MB"]
    for case in CASES:
        rows = case["rows"]
        shape = f"{len(rows)} × {rows[0]}" if len({*rows}) == 1 else f"{len(rows)} of {rows[0]} to {rows[-1]}"
        others = ", ".join(name for key, name in (names | {"processes": "2 processes"}).items() if key in case)
        exact, plain = (measured("work", case, environment) for environment in (RETURNED, {}))
        sizes = exact["planned"], exact["measured"], plain["measured"]
        planned, found, with_gaps = (f"{size / 1e6:,.0f}" for size in sizes)
        yield [shape, others, planned, found, f"{sizes[0] / sizes[1] - 1:+.1%}", with_gaps]


def write_base(folder: str, *, layers: int) -> None:
    """A model of LLaMA-3-8B's shapes with fewer layers and random weights, in bfloat16."""
    config = LlamaConfig(**SHAPES["Meta-Llama-3-8B"] | {"num_hidden_layers": layers})
    with torch.device("meta"):
        model: PreTrainedModel = LlamaForCausalLM(config)
    nn.Module.to(model, torch.bfloat16).to_empty(device="cpu")
    for weight in model.parameters():
        weight.data.normal_(std=0.02)
    model.save_pretrained(folder, max_shard_size=SHARD_BYTES)


def loading() -> Iterator[list[str]]:
    yield ["base", "peak while loading", "at the end", "largest tensor"]
    with tempfile.TemporaryDirectory() as folder:
        write_base(folder, layers=4)
        for change in ({"dtype": "bfloat16"}, {"dtype": "float32"}, {"quantization": "nf4"}, {"quantization": "int8"}):
            found = measured("load", {"name": folder, **change}, RETURNED)
            yield [*change.values(), *(f"{size / 1e6:,.0f}" for size in found.values())]


def merging() -> Iterator[list[str]]:
    """A merge with its proof against PEFT's, which has none."""
    sys.path.append(str(ROOT / "tests" / "kits"))
    from evaluation_kit import tokenizer

    yield ["", "peak, MB", "seconds of the processor"]
    with tempfile.TemporaryDirectory() as folder:
        base, adapter, exported = (f"{folder}/{name}" for name in ("base", "adapter", "peft"))
        write_base(base, layers=6)
        tokenizer().save_pretrained(base)
        recipe = load_recipe("llama3-8b", [f"model.name={base}"])
        model = load_base(recipe.model)
        inject(model, **recipe.adapter_options())
        for _, layer in named_adapters(model):
            layer.lora_b.data.normal_(std=0.002)
        facts = {"step": 1, "trained_rows": 0, "data": {"sha256": "", "notes": []}}
        save_adapter(Path(adapter), model, recipe, facts=facts)
        export_peft(Path(adapter), out=Path(exported))
        del model
        for by, source in (("moslora merge", adapter), ("PEFT", exported)):
            out = f"{folder}/merged"
            found = measured("merge", {"by": by, "base": base, "adapter": source, "out": out}, {})
            shutil.rmtree(out)
            yield [by, f"{found['peak'] / 1e6:,.0f}", f"{found['milliseconds'] / 1e3:.1f}"]


TABLES = {"steps": (steps, "plan.md"), "loading": (loading, "plan.md"), "merging": (merging, "merging.md")}
"""What makes each table, and the page that has it."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=[*TABLES, "work", "load", "merge"])
    parser.add_argument("case", nargs="?", type=json.loads)
    options = parser.parse_args()
    if options.command in TABLES:
        rows, page = TABLES[options.command]
        table = []
        for row in rows():
            table.append(row)
            print(*row, sep="  ", flush=True)
        text = f"{machine()} (`python -m benchmarks.checks.memory {options.command}`):\n\n{markdown(table)}"
        write_between(DOCS / page, f"{options.command} table", text)
    else:
        result = {"work": work, "load": load, "merge": merging_case}[options.command](options.case)
        if is_main_process():
            print(json.dumps(result))


if __name__ == "__main__":
    main()
