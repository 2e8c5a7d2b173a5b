"""The memory that `moslora plan` computes against that of real steps on this CPU, on the quickstart's model.

    python -m benchmarks.checks.memory steps      # the first table of docs/plan.md
    python -m benchmarks.checks.memory loading    # the last one, while a base is loaded: 4 GB on disk
    python -m benchmarks.checks.memory merging    # the one of docs/merging.md: 15 GB on disk
    python -m benchmarks.checks.memory work '{"rows": [64]}'    # one case; with torchrun in several processes

Each case is a process of its own (or two, over gloo): two training steps of one micro-batch each, with random tokens. A
thread reads the process's anonymous memory (RssAnon) every two milliseconds. Measured is the peak
above the process before it loads the model. A base in the dtype of its file stays mapped from it, is no anonymous
memory, and is not counted; in float32 it is a copy.
"""

import gc
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks import DOCS, ROOT
from benchmarks.commands import command, in_process
from benchmarks.speed.contestants import our_train_state
from benchmarks.tables import machine, markdown, publish
from moslora.adapters import adapter_state_dict, named_adapters
from moslora.base.adapted import with_adapters
from moslora.base.load import choose_engine_of, load_base
from moslora.base.quantized import quantization_config
from moslora.base.shapes import SHAPES, meta_model
from moslora.convert.export import export_peft
from moslora.convert.merge import SHARD_BYTES
from moslora.convert.merge import merge as merge_adapter
from moslora.data.encode import IGNORE_INDEX, Encoded
from moslora.plan.memory import Devices, memory
from moslora.plan.step import Work
from moslora.process_rank import is_main_process
from moslora.recipe import ModelSection, Recipe, load_recipe
from moslora.runs.adapted_model import save_adapter
from moslora.runs.manifest import WEIGHTS
from moslora.training.loop import accumulate
from moslora.training.prepare import adapt

LABELS = 8

RETURNED = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
"""Has the C library return every tensor of 128 kB and more to the system at once. By default it keeps what is freed,
with gaps."""

CASES: dict[tuple[str, str], dict[str, Any]] = {
    ("8 × 64", ""): {"rows": [64] * 8},
    ("16 × 128", ""): {"rows": [128] * 16},
    ("4 × 512", ""): {"rows": [512] * 4},
    ("8 of 40 to 240", ""): {"rows": [40, 60, 80, 100, 120, 160, 200, 240]},
    ("16 × 128", "no dropout"): {"rows": [128] * 16, "dropout": 0},
    ("8 × 128", "loss on all"): {"rows": [128] * 8, "labels": 127},
    ("8 × 128", "float32"): {"rows": [128] * 8, "dtype": "float32"},
    ("16 × 128", "checkpointing"): {"rows": [128] * 16, "checkpointing": True},
    ("8 × 512", "checkpointing"): {"rows": [512] * 8, "checkpointing": True},
    ("8 × 128", "float32, checkpointing"): {"rows": [128] * 8, "checkpointing": True, "dtype": "float32"},
    ("4 × 128", "2 processes"): {"rows": [128] * 4, "processes": 2},
    ("8 × 128", "checkpointing, 2 processes"): {"rows": [128] * 8, "processes": 2, "checkpointing": True},
}
"""What the table calls each case. `rows` are the lengths of those of one process; `labels` of each are labelled."""


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("RssAnon"))
    _, kilobytes, _ = line.split()
    return 1024 * int(kilobytes)


@contextmanager
def sampled() -> Iterator[list[int]]:
    """Anonymous memory, every two milliseconds while the block runs."""
    seen = [anonymous()]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.002):
            seen.append(anonymous())

    thread = threading.Thread(target=sample)
    thread.start()
    yield seen
    done.set()
    thread.join()


def work(case_as_json: str) -> dict[str, int] | None:
    """Planned and measured bytes."""
    case = json.loads(case_as_json)
    lengths = case["rows"]
    processes = case.get("processes", 1)
    recipe = recipe_of(case)
    share_labelled = case.get("labels", LABELS) * len(lengths) / sum(lengths)
    at_once = Work(tuple(lengths), share_labelled)
    meta = adapt(meta_model(recipe.model), recipe)
    choose_engine_of(meta, recipe.model, computed_here=False)
    planned = memory(meta, recipe.model, at_once, Devices(on_gpu=False, processes=processes))
    idle = anonymous()
    rows = random_rows(case)
    parts = our_train_state(with_adapters(load_base(recipe.model), recipe), recipe.training)
    parts = replace(parts, micro_batch_tokens=sum(lengths))
    with sampled() as seen:
        for _ in range(2):
            accumulate(parts, rows)
            parts.optimizer.step()
            parts.optimizer.zero_grad()
    peak = parts.accelerator.gather(torch.tensor([max(seen)])).max().item()
    if not is_main_process():
        return None
    mapped = planned.weights if recipe.model.dtype == "bfloat16" else 0
    return {"planned": planned.total - mapped, "measured": int(peak) - idle}


def recipe_of(case: dict[str, Any]) -> Recipe:
    """The quickstart's with what the case changes."""
    changes = {
        "model.dtype": case.get("dtype", "bfloat16"),
        "model.gradient_checkpointing": str(case.get("checkpointing", False)).lower(),
        "adapter.dropout": case.get("dropout", 0.05),
        "training.global_batch_size": len(case["rows"]) * case.get("processes", 1),
    }
    return load_recipe("smollm2-135m", [f"{key}={value}" for key, value in changes.items()])


