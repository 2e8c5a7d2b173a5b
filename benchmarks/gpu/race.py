"""Race on a GPU: training by moslora, and by PEFT's LoRA under the Trainer, on the same rows, each at its best.

The model is large and random, the rows are random tokens. All steps run twice, and the second run is measured, in which
no shape of a batch is new.
"""

import importlib.util
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch

from benchmarks.gpu.operations import ACHIEVED, DEVICES, PARTS, Device, Ledger, Watched, estimate
from benchmarks.speed.contestants import after_steps, our_loop, padded, trainer, with_lora
from benchmarks.timing import kernels, reset_peak, wait
from moslora.base.adapted import with_adapters
from moslora.base.own_engine import use_own_modules
from moslora.base.shapes import SHAPES
from moslora.data.encode import Encoded
from moslora.process_rank import local_rank
from moslora.processes.devices import keep_freed_memory
from moslora.recipe import load_recipe

GPU = torch.cuda.is_available()
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "vocab_size": 1024,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ROWS = 16
"""Number of rows of a step."""

DEVICE = torch.device("cuda", local_rank()) if GPU else torch.device("cpu")
SIZES: dict[str, Any] = SHAPES["Meta-Llama-3-8B"] if GPU else TINY
STEPS, EVERY = (30, 10) if GPU else (2, 2)
"""Number of timed steps, and of steps after which the rates so far are recorded."""

Record = Callable[..., None]  # writes down what a part has found, by name


def random_model(on: torch.device = DEVICE, sizes: Mapping[str, Any] = SIZES) -> Any:
    """LLaMA in bfloat16 with small random weights."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(**sizes, max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    with on:
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    return model.eval()


def adapted(*overrides: str, on: torch.device = DEVICE, sizes: Mapping[str, Any] = SIZES) -> tuple[Any, Any]:
    """Return the recipe ``llama3-8b`` and a random model with its adapters."""
    recipe = load_recipe("llama3-8b", overrides)
    model = random_model(on, sizes)
    use_own_modules(model)
    return recipe, with_adapters(model, recipe)


def step_rows(step: int, vocabulary: int = SIZES["vocab_size"]) -> list[Encoded]:
    """Rows of a step, of about 110 random tokens each, with the lengths of the eight sets' rows."""
    draw = random.Random(step)
    rows = []
    for row in range(ROWS):
        length = min(256, max(50, round(draw.lognormvariate(4.65, 0.35))))
        tokens = [draw.randrange(3, vocabulary) for _ in range(length)]
        rows.append(Encoded(f"{step}/{row}", "boolq", tokens, tokens, truncated=False))
    return rows


def lengths(rows: Sequence[Encoded]) -> list[int]:
    return [len(row.input_ids) for row in rows]


class Stopwatch:
    """Timer of steps with these numbers of ``tokens``, which run twice."""

    def __init__(self, record: Record, tokens: Sequence[int]) -> None:
        self.record = record
        self.tokens = tokens
        self.began = 0.0
        self.steps = -len(tokens)  # negative until each has come once

    def step_ended(self) -> None:
        self.steps += 1
        if self.steps not in range(0, len(self.tokens) + 1, EVERY):
            return
        wait()
        if not self.steps:
            reset_peak()
            self.began = time.perf_counter()
            return
        took = time.perf_counter() - self.began
        tokens = sum(self.tokens[: self.steps])
        self.record(
            timed_steps=self.steps,
            rows_per_second=ROWS * self.steps / took,
            tokens_per_second=tokens / took,
            step_seconds=took / self.steps,
            peak_gb=torch.cuda.max_memory_allocated() / 1e9,
        )

    def one_more(self, step: Callable[[], object], model: Any = None) -> None:
        """Record the device's kernels of one more step, whose sum is less than the step's time if the host is too slow.

        With a ``model`` whose operations torch sees, the kernels are summed by part, next to the ESTIMATE of
        `operations.py` for this device.
        """
        if model is None:
            times = [took for _, took in kernels(step)]
            self.record(kernels_per_step=len(times), kernel_seconds_per_step=sum(times))
            return
        of_parts = Counter[str]()
        with Watched(Ledger(model)) as seen:
            times = [took for _, took in kernels(step, of_parts)]
        self.record(kernels_per_step=len(times), kernel_seconds_per_step=sum(times))
        if not any(of_parts.values()):
            raise RuntimeError("torch's profiler has recorded no part of the step")
        ends = [estimate(seen.ledger, this_device(), achieved, tokens=1)["parts"] for achieved in ACHIEVED]
        parts = {}
        for part in PARTS:
            milliseconds = [end[part]["ms"] for end in ends]
            launches = ends[0][part]["launches"]
            parts[part] = {"ms": of_parts[part] * 1e3, "launches": launches, "estimate_ms": milliseconds}
        self.record(parts=parts, share_of_kernels_in_parts=sum(of_parts.values()) / sum(times))


