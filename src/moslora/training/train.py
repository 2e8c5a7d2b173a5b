"""One training: from a recipe to a run folder (`moslora.runs.run`)."""

import platform
import signal
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType

from moslora.adapters import has_learned
from moslora.base.adapted import adapter_state
from moslora.base.failures import or_out_of_memory
from moslora.base.identity import fingerprint
from moslora.console import note, say
from moslora.data.prepared import TrainingData
from moslora.errors import Interrupted, MosloraError, UsageError
from moslora.files import locked, refuse_used, remove_leftovers, replacing
from moslora.kernels import liger
from moslora.processes.devices import device
from moslora.processes.group import process_group, shorten_waits, take_gpu
from moslora.progress import Line
from moslora.ranks import is_main_process, world_size
from moslora.recipe import KEPT, Recipe
from moslora.recipe.recipe import OF_ACCURACY, flat
from moslora.runs.absolute_paths import with_absolute_paths
from moslora.runs.adapted_model import save_adapter
from moslora.runs.adapter_folder import ENGINE, AdapterFolder, changed_encoding, open_adapter
from moslora.runs.best import BEST, TRAINED_STEPS, ending
from moslora.runs.continued import Continued, read_continued
from moslora.runs.manifest import WEIGHTS, read_manifest
from moslora.runs.origin import Origin, predecessor_of
from moslora.runs.resuming import newest_saved
from moslora.runs.run import CHECKPOINTS, RUN, Run
from moslora.runs.trackers import record, refuse_missing_trackers
from moslora.training.launch import refuse_too_many_processes
from moslora.training.loop import Parts, rehearse, train
from moslora.training.prepare import Inputs, gather_inputs, prepare
from moslora.training.questions import validation_questions
from moslora.training.run_card import describe, git_state, hardware, kernels, packages, strategy
from moslora.training.state import copied_state, delete_old_checkpoints, restore, save_checkpoint
from moslora.training.stopping import stop_requests
from moslora.training.tracking import Tracker
from moslora.training.validation import QUESTIONS, Validator, in_fields