def random_rows(case: dict[str, Any]) -> list[Encoded]:
    """Rows of all processes, of random tokens, whose last tokens are labelled."""
    generator = torch.Generator().manual_seed(0)
    labelled = case.get("labels", LABELS)
    rows: list[Encoded] = []
    for length in case["rows"]:
        masked = length - labelled
        for _ in range(case.get("processes", 1)):
            ids = torch.randint(0, 49_152, (length,), generator=generator).tolist()
            labels = [IGNORE_INDEX] * masked + ids[masked:]
            rows.append(Encoded(f"row/{len(rows)}", "boolq", ids, labels, truncated=False))
    return rows


def load(base: str, key: str, value: str) -> dict[str, int]:
    """Anonymous bytes while a base is loaded with one setting of `ModelSection`, and afterwards."""
    quantization_config(ModelSection(name="x", quantization="nf4"), on_cpu=True)  # imports bitsandbytes
    idle = anonymous()
    with sampled() as seen:
        model = load_base(ModelSection.model_validate({"name": base, key: value}))
    gc.collect()
    largest = max(weight.numel() for weight in model.parameters())
    return {"peak": max(seen) - idle, "end": anonymous() - idle, "largest": 2 * largest}


def merge(by: str, base: str, adapter: str, out: str) -> dict[str, float]:
    """Anonymous bytes, and seconds of the processor, for merging an adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    idle = anonymous()
    began = time.process_time()
    with sampled() as seen:
        if by == "PEFT":
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
            merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
            merged.save_pretrained(out, max_shard_size=SHARD_BYTES)
        else:
            merge_adapter(Path(adapter), out=Path(out))
    return {"peak": max(seen) - idle, "seconds": time.process_time() - began}


def steps() -> Iterator[list[str]]:
    yield ["rows", "", "planned, MB", "measured, MB", "error", "with the heap's gaps, MB"]
    for name, case in CASES.items():
        launch: tuple[str, ...] = ()
        if "processes" in case:
            launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
        exact, plain = (
            in_process(work, json.dumps(case), launch=launch, environment={"ACCELERATE_USE_CPU": "true", **how})
            for how in (RETURNED, {})
        )
        error = exact["planned"] / exact["measured"] - 1
        sizes = [megabytes(exact["planned"]), megabytes(exact["measured"])]
        yield [*name, *sizes, f"{error:+.1%}", megabytes(plain["measured"])]


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}"


def write_base(folder: str, *, layers: int) -> None:
    """A model of LLaMA-3-8B's shapes with fewer layers and random weights, in bfloat16."""
    config = LlamaConfig(**SHAPES["Meta-Llama-3-8B"] | {"num_hidden_layers": layers})
    with torch.device("meta"):
        model: PreTrainedModel = LlamaForCausalLM(config)
    nn.Module.to(model, torch.bfloat16).to_empty(device="cpu")
    for weight in model.parameters():
        weight.data.normal_(std=0.02)
    model.save_pretrained(folder, max_shard_size=SHARD_BYTES)


BASES = (("dtype", "bfloat16"), ("dtype", "float32"), ("quantization", "nf4"), ("quantization", "int8"))


def loading() -> Iterator[list[str]]:
    yield ["base", "peak while loading", "at the end", "largest tensor"]
    with tempfile.TemporaryDirectory() as folder:
        write_base(folder, layers=4)
        for key, value in BASES:
            found = in_process(load, folder, key, value, environment=RETURNED)
            yield [value, *(megabytes(size) for size in found.values())]


def merging() -> Iterator[list[str]]:
    """A merge with its proof against PEFT's, which has none."""
    sys.path.append(str(ROOT / "tests" / "kits"))
    from evaluation_kit import tokenizer

    yield ["", "peak, MB", "seconds of the processor"]
    with tempfile.TemporaryDirectory() as folder:
        base = f"{folder}/base"
        adapter = f"{folder}/adapter"
        exported = f"{folder}/peft"
        write_base(base, layers=6)
        tokenizer().save_pretrained(base)
        write_adapter(Path(adapter), base)
        export_peft(Path(adapter), out=Path(exported))
        for by, source in (("moslora merge", adapter), ("PEFT", exported)):
            out = f"{folder}/merged"
            found = in_process(merge, by, base, source, out)
            shutil.rmtree(out)
            yield [by, megabytes(found["peak"]), f"{found['seconds']:.1f}"]


def write_adapter(folder: Path, base: str) -> None:
    """An adapter of the recipe for LLaMA-3-8B on this base, with a random B."""
    recipe = load_recipe("llama3-8b", [f"model.name={base}"])
    model: Any = with_adapters(load_base(recipe.model), recipe)
    for _, layer in named_adapters(model):
        layer.lora_b.data.normal_(std=0.002)
    facts = {"step": 1, "trained_rows": 0, "data": {"sha256": "", "notes": []}}
    save_adapter(folder, {WEIGHTS: adapter_state_dict(model)}, recipe, facts=facts)


TABLES = {"steps": (steps, "plan.md"), "loading": (loading, "plan.md"), "merging": (merging, "merging.md")}
"""What makes each table, and the page that has it."""


def main(table: str) -> None:
    rows, page = TABLES[table]
    lines = []
    for row in rows():
        lines.append(row)
        print(*row, sep="  ", flush=True)
    text = f"{machine()} (`python -m benchmarks.checks.memory {table}`):\n\n{markdown(lines)}"
    publish(text, DOCS / page, f"{table} table", print_only=False)


if __name__ == "__main__":
    command(main, work, load, merge, table=TABLES)
