"""The plan of a run, before it is paid for: the memory of each device, whether it fits, and the time."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from moslora.data.steps import default_micro_batch_tokens
from moslora.errors import first_line
from moslora.plan.duration import PROBED_STEPS, cost, in_words, on_gpus, probe
from moslora.plan.memory import Memory, largest_budget, memory
from moslora.plan.outline import Outline, outline
from moslora.plan.sizes import parse_bytes
from moslora.plan.step import Work
from moslora.processes.devices import device, gpus, total_memory
from moslora.recipe import ModelSection, Recipe

SMALLER: tuple[dict[str, Any], ...] = (
    {"gradient_checkpointing": True},
    {"quantization": "nf4"},
    {"quantization": "nf4", "gradient_checkpointing": True},
    {"quantization": None},  # while loading, where it is to be sharded
)
"""Changes of a recipe's model that save memory, the cheapest first."""


@dataclass(frozen=True)
class Plan:
    """The run in words, the memory of each device as a table (header first), and what follows from it."""

    heading: list[str]
    table: list[list[str]]
    remarks: list[str]
    fits: bool = True  # false on a GPU alone: without one here or named, another machine may be meant


def plan(recipe: Recipe, *, processes: int | None = None, gpu_memory: str | None = None, probing: bool = False) -> Plan:
    """Memory and time of ``recipe``.

    Args:
        processes: one for each device; ``None`` for as many as `moslora train` starts here.
        gpu_memory: of each GPU, such as ``80GB``; ``None`` for this machine's GPU, or its CPU.
        probing: whether to run a few steps here, which loads the model and the rows.
    """
    on_gpu = gpu_memory is not None or gpus() > 0
    size = total_memory(device()) if gpu_memory is None else parse_bytes(gpu_memory)
    if processes is None:
        devices = gpus() if gpu_memory is None else 1
        processes = max(1, min(devices, recipe.training.global_batch_size))
    room = size if on_gpu else size // processes
    rate = probe(recipe) if probing else None  # first, because it makes the rows
    run, section, training = outline(recipe), recipe.model, recipe.training
    step = run.share_of_a_step(processes)
    work = step.of(training.micro_batch_tokens or default_micro_batch_tokens(on_gpu=on_gpu))
    budget = training.rank_budget is not None
    need = partial(memory, run.model, on_gpu=on_gpu, processes=processes, rank_budget=budget)
    try:
        ddp, fsdp = (need(section, work, shards=shards) for shards in (1, processes))
    except (NotImplementedError, RuntimeError) as error:
        reason = f"{type(run.model).__name__} {first_line(error)}"
        return Plan(run.lines, table=[], remarks=[f"memory and time are not known: {reason}"])
    columns = {"GB": ddp} if processes == 1 else {"ddp, GB": ddp, "fsdp, GB": fsdp}
    chosen = partial(need, shards=processes if training.strategy == "fsdp" else 1)
    remarks = [fit(section, chosen, work=work, step=step, room=room)]
    if processes > 1:
        helps = training.strategy == "ddp" and section.quantization != "int8" and fsdp.total <= room
        strategy = f"these lines are for training.strategy={training.strategy}"
        remarks.append(strategy + "; with training.strategy=fsdp it fits" * helps)
    if idle := max(0, processes - training.global_batch_size):
        remarks.append(f"{idle} of {processes} processes have nothing to do: raise training.global_batch_size")
    working = processes - idle
    if rate:
        together = f"; {working} processes, if each is as fast" * (working > 1)
        took = f"{together}: {in_words(run.tokens / rate / working)}"
        remarks.append(f"measured here: {rate:,.0f} tokens a second in one process, over {PROBED_STEPS} steps{took}")
    else:
        remarks.append(estimated(run, recipe, processes=working, room=room if on_gpu else None))
    unit = f"of {processes} GPUs" if on_gpu else "process on this CPU"
    each = f"each {unit}" if processes > 1 else "one GPU" if on_gpu else f"one {unit}"
    heading = f"memory of {each} ({gigabytes(room)} GB), with micro-batches of up to {work.tokens:,} tokens:"
    fits = not on_gpu or chosen(section, work).total <= room
    return Plan([*run.lines, heading], as_table(columns), remarks, fits)


def estimated(run: Outline, recipe: Recipe, *, processes: int, room: int | None) -> str:
    """The operations of the run, and its time on GPUs that have ``room``, if it is for GPUs."""
    tokens, on_gpu = run.tokens, room is not None
    of_a_share = tokens / len(run.plan) / processes
    budget = recipe.training.micro_batch_tokens or default_micro_batch_tokens(on_gpu=on_gpu)
    row = tokens / len(run.plan) / recipe.training.global_batch_size
    passes = len(run.plan) * processes * math.ceil(of_a_share / budget)
    total = cost(run.model, recipe.model, tokens=tokens, labels=tokens * run.labelled, row=row, passes=passes)
    dtype = recipe.model.dtype
    times = "" if room is None else on_gpus(total.of_each(processes), dtype=dtype, memory=room)
    return f"about {total.operations:.1e} operations{times}; moslora plan RECIPE --probe measures a few steps here"


def gigabytes(size: float) -> str:
    return f"{size / 1e9:,.2f}" if size < 1e10 else f"{size / 1e9:,.1f}"


def as_table(columns: dict[str, Memory]) -> list[list[str]]:
    """A row for each part of the memory that is not zero everywhere, and their sum."""
    names = [*(field.name for field in fields(Memory)), "total"]
    parts = {name: [getattr(column, name) for column in columns.values()] for name in names}
    return [["", *columns], *([name, *map(gigabytes, sizes)] for name, sizes in parts.items() if any(sizes))]


def fit(
    section: ModelSection, need: Callable[[ModelSection, Work], Memory], *, work: Work, step: Work, room: int
) -> str:
    """Whether it fits, the largest budget that does, and otherwise what would help."""
    excess = need(section, work).total - room
    largest = largest_budget(step, room=room, need=partial(need, section))
    if excess <= 0 and largest == step.tokens:
        return f"fits, even a whole step in one pass: at most {largest:,} tokens in each process"
    if excess <= 0:
        return f"fits; the largest training.micro_batch_tokens that does is {largest:,}"
    line = f"does not fit: {gigabytes(excess)} GB too much"
    if largest is not None:
        return f"{line}; the largest training.micro_batch_tokens that fits is {largest:,}"
    one_row = work.of(0)
    loading = need(section, one_row).loading
    line += " while each device quantises the whole base, before it is sharded" if loading else ", even with one row"
    for change in SMALLER:
        if need(section.model_copy(update=change), one_row).total <= room:
            keys = " ".join(f"model.{key}={str(value or 'null').lower()}" for key, value in change.items())
            return f"{line}; try {keys}"
    return f"{line}, even in 4 bits; it needs more memory"
