"""What a run needs before it is paid for: the memory of each device, whether it fits, and the time."""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch

from moslora.data.steps import MICRO_BATCH_TOKENS
from moslora.errors import UsageError
from moslora.kernels.rows import Rows
from moslora.plan.activations import Work, unknown
from moslora.plan.duration import GPUS, PROBED_STEPS, SHARE_OF_PEAK, operations, probe
from moslora.plan.memory import Memory, largest_budget, memory
from moslora.processes.devices import device, gpus, total_memory
from moslora.recipe import ModelSection, Recipe
from moslora.training.dry_run import Outline, dry_run

LABELLED = 0.25
"""Share of the tokens that are taken as labelled where the loss is on the answers and no row is at hand."""

STEPS_LOOKED_AT = 4_096
"""For the largest step, where the rows are at hand."""

SMALLER: tuple[dict[str, Any], ...] = (
    {"gradient_checkpointing": True},
    {"quantization": "nf4"},
    {"quantization": "nf4", "gradient_checkpointing": True},
    {"quantization": None},  # while loading, where it is to be sharded
)
"""Changes of a recipe's model that save memory, the cheapest first."""

Need = Callable[[ModelSection, Work], Memory]


@dataclass(frozen=True)
class Device:
    """What a process runs on: a GPU, or this machine's CPU; its bytes; and how many of it are here."""

    on_gpu: bool
    room: int
    here: int = 1

    @classmethod
    def found(cls) -> "Device":
        """This machine's GPUs, or its memory."""
        return cls(gpus() > 0, total_memory(device()), gpus() or 1)


@dataclass(frozen=True)
class Plan:
    """The run in words, the memory of each device as a table (header first), and what follows from it."""

    heading: list[str]
    table: list[list[str]]
    remarks: list[str]


def plan(recipe: Recipe, *, processes: int | None = None, gpu_memory: str | None = None, probing: bool = False) -> Plan:
    """What ``recipe`` needs.

    Args:
        processes: one for each device; ``None`` for all of this machine's GPUs, or one.
        gpu_memory: of each GPU, such as ``80GB``; ``None`` for this machine's GPU, or its CPU.
        probing: whether to run a few steps here, which loads the model and the rows.
    """
    device = Device(True, parse_bytes(gpu_memory)) if gpu_memory else Device.found()
    processes = processes or device.here
    rate = probe(recipe) if probing else None  # first, because it makes the rows
    outline = dry_run(recipe)
    if reason := unknown(outline.model):
        remark = f"memory and time are not known: {type(outline.model).__name__} {reason}"
        return Plan(heading=outline.lines, table=[], remarks=[remark])
    step = share_of_a_step(outline, recipe, processes=processes)
    budget = recipe.training.micro_batch_tokens or MICRO_BATCH_TOKENS[device.on_gpu]
    work = step.of(max(budget, step.longest))
    room = device.room if device.on_gpu else device.room // processes

    chosen = processes if recipe.training.strategy == "fsdp" else 1

    def need(section: ModelSection, work: Work, shards: int = chosen) -> Memory:
        return memory(
            outline.model,
            section,
            work,
            on_gpu=device.on_gpu,
            processes=processes,
            shards=shards,
            rank_budget=recipe.training.rank_budget is not None,
        )

    columns = {"GB": need(recipe.model, work)}
    if processes > 1:
        columns = {"ddp, GB": need(recipe.model, work, 1), "fsdp, GB": need(recipe.model, work, processes)}
    idle = max(0, processes - recipe.training.global_batch_size)
    waiting = [f"{idle} of {processes} processes have nothing to do: raise training.global_batch_size"] if idle else []
    unit = "GPU" if device.on_gpu else "process on this CPU"
    each = f"one {unit}" if processes == 1 else f"each of {processes} {unit}s" if device.on_gpu else f"each {unit}"
    pads = f", which attention pads by {work.padding - 1:.0%}" if device.on_gpu and outline.data else ""
    return Plan(
        heading=[
            *outline.lines,
            f"memory of {each} ({gigabytes(room)} GB), with micro-batches of up to {work.tokens:,} tokens{pads}:",
        ],
        table=as_table(columns),
        remarks=[
            *fit(recipe.model, need, work=work, step=step, room=room),
            *_sharding(recipe, need(recipe.model, work, processes), processes=processes, room=room),
            *waiting,
            *duration(outline, recipe, work, device=device, processes=processes - idle, rate=rate),
        ],
    )


