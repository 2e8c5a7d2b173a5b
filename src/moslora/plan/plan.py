"""Plan of a run before it starts: the memory of each device, whether it fits, and the time."""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from transformers import PreTrainedModel

from moslora.base.adapted import adapter_state
from moslora.base.resolve import available_offline
from moslora.choices import Strategy
from moslora.data.steps import default_micro_batch_tokens
from moslora.errors import counted, first_line
from moslora.evaluation.request import Request
from moslora.plan.duration import PROBED_STEPS, format_duration, on_gpus, on_this_cpu, probe
from moslora.plan.memory import Devices, Memory, largest_budget, memory
from moslora.plan.outline import Outline, evaluation, outline
from moslora.plan.sizes import parse_bytes
from moslora.plan.step import Work
from moslora.processes.devices import device, gpus, total_memory
from moslora.recipe import ModelSection, Recipe, TrainingSection
from moslora.runs.bare_rows import asks_nothing
from moslora.training.launch import refuse_too_many_processes

COPIED = 2e9
"""Bytes of a checkpoint copied from a GPU in a second, during which its steps wait; a thread writes the copy. An
assumption."""

FEW_TOKENS = 800
"""Tokens of a step below which a fast GPU waits for its host: docs/speed.md, "On a GPU: an estimate"."""

HOST_OF_A_PROCESS = 3 * 10**9
"""Bytes of the machine's memory that a process on a GPU takes: Python, torch, CUDA's libraries and the rows. An
assumption."""

BYTES_OF_MOMENTS = 8
"""Bytes of AdamW's two moments of a trained number, in float32."""

SMALLER: Mapping[str, dict[str, Any]] = {
    "model.gradient_checkpointing=true": {"gradient_checkpointing": True},
    "model.quantization=nf4": {"quantization": "nf4"},
    "model.quantization=nf4 model.gradient_checkpointing=true": {
        "quantization": "nf4",
        "gradient_checkpointing": True,
    },
    "model.quantization=null": {"quantization": None},  # while loading, where it is to be sharded
}
"""Overrides that save memory, the cheapest first, and what they change in the recipe's model section."""


A_DAY = 86_400
"""Seconds of a day."""


@dataclass(frozen=True)
class Plan:
    """Lines that describe a run, the memory of each device as a table (header first), and the conclusions."""

    heading: list[str]
    table: list[list[str]]
    remarks: list[str]
    fits: bool = True  # into the memory of what it was planned for, unless that is a CPU on which nobody would train it


