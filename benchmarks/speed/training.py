"""Training against PEFT with the Trainer of transformers, on the quickstart's model and real rows.

    make bench                                        # everything, in an environment of its own
    python -m benchmarks.speed.training --repetitions 3     # this part alone
    python -m benchmarks.speed.training work ours paper 8   # one measurement, as JSON

Each measurement is a process of its own; the contestants take turns, so that whatever slows the machine slows all. A
step is 16 rows of about 100 tokens (seven of the eight sets in LLM-Adapters' template, at most 256 tokens), rank 16 on
q, k, v, up and down, AdamW. ``paper`` has the loss on every token and dropout 0.05, ``response`` the loss on the answer
and no dropout.

    ours            this program, MoSLoRA's dense mixer          lora      the same with the identity
    ours:padded     … with that engine; also ours:transformers
    peft:4:random   PEFT's LoRA as the released script runs it: micro-batches of 4, padded left
    peft:…          … with other sizes of micro-batch and ways to sample
"""

import random
import resource
import statistics
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from benchmarks import DOCS
from benchmarks.commands import command, in_turns
from benchmarks.speed.contestants import after_steps, our_step, timed, trainer, with_lora
from benchmarks.speed.products import floor
from benchmarks.tables import against_first, machine, markdown, publish
from moslora.choices import LossOn

STEP = 16
SETTINGS: dict[str, tuple[LossOn, float]] = {"paper": ("all", 0.05), "response": ("response", 0.0)}
TASKS = "[boolq, piqa, siqa, winogrande, arc_easy, arc_challenge, obqa]"
CONTESTANTS = ("ours", "lora", "peft:4:random", "peft:4:group_by_length", "peft:8:group_by_length")


def recipe_of(setting: str, *overrides: str) -> Any:
    from moslora.recipe import load_recipe

    loss_on, dropout = SETTINGS[setting]
    base = ["model.name=smollm2-135m-instruct", "data.source=wheel", f"data.tasks={TASKS}", "data.validation_rows=0"]
    return load_recipe("llama3-8b", [*base, f"data.loss_on={loss_on}", f"adapter.dropout={dropout}", *overrides])


def rows(setting: str, steps: int) -> tuple[list[Any], Any]:
    """Encoded training rows, enough for ``steps``, and the recipe."""
    from moslora.base.load import load_tokenizer
    from moslora.data.encode import Encoder
    from moslora.data.prepared import RunRows

    recipe = recipe_of(setting, f"data.rows={STEP * steps}")  # of each set
    encoder = Encoder(load_tokenizer(recipe.model), max_length=recipe.data.max_length)
    encoded = list(RunRows(recipe.data, recipe.training_tasks, encoder, recipe.seed).prepare().rows)
    random.Random(0).shuffle(encoded)
    return encoded[: STEP * steps], recipe


def ours(encoded: Sequence[Any], recipe: Any, *, size: int) -> dict[str, float]:
    """Seconds of a step of moslora's loop over ``size`` rows without the first step, and seconds of a step's products.

    ``gb`` is the peak of memory above that before the first step.
    """
    from moslora.base.load import choose_engine_of, read_base
    from moslora.training.prepare import adapt

    steps = [encoded[at : at + size] for at in range(0, len(encoded), size)]
    model = adapt(read_base(recipe.model), recipe)
    choose_engine_of(model, recipe.model)
    step = our_step(model, recipe.training)
    idle = idle_gb(model)
    times, _ = timed(step, steps)
    peak = peak_gb()
    products = floor(partial(step, steps[-1]))
    return {"seconds": statistics.median(times), "gb": peak - idle, "products": products}


def peft(encoded: Sequence[Any], recipe: Any, *, size: int, micro_batch: int, sampling: str) -> dict[str, float]:
    """Seconds of a step, and memory, of PEFT's LoRA under the Trainer; products are not measured."""
    from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq

    from moslora.base.load import load_tokenizer
    from moslora.base.resolve import locate

    tokenizer = load_tokenizer(recipe.model)
    tokenizer.padding_side = "left"
    base: Any = AutoModelForCausalLM.from_pretrained(locate(recipe.model.name), dtype=torch.bfloat16)
    model = with_lora(base, recipe.adapter)
    collate = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8, padding=True)
    others = {"train_sampling_strategy": sampling, "logging_steps": 1, "max_steps": len(encoded) // size}
    training = trainer(model, recipe.training, encoded, collate, micro_batch=micro_batch, each=size, **others)
    ends: list[float] = []
    after_steps(training, lambda: ends.append(time.perf_counter()))
    idle = idle_gb(model)
    training.train()
    times = [after - before for before, after in pairwise(ends)]
    return {"seconds": statistics.median(times), "gb": peak_gb() - idle}


def idle_gb(model: torch.nn.Module) -> float:
    """Memory before the first step, with all weights read: they are mapped from their file."""
    for weight in model.parameters():
        weight.sum()
    return peak_gb()


def peak_gb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def work(who: str, setting: str, steps: int) -> dict[str, float]:
    return trained_by(who, *rows(setting, steps + 1))


def trained_by(who: str, encoded: Sequence[Any], recipe: Any, *, size: int = STEP) -> dict[str, float]:
    """Training by the contestant of that name, in steps of so many rows."""
    from moslora.mixer_options import IdentityOptions

    name, *how = who.split(":")
    if name == "peft":
        return peft(encoded, recipe, size=size, micro_batch=int(how[0]), sampling=how[1])
    if how:
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"engine": how[0]})})
    if name == "lora":
        adapter = recipe.adapter.model_copy(update={"mixer": IdentityOptions()})
        recipe = recipe.model_copy(update={"adapter": adapter})
    return ours(encoded, recipe, size=size)


def main(
    *,
    repetitions: int = 5,
    steps: int = 8,
    settings: tuple[str, ...] = tuple(SETTINGS),
    contestants: tuple[str, ...] = CONTESTANTS,
    print_only: bool = False,
) -> None:
    table = [["setting", "contestant", "rows/s", "ours is", "memory above the weights", "products' share of ours"]]
    for setting in settings:
        found = in_turns(work, contestants, setting, steps, repetitions=repetitions)
        for who, (speed, ours_is, products) in against_first(found, STEP).items():
            memory = statistics.median(one["gb"] for one in found[who])
            table.append([setting, who, speed, ours_is, f"{memory:.2f} GB", products])
    text = f"{machine()}; {repetitions} processes each, {steps} steps\n\n{markdown(table)}"
    publish(text, DOCS / "speed.md", "training table", print_only=print_only)


if __name__ == "__main__":
    command(main, work, settings=SETTINGS)