def parse_bytes(text: str) -> int:
    """``80GB`` is 80 · 10⁹ bytes, ``80GiB`` 80 · 2³⁰; GB if there is no unit."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(GB|GiB|)", text.strip(), re.IGNORECASE)
    if not found or not (size := float(found[1])):
        raise UsageError(f"--gpu-memory {text}: must be the memory of one GPU, such as 80GB or 79.6GiB")
    return int(size * (2**30 if found[2].lower() == "gib" else 10**9))


def gigabytes(size: float) -> str:
    return f"{size / 1e9:,.2f}" if size < 1e10 else f"{size / 1e9:,.1f}"


def share_of_a_step(outline: Outline, recipe: Recipe, *, processes: int) -> Work:
    """A process's largest share of a step, as one micro-batch; without rows at hand, all of ``max_length``."""
    if outline.data is None:
        longest = recipe.data.max_length
        tokens = -(-recipe.training.global_batch_size // processes) * longest
        labels = tokens if recipe.data.loss_on == "all" else int(LABELLED * tokens)
        return Work(tokens=tokens, longest=longest, labels=labels, row=longest, padding=1.0)
    rows, lengths = outline.data.rows, outline.data.rows.lengths()
    steps = [outline.plan[step] for step in range(min(len(outline.plan), STEPS_LOOKED_AT))]
    shares = [[lengths[row] for row in step[rank::processes]] for step in steps for rank in range(processes)]
    largest = max(shares, key=sum)
    tokens = sum(largest)
    return Work(
        tokens=tokens,
        longest=max(map(max, filter(None, shares))),
        labels=round(tokens * rows.label_count() / rows.token_count()),
        row=Rows(tuple(sorted(largest)), torch.device("cpu")).scores / tokens,
        padding=max(largest) * len(largest) / tokens,
    )


def as_table(columns: dict[str, Memory]) -> list[list[str]]:
    """A row for each part of the memory that is not zero everywhere, and their sum."""
    names = [*(field.name for field in fields(Memory)), "total"]
    parts = {name: [getattr(column, name) for column in columns.values()] for name in names}
    return [["", *columns], *([name, *map(gigabytes, sizes)] for name, sizes in parts.items() if any(sizes))]


def _sharding(recipe: Recipe, sharded: Memory, *, processes: int, room: int) -> list[str]:
    """By which strategy the lines above are meant, and whether the other one helps."""
    if processes == 1:
        return []
    allowed = recipe.training.strategy == "ddp" and recipe.model.quantization != "int8"
    if allowed and sharded.total <= room:
        return ["these lines are for training.strategy=ddp; with training.strategy=fsdp it fits"]
    return [f"these lines are for training.strategy={recipe.training.strategy}"]


def fit(section: ModelSection, need: Need, *, work: Work, step: Work, room: int) -> list[str]:
    """Whether it fits, the largest budget that does, and otherwise what would help."""
    total = need(section, work).total
    largest = largest_budget(step, room=room, need=lambda work: need(section, work))
    if total <= room:
        if largest == step.tokens:
            return [
                f"fits, with any training.micro_batch_tokens: a step has {step.tokens:,} tokens per process at most"
            ]
        return [f"fits; the largest training.micro_batch_tokens that does is {largest:,}"]
    line = f"does not fit: {gigabytes(total - room)} GB too much"
    if largest is not None:
        return [f"{line}; the largest training.micro_batch_tokens that fits is {largest:,}"]
    reason = ", and a single row is too much"
    if need(section, work.of(work.longest)).loading:
        reason = " while each device quantises the whole base, before it is sharded"
    for change in SMALLER:
        if need(section.model_copy(update=change), work.of(work.longest)).total <= room:
            keys = " ".join(f"model.{key}={str(value or 'null').lower()}" for key, value in change.items())
            return [f"{line}{reason}; try {keys}"]
    return [f"{line}{reason}, also in 4 bits; it needs more memory"]


def duration(
    outline: Outline, recipe: Recipe, work: Work, *, device: Device, processes: int, rate: float | None
) -> list[str]:
    """The time by the measured tokens a second, or at an assumed share of the peak of GPUs with about this memory."""
    if rate:
        line = f"measured here: {rate:,.0f} tokens a second in one process, over {PROBED_STEPS} steps"
        together = f"; {processes} processes, if each is as fast" if processes > 1 else ""
        return [f"{line}{together}: {_time(outline.tokens / rate / processes)}"]
    total = operations(
        outline.model,
        tokens=outline.tokens,
        labels=round(outline.tokens * work.labels / work.tokens),
        row=outline.tokens / len(outline.plan) / recipe.training.global_batch_size,
        recomputed=recipe.model.gradient_checkpointing,
    )
    alike = [gpu for gpu in GPUS if device.on_gpu and abs(gpu.memory * 1e9 / device.room - 1) < 0.1]
    times = [f"{gpu.name} {_time(total / (gpu.peak * 1e12 * SHARE_OF_PEAK * processes))}" for gpu in alike]
    assumed = f"; at {SHARE_OF_PEAK:.0%} of the peak, an assumption: {', '.join(times)}" if times else ""
    return [f"about {total:.1e} operations{assumed}; --probe measures a few steps here"]


def _time(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 5400 else f"{max(1, round(seconds / 60))} min"