def plan(
    recipe: Recipe,
    *,
    overrides: str = "RECIPE",
    processes: int | None = None,
    gpu_memory: str | None = None,
    probing: bool = False,
) -> Plan:
    """Plan the memory and the time of ``recipe``.

    Args:
        overrides: words of the command line, recipe and overrides, for the suggested `moslora plan` with --gpu-memory.
        processes: one for each device; ``None`` for as many as `moslora train` starts here.
        gpu_memory: of each GPU, such as ``80GB``; ``None`` for this machine's GPU, or its CPU.
        probing: whether to run a few steps here, which loads the model and the rows.
    """
    training = recipe.training
    devices, room = _devices(processes, gpu_memory, rows=training.global_batch_size)
    processes = devices.processes
    rate = probe(recipe) if probing else None  # first, because it makes the rows
    run = outline(recipe)
    whole_step = run.share_of_a_step(processes)
    budget = training.micro_batch_tokens or default_micro_batch_tokens(on_gpu=devices.on_gpu)
    micro_batch = whole_step.limited_to(budget)
    need = partial(memory, run.model, rank_budget=training.rank_budget is not None)
    by_strategy: dict[Strategy, Devices] = {"ddp": devices, "fsdp": replace(devices, shards=processes)}
    try:
        needed = {name: need(recipe.model, micro_batch, shared) for name, shared in by_strategy.items()}
    except (NotImplementedError, RuntimeError) as error:
        reason = f"{type(run.model).__name__} {first_line(error)}"
        return Plan(run.summary, table=[], remarks=[f"memory and time are not known: {reason}"])
    strategy = training.strategy
    need_of_chosen = partial(need, devices=by_strategy[strategy])
    remarks = [fit(recipe.model, need_of_chosen, micro_batch=micro_batch, whole_step=whole_step, room=room)]
    columns = {"GB": needed["ddp"]}
    if processes > 1:
        columns = {f"{name}, GB": parts for name, parts in needed.items()}
        remark = f"this is for training.strategy={strategy}"
        if strategy == "ddp" and recipe.model.can_be_sharded and needed["fsdp"].total <= room < needed["ddp"].total:
            remark += "; with training.strategy=fsdp it fits"
        remarks.append(remark)
    remarks.append(disk_line(run.model, training))
    if devices.on_gpu:
        of_host = processes * HOST_OF_A_PROCESS + saved_sizes(run.model)[1]
        remarks.append(f"memory of their machine: about {gigabytes(of_host)} GB for {counted(processes, 'rank')}")
    if gpu_memory is None and available_offline(recipe.model.name, revision=recipe.model.revision) is None:
        remarks.append(download_line(run.model))
    times, seconds = _about_time(run, recipe, devices, budget=budget, room=room, rate=rate)
    remarks += times
    lines = run.summary
    many = f" --processes {processes}" if processes > 1 else ""
    is_too_long = not devices.on_gpu and seconds > A_DAY
    if is_too_long or (many and not devices.on_gpu):
        first = (
            f"no GPU here: this is for this CPU, where the run takes about {format_duration(seconds)}; for GPUs:"
            f" moslora plan {overrides}{many} --gpu-memory 80GB"
        )
        lines = [first, *lines]
    place = "GPU" if devices.on_gpu else "process on this CPU"
    heading = (
        f"memory of each {place} ({gigabytes(room)} GB), with micro-batches of up to {micro_batch.tokens:,} tokens:"
    )
    fits = (is_too_long and not many) or needed[strategy].total <= room
    return Plan([*lines, heading], as_table(columns), remarks, fits)


def _devices(processes: int | None, gpu_memory: str | None, *, rows: int) -> tuple[Devices, int]:
    """Devices of the run, and the bytes of memory that each process has.

    Without ``gpu_memory`` the devices are this machine's. Without ``processes`` there is one process for each GPU of
    this machine, but no more than a step has ``rows``; with ``gpu_memory``, or on a CPU, there is one.
    """
    if gpu_memory is not None:
        count = 1
        size = parse_bytes(gpu_memory)
    else:
        count = gpus()
        size = total_memory(device())
    on_gpu = count > 0
    if processes is None:
        processes = max(1, min(count, rows))
    refuse_too_many_processes(processes, rows=rows)
    if not on_gpu:
        size //= processes
    return Devices(on_gpu, processes), size


def _about_time(
    run: Outline, recipe: Recipe, devices: Devices, *, budget: int, room: int, rate: float | None
) -> tuple[list[str], float]:
    """Time of the run in words, and its seconds on a CPU: by the measured ``rate`` of one process, in tokens a second,
    or estimated."""
    processes = devices.processes
    if rate is not None:
        seconds = (run.tokens + run.validated) / rate / processes
        measured = f"measured here: {rate:,.0f} tokens a second in each process, over {PROBED_STEPS} steps"
        return [f"{measured}: {format_duration(seconds)}"], seconds
    dtype = recipe.model.dtype
    total = run.cost(recipe, processes=processes, budget=budget)
    request = Request.of(recipe)
    questions, scoring = evaluation(run.model, recipe.model, request, recipe.questions.tasks)
    if devices.on_gpu:
        seconds = 0.0
        checkpoints = math.ceil(len(run.plan) / recipe.training.checkpoint_every)
        copied = checkpoints * saved_sizes(run.model)[1] / COPIED
        on_these = partial(on_gpus, dtype=dtype, memory=room, devices=processes)
        times = f"an estimate, with validations and checkpoints: {on_these(total, beside=copied)}"
        of_questions = on_these(scoring)
    else:
        seconds = on_this_cpu(total, run.model, dtype)
        times = f"by two products that were timed here: {format_duration(seconds)}"
        of_questions = format_duration(seconds * scoring.operations / total.operations)
    probed = "moslora plan RECIPE --probe measures a few steps here"
    lines = [f"about {total.operations:.1e} operations; {times}; {probed}"]
    if questions and not (run.data and asks_nothing(recipe, run.data.rows.tasks)):
        lines.append(f"then {questions:,} test questions by {request.protocol}: {of_questions}")
    tokens = run.tokens / len(run.plan) / processes
    if devices.on_gpu and processes > 1 and tokens < FEW_TOKENS:
        lines.append(
            f"note: each GPU has {tokens:,.0f} tokens of a step and waits for its host; below some {FEW_TOKENS}, one"
            " run per GPU, with other seeds or rates, gains more than one run on all"
        )
    return lines, seconds


