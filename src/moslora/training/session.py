"""Session of a training: processes lock a run's folder, agree on what they train, and start or resume it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType

from moslora.base.failures import or_out_of_memory
from moslora.console import note, say
from moslora.errors import UsageError
from moslora.files import locked, refuse_used, remove_leftovers
from moslora.kernels import liger
from moslora.process_rank import is_main_process, world_size
from moslora.processes.devices import device
from moslora.processes.group import process_group, take_gpu
from moslora.recipe import KEPT, Recipe
from moslora.recipe.recipe import OF_ACCURACY, flat
from moslora.runs.absolute_paths import with_absolute_paths
from moslora.runs.adapter_folder import ENGINE, AdapterFolder, changed_encoding
from moslora.runs.best import TRAINED_STEPS, ending
from moslora.runs.continued import Continued, read_continued
from moslora.runs.origin import predecessor_of
from moslora.runs.resuming import newest_saved
from moslora.runs.run import CHECKPOINTS, RUN, Run
from moslora.runs.trackers import refuse_missing_trackers
from moslora.training.checkpoints import restore
from moslora.training.launch import refuse_too_many_processes
from moslora.training.prepare import Inputs, gather_inputs, prepare
from moslora.training.questions import validation_questions
from moslora.training.run_card import packages, record_outcome
from moslora.training.samples import Sampler
from moslora.training.train import Training
from moslora.training.validation import QUESTIONS, Validator


def train_run(recipe: Recipe, run: Run, *, resuming: bool = False) -> Path:
    """Train ``run`` by ``recipe``, which was checked, and return the folder of the result.

    ``resuming`` continues from the newest checkpoint, or from the start if there is none. A finished run is not trained
    again.

    Raises:
        UsageError: the folder holds another run or is in use, the recipe does not fit its data, its model or the number
            of processes, or the processes differ in what they train.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written.
        Diverged: a loss or gradient is not finite.
        MosloraError: nothing was learned, the GPU is out of memory, or the disk is full; the last checkpoint is intact.
    """
    smaller = "a smaller training.micro_batch_tokens or model.gradient_checkpointing=true"
    lock: AbstractContextManager[Any] = locked(run.path, shared=(RUN,)) if is_main_process() else nullcontext()
    with lock, or_out_of_memory(f"out of GPU memory; use {smaller}"):
        take_gpu()
        if is_main_process():
            if not resuming:
                refuse_used(run.path)  # by a process that was faster
            remove_leftovers(run.path / CHECKPOINTS)
        refuse_too_many_processes(world_size(), rows=recipe.training.global_batch_size)
        saved = newest_saved(run, recipe) if resuming else None
        facts = agreed_by_processes(recipe, saved)
        start: AdapterFolder | Continued | None = saved
        if saved is None:
            start = read_continued(recipe, begun_with=predecessor_of(run.facts))
        if start is not None and start.predecessor is not None:
            facts["the adapter that it continues"] = start.predecessor.adapter[:12]
        then = f"resume: {run.resume_command}"
        if saved is not None and saved.path == run.result:
            with process_group(facts, then=then):
                return _already_finished(run, saved)
        if is_main_process():
            refuse_missing_trackers(recipe.tracking.to)
        inputs = gather_inputs(recipe)
        facts["the hash of the training rows"] = inputs.data.sha256[:12]
        facts["the hash of their tokens"] = inputs.data.tokens_sha256[:12]
        facts["the fingerprint of the base"] = inputs.base
        with process_group(facts, then=then):
            made_by_experiment = run.exists and not run.begun
            if resuming and saved is None and not made_by_experiment:
                note("no checkpoint yet; starting at step 0")
            # A function, so that nothing of it outlives the group.
            return _train_in_group(with_absolute_paths(recipe), run, start, inputs)


def _already_finished(run: Run, saved: AdapterFolder) -> Path:
    """Say that the run is finished and return its result, which is ``saved``."""
    done = saved.manifest.get(TRAINED_STEPS, saved.manifest["step"])
    if is_main_process():
        record_outcome(run)
    for line in ending(saved.manifest, saved.recipe.training):
        say(line)
    planned = run.facts.get("steps", done)
    say(f"{run.path}: finished, {done} of {planned} steps; start a new run with name=… or --out")
    return saved.path


def agreed_by_processes(recipe: Recipe, saved: AdapterFolder | None) -> dict[str, Any]:
    """Values that must be the same on every process; they are compared before base and rows are read."""
    facts = recipe.values_changing(*KEPT)
    for path in ("model.name", "adapter.continue_from"):  # which may differ between machines
        del facts[path]
    values = flat(recipe.model_dump(mode="json"))
    # These may change between runs, but not between processes, which share the validation questions.
    for path in ("training.strategy", "training.micro_batch_tokens", "training.validate_every", *OF_ACCURACY):
        facts[path] = values[path]
    facts["the first step"] = saved.manifest.get("step", 0) if saved is not None else 0
    facts["the kind of device"] = device().type
    return facts | packages(recipe)


def _train_in_group(recipe: Recipe, run: Run, start: AdapterFolder | Continued | None, inputs: Inputs) -> Path:
    """Prepare, start or resume, and finish the training, in a group of processes."""
    accelerator = Accelerator(mixed_precision="no", cpu=device().type == "cpu")  # dtypes and the scaler are ours
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise UsageError(
            f"accelerate is set to {accelerator.distributed_type}; only plain data parallelism works here;"
            " training.strategy=fsdp shards the base"
        )
    liger.agree()
    state, data = prepare(accelerator, recipe, start, inputs=inputs)
    predecessor = start.predecessor if start is not None else None
    asked_before = start.manifest.get(QUESTIONS) if isinstance(start, AdapterFolder) else None
    questions = validation_questions(state.model, inputs.tokenizer, recipe, data, count=asked_before)
    sampler = Sampler.of(state, inputs.tokenizer, recipe, data.validation) if recipe.training.samples else None
    training = Training(run, recipe, state, data, Validator(data.validation, questions, sampler), predecessor)
    begun_with = start.manifest if isinstance(start, AdapterFolder) else run.facts
    if "data" in begun_with:
        _refuse_other_rows(training, begun_with)
    first_step = _resume(training, start) if isinstance(start, AdapterFolder) else 0
    training.start()
    done = training.train(first_step)
    return training.finish(done)


def _refuse_other_rows(training: Training, begun_with: Mapping[str, Any]) -> None:
    """Refuse rows, or a tokenizer that reads them, that are not those of a manifest or run card."""
    fix = "restore them, or start a new run with name=… or --out"
    then = begun_with["data"]
    now = training.data
    if then["sha256"] != now.sha256:
        hashes = f"sha256 was {then['sha256'][:12]}…, is {now.sha256[:12]}…"
        raise UsageError(f"{training.run.path}: the training rows have changed ({hashes}); {fix}")
    if then["tokens_sha256"] != now.tokens_sha256:
        changed = changed_encoding(begun_with, now.encoding) or "the code that encodes them"
        if now.replay is not None:
            changed += ", or a text of data.replay,"
        raise UsageError(f"{training.run.path}: the training rows have other tokens now: {changed} changed; {fix}")


def _resume(training: Training, saved: AdapterFolder) -> int:
    """Restore optimizer, scaler, budget and selection from ``saved``, and return the number of updates done."""
    restore(saved, training.state)
    manifest = saved.manifest
    say(f"resuming after step {manifest['step']} of {len(training.state.plan)}")
    facts = training.facts(steps=0)
    for key in ("processes", "micro_batch_tokens", ENGINE):
        if manifest.get(key, facts[key]) != facts[key]:
            note(
                f"{key} was {manifest[key]} and is now {facts[key]}: dropout or rounding differ, so the result may"
                " differ from that of an uninterrupted run"
            )
    return int(manifest["step"])


def close(run: Run) -> None:
    """Finish the card of a run whose process was killed after it had saved the result."""
    with locked(run.path, shared=(RUN,)):
        record_outcome(run)