def train_run(recipe: Recipe, run: Run, *, resuming: bool = False) -> Path:
    """Trains ``run`` as ``recipe``, which was checked, describes it and returns the folder of the result.

    ``resuming`` goes on from the newest checkpoint, or from the start if there is none; a finished run is returned.

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
            laid_by_experiment = run.exists and not run.begun
            if resuming and saved is None and not laid_by_experiment:
                note("no checkpoint yet; starting at step 0")
            # A function, so that nothing of it outlives the group.
            return _train_in_group(with_absolute_paths(recipe), run, start, inputs)


def _already_finished(run: Run, saved: AdapterFolder) -> Path:
    """Says that the run is finished and returns its result, which is ``saved``."""
    done = saved.manifest.get(TRAINED_STEPS, saved.manifest["step"])
    if is_main_process():
        _record_outcome(run)
    for line in ending(saved.manifest, saved.recipe.training):
        say(line)
    planned = run.facts.get("steps", done)
    say(f"{run.path}: finished, {done} of {planned} steps; start a new run with name=… or --out")
    return saved.path


def agreed_by_processes(recipe: Recipe, saved: AdapterFolder | None) -> dict[str, Any]:
    """What must be the same on every process, before each has looked at base and rows."""
    facts = recipe.values_changing(*KEPT)
    for path in ("model.name", "adapter.continue_from"):  # which may differ between machines
        del facts[path]
    values = flat(recipe.model_dump(mode="json"))
    # These may change between runs, but not between processes, which share the validation questions.
    for path in ("training.strategy", "training.micro_batch_tokens", "training.validate_every", *OF_ACCURACY):
        facts[path] = values[path]
    facts["the first step"] = saved.manifest.get("step", 0) if saved is not None else 0
    facts["the kind of device"] = device().type
    return facts | packages(recipe.model, recipe.adapter)


def _train_in_group(recipe: Recipe, run: Run, start: AdapterFolder | Continued | None, inputs: Inputs) -> Path:
    accelerator = Accelerator(mixed_precision="no", cpu=device().type == "cpu")  # dtypes and the scaler are ours
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise UsageError(
            f"accelerate is set to {accelerator.distributed_type}; only plain data parallelism works here;"
            " training.strategy=fsdp shards the base"
        )
    liger.agree()
    parts, data = prepare(accelerator, recipe, start, inputs=inputs)
    predecessor = start.predecessor if start is not None else None
    asked_before = start.manifest.get(QUESTIONS) if isinstance(start, AdapterFolder) else None
    questions = validation_questions(parts.model, inputs.tokenizer, recipe, data, count=asked_before)
    training = Training(run, recipe, parts, data, Validator(data.validation, questions), predecessor)
    first_step = training.resume(start) if isinstance(start, AdapterFolder) else 0
    training.begin()
    done = training.train(first_step)
    return training.finish(done)


@dataclass(frozen=True)
class Training:
    """A prepared training of ``run``; the same on every process, but only the main one writes and prints."""

    run: Run
    recipe: Recipe
    parts: Parts
    data: TrainingData
    validator: Validator
    predecessor: Origin | None = None  # the adapter that it continues
    writing: list[Future[None]] = field(default_factory=list)  # the checkpoint that is being saved

    def facts(self, *, steps: int) -> dict[str, Any]:
        """Facts for the manifest after ``steps`` updates, and for the card."""
        facts = {
            "data": self.data.facts(self.parts.plan, steps=steps),
            "encoding": self.data.encoding,
            "packages": packages(self.recipe.model, self.recipe.adapter),
            "trained_rows": len(self.data.rows),
            "processes": self.parts.accelerator.num_processes,
            ENGINE: self.parts.engine.name,
            "micro_batch_tokens": self.parts.micro_batch_tokens,
            QUESTIONS: self.validator.question_count,
        }
        if self.predecessor is not None:
            facts |= self.predecessor.facts
        return facts

    def resume(self, saved: AdapterFolder) -> int:
        """Restores optimizer, scaler and budget from ``saved``, and returns the number of updates done.

        Raises:
            UsageError: the rows, or the tokenizer that reads them, are not those of ``saved``.
        """
        restore(saved, self.parts)
        manifest = saved.manifest
        fix = "restore them, or start a new run with name=… or --out"
        then = manifest["data"]
        now = self.data
        if then["sha256"] != now.sha256:
            hashes = f"sha256 was {then['sha256'][:12]}…, is {now.sha256[:12]}…"
            raise UsageError(f"{self.run.path}: the training rows have changed ({hashes}); {fix}")
        if then["tokens_sha256"] != now.tokens_sha256:
            changed = changed_encoding(manifest, now.encoding) or "the code that encodes them"
            if now.replay is not None:
                changed += ", or a text of data.replay,"
            raise UsageError(f"{self.run.path}: the training rows have other tokens now: {changed} changed; {fix}")
        say(f"resuming after step {manifest['step']} of {len(self.parts.plan)}")
        facts = self.facts(steps=0)
        for key in ("processes", "micro_batch_tokens", ENGINE):
            if manifest.get(key, facts[key]) != facts[key]:
                note(
                    f"{key} was {manifest[key]} and is now {facts[key]}: dropout or rounding differ, so the result may"
                    " differ from that of an uninterrupted run"
                )
        return int(manifest["step"])

    def begin(self) -> None:
        """Writes the recipe and ``run.json``, and prints what the run is."""
        recipe = self.recipe
        parts = self.parts
        if is_main_process():
            model = parts.model
            device = parts.accelerator.device
            steps = len(parts.plan)
            facts = self.facts(steps=steps)
            versions = {"python": platform.python_version(), **facts.pop("packages")}
            card = {
                "base_fingerprint": fingerprint(recipe.model.name, revision=recipe.model.revision),
                **facts,
                "steps": steps,
                **strategy(parts.objective),
                "trainable_parameters": model.num_parameters(only_trainable=True),
                "versions": versions,
                "git": git_state(),
                "hardware": hardware(device),
                "kernels": kernels(model, device),
            }
            self.run.begin(recipe, card)
            with replacing(self.run.contents) as contents:
                contents.write_bytes(self.data.contents)
        lines = describe(parts.model, parts.plan, base=recipe.model, adapter=recipe.adapter, training=recipe.training)
        if self.predecessor is not None:
            lines.append(f"continues {self.predecessor.with_hash}")
        for line in (*lines, *self.data.remarks(), *self.validator.remarks()):
            say(line)

    def train(self, first_step: int) -> int:
        """Runs the steps from ``first_step`` on, and returns the number of updates done: all, or fewer where patience
        ran out. Ends in `Interrupted`, with a checkpoint, on Ctrl-C or SIGTERM."""
        total = len(self.parts.plan)
        with ExitStack() as stack:
            records = []
            if is_main_process():
                for name in dict.fromkeys(self.recipe.tracking.to):
                    of_name = record(name, self.recipe, self.run, after=first_step)
                    records.append(stack.enter_context(of_name))
            signals = stack.enter_context(stop_requests())
            writer = stack.enter_context(ThreadPoolExecutor(1))  # whatever happens, its end is waited for
            is_done = first_step == total or self.parts.selection.patience_ran_out
            if self.parts.accelerator.device.type != "cpu" and not is_done:
                rehearse(self.parts, first_step=first_step)
                shorten_waits()
            line = stack.enter_context(Line(total - first_step, f"step {first_step}/{total}"))
            tracker = Tracker(
                self.run,
                line,
                first_step=first_step,
                total_steps=total,
                log_every=self.recipe.training.log_every,
                records=records,
            )
            tracker.validated = [self.parts.selection.so_far]
            done = train(
                self.parts,
                first_step=first_step,
                report=tracker.log_step,
                checkpoint=partial(self.checkpoint, writer),
                validate=partial(self.validate, tracker),
                stop_requested=lambda: bool(signals),
            )
            self.wait_for_checkpoint()
        self.parts.accelerator.wait_for_everyone()
        if done == total or self.parts.selection.patience_ran_out:
            return done
        raise Interrupted(
            f"stopped after step {done} of {total}; all is saved. Resume with: {self.run.resume_command}",
            signal_number=signals[0] if signals else signal.SIGTERM,  # which another process got
        )

    def checkpoint(self, writer: Executor, step: int) -> None:
        """Copies the state after ``step`` updates, which ``writer`` saves while the training goes on."""
        if is_main_process():
            self.wait_for_checkpoint()
            parts = self.parts
            facts = {**self.facts(steps=step), "step": step, "scaler": parts.scaler.state_dict()}
            facts |= parts.selection.facts
            state = copied_state(parts)
            saving = writer.submit(save_checkpoint, self.run, state, self.recipe, step=step, facts=facts)
            self.writing.append(saving)

    def wait_for_checkpoint(self) -> None:
        """Waits until the last checkpoint is saved, and raises what went wrong."""
        while self.writing:
            self.writing.pop().result()

    def validate(self, tracker: Tracker, step: int) -> bool:
        """Records a validation, if there are validation rows. Returns whether it is the best so far, where that decides
        something."""
        if not self.data.validation:
            return False
        selection = self.parts.selection
        metrics = self.validator.measure(self.parts)
        fields = in_fields(metrics)
        tracker.record({"step": step, **metrics})
        is_best = selection.consider(step, metrics[f"validation_{selection.best.by}"])
        tracker.validated = [selection.so_far, *fields]
        remark = selection.remark(step, start=self.run.validation_at_start(selection.best.by))
        say("  ".join(filter(None, [f"step {step}/{len(self.parts.plan)}", *fields, remark])))
        if step == 0:
            tracker.begin_steps()
        return is_best

    def finish(self, steps: int) -> Path:
        """Saves the result after ``steps`` updates, if anything was learned."""
        result = self.run.result
        if is_main_process():
            self._save_result(steps)
            _record_outcome(self.run)
            for line in ending(self.run.facts, self.recipe.training):
                say(line)
            say(f"adapter saved in {result}")
        self.parts.accelerator.wait_for_everyone()
        return result

    def _save_result(self, steps: int) -> None:
        moved = any(state["exp_avg"].any() for state in self.parts.optimizer.state.values())
        if not (moved and has_learned(self.parts.model)):
            raise MosloraError(f"nothing was learned: after {steps} steps the adapter is still as it started")
        # Those that a killed process left, before there is a result, with which the run is finished.
        delete_old_checkpoints(self.run, step=steps, training=self.recipe.training)
        facts = self.parts.selection.facts
        if facts:
            facts[TRAINED_STEPS] = steps
        weights = adapter_state(self.parts.model)
        if self.recipe.training.result == "best":
            best = self.parts.selection.best
            if best.step is None:
                fix = "try a lower training.learning_rate"
                raise MosloraError(f"{self.run.path}: {best}, so no step is the best; {fix}")
            steps = best.step
            weights = open_adapter(self.run.checkpoint(steps)).weights()
        facts = {**self.facts(steps=steps), "step": steps, **facts}
        save_adapter(self.run.result, {WEIGHTS: weights}, self.recipe, facts=facts)


def close(run: Run) -> None:
    """Does what a process that was killed after it had saved the result has left to do."""
    with locked(run.path, shared=(RUN,)):
        _record_outcome(run)


def _record_outcome(run: Run) -> None:
    """Adds to a finished run's card its time and memory, and what its validations chose, unless they are there."""
    logged = [row for row in run.metrics if "seconds" in row]
    if logged and "seconds" not in run.facts:
        manifest = read_manifest(run.result)
        chosen = {key: manifest[key] for key in (BEST, TRAINED_STEPS) if key in manifest}
        peak = max(row["peak_memory_gb"] for row in logged)
        run.add_facts(seconds=logged[-1]["seconds"], peak_memory_gb=peak, **chosen)