def this_device() -> Device:
    """Peaks of this GPU; those of an H100 for an unlisted GPU and a CPU."""
    if GPU:
        name = torch.cuda.get_device_name()
        for known, device in DEVICES.items():
            if known.split()[-1] in name:
                return device
    return DEVICES["H100"]


def ours(record: Record) -> None:
    """Train by moslora's loop, which launches a step before it reads the numbers of the previous step."""
    recipe, model = adapted()
    keep_freed_memory()  # as a training does
    steps = [step_rows(number) for number in range(STEPS)]
    watch = Stopwatch(record, [sum(lengths(rows)) for rows in steps])
    rows = list(chain.from_iterable(steps))
    report = {"report": lambda *_, **__: watch.step_ended()}
    training = our_loop(model, recipe.training, rows, steps=2 * STEPS, each=ROWS, **report)
    training(first_step=0)
    watch.one_more(lambda: training(first_step=2 * STEPS - 1), model)


def compile_layers(model: Any) -> None:
    """Compile the layers one by one; as all are alike, only the first is compiled."""
    for layer in model.get_base_model().model.layers:
        layer.compile(dynamic=True, backend="inductor" if GPU else "eager")


def all_steps(*, by_length: bool) -> list[list[Encoded]]:
    """Rows of moslora's steps for the contestants, in a random order of the steps.

    With ``by_length`` a step has rows of similar length.
    """
    rows: list[Encoded] = []
    for number in range(STEPS):
        rows += step_rows(number)
    if by_length:
        rows.sort(key=lambda row: len(row.input_ids))
    steps = [rows[at : at + ROWS] for at in range(0, len(rows), ROWS)]
    random.Random(0).shuffle(steps)
    return steps


def peft(record: Record, how: str) -> None:
    """Train by PEFT's LoRA under the Trainer: "rows", "length", "packed", "liger" or "compile", as in runner.py."""
    from transformers import DataCollatorWithFlattening

    if how == "liger" and not (GPU and importlib.util.find_spec("liger_kernel")):
        record(skipped="liger-kernel is not there, or has no kernels for a CPU")
        return
    recipe = load_recipe("llama3-8b")
    model = with_lora(random_model(), recipe.adapter)
    if how == "compile":
        compile_layers(model)
    steps = all_steps(by_length=how not in ("rows", "packed"))
    training = trainer(
        model,
        recipe.training,
        list(chain.from_iterable(steps)),
        DataCollatorWithFlattening() if how == "packed" else padded,
        micro_batch=ROWS,
        each=ROWS,
        train_sampling_strategy="sequential",
        max_steps=2 * STEPS,
        use_liger_kernel=how == "liger",
        accelerator_config={"non_blocking": True},
        logging_steps=10 * STEPS,
        logging_nan_inf_filter=False,  # for which the host would wait for the device in every step
    )
    watch = Stopwatch(record, [sum(lengths(rows)) for rows in steps])
    after_steps(training, watch.step_ended)
    training.train()
    training.args.max_steps = 1
    watched = model if how in ("rows", "length", "packed") else None  # torch does not see all operations of the others
    watch.one_more(training.train, watched)