def gigabytes(size: float) -> str:
    """Format bytes in GB, with two decimals below 10 GB, otherwise with one."""
    digits = 2 if size < 1e10 else 1
    return f"{size / 1e9:,.{digits}f}"


def saved_sizes(model: PreTrainedModel) -> tuple[int, int]:
    """Bytes of the adapter, and of a checkpoint, which also has AdamW's moments."""
    adapter = sum(weight.numel() * weight.element_size() for weight in adapter_state(model).values())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return adapter, adapter + BYTES_OF_MOMENTS * trained


def disk_line(model: PreTrainedModel, training: TrainingSection) -> str:
    """Line with the size of the result and of the kept checkpoints. Where the best step is the result, a kept
    checkpoint may come with a second one, that of the best step until then."""
    adapter, checkpoint = saved_sizes(model)
    kept = training.keep_checkpoints
    if training.result == "best":
        kept *= 2
    total, of_each, result = (f"{size / 1e6:,.1f}" for size in (adapter + kept * checkpoint, checkpoint, adapter))
    return f"on the disk up to {total} MB: {kept} checkpoints of {of_each} MB, a result of {result}"


def download_line(model: PreTrainedModel) -> str:
    """Line with the size of the base in 16 bits, and the free space where it is downloaded."""
    cache = Path(constants.HF_HUB_CACHE)
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    size = 2 * model.num_parameters()
    free = shutil.disk_usage(place).free
    line = f"to download: about {gigabytes(size)} GB into {cache}, where {gigabytes(free)} GB are free"
    return f"{line}; too little" if free < size else line


def as_table(columns: dict[str, Memory]) -> list[list[str]]:
    """Table with a row for each part of the memory, without parts that are zero in all columns, and their sum."""
    rows = [["", *columns]]
    for name in [*(field.name for field in fields(Memory)), "total"]:
        sizes = [getattr(column, name) for column in columns.values()]
        if any(sizes):
            rows.append([name, *(gigabytes(size) for size in sizes)])
    return rows


def fit(
    section: ModelSection,
    need: Callable[[ModelSection, Work], Memory],
    *,
    micro_batch: Work,
    whole_step: Work,
    room: int,
) -> str:
    """Line that says whether ``micro_batch`` fits into ``room`` bytes, the largest that does, and otherwise what would
    help."""
    excess = need(section, micro_batch).total - room
    largest = largest_budget(whole_step, room=room, need=partial(need, section))
    if excess <= 0 and largest == whole_step.tokens:
        return f"fits, even a whole step in one pass: at most {largest:,} tokens in each process"
    if excess <= 0:
        return f"fits; the largest training.micro_batch_tokens that does is {largest:,}"
    line = f"does not fit: {gigabytes(excess)} GB too much"
    if largest is not None:
        return f"{line}; the largest training.micro_batch_tokens that fits is {largest:,}"
    one_row = micro_batch.limited_to(0)
    if need(section, one_row).loading:
        line += " while each device quantises the whole base, before it is sharded"
    else:
        line += ", even with one row"
    for overrides, change in SMALLER.items():
        if need(section.model_copy(update=change), one_row).total <= room:
            return f"{line}; try {overrides}"
    return f"{line}, even in 4 bits; it needs more memory"
