"""One training: the steps, validations and checkpoints between a recipe and a run folder (`moslora.runs.run`)."""

import platform
import signal
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from moslora.adapters import has_learned
from moslora.base.adapted import adapter_state
from moslora.base.identity import fingerprint
from moslora.console import say
from moslora.data.prepared import TrainingData
from moslora.errors import Interrupted, MosloraError
from moslora.files import replacing
from moslora.process_rank import is_main_process
from moslora.processes.group import shorten_waits
from moslora.progress import Line
from moslora.recipe import Recipe
from moslora.runs.adapted_model import save_adapter
from moslora.runs.adapter_folder import ENGINE, open_adapter
from moslora.runs.best import TRAINED_STEPS, ending
from moslora.runs.manifest import WEIGHTS
from moslora.runs.origin import Origin
from moslora.runs.run import Run
from moslora.runs.trackers import record
from moslora.training.checkpoints import copied_state, delete_old_checkpoints, save_checkpoint
from moslora.training.loop import TrainState, rehearse, train
from moslora.training.run_card import describe, hardware, kernels, packages, record_outcome, strategy
from moslora.training.stopping import stop_requests
from moslora.training.tracking import Tracker
from moslora.training.validation import QUESTIONS, Validator, as_fields
from moslora.version import git_state


@dataclass(frozen=True)
class Training:
    """Prepared training of ``run``, the same on every process. Only the main process writes and prints."""

    run: Run
    recipe: Recipe
    state: TrainState
    data: TrainingData
    validator: Validator
    predecessor: Origin | None = None  # the adapter that it continues
    writing: list[Future[None]] = field(default_factory=list)  # the checkpoint that is being saved

    def facts(self, *, steps: int) -> dict[str, Any]:
        """Facts after ``steps`` updates, for the adapter's manifest and for the card ``run.json``."""
        facts = {
            "data": self.data.facts(self.state.plan, steps=steps),
            "encoding": self.data.encoding,
            "packages": packages(self.recipe),
            "trained_rows": len(self.data.rows),
            "processes": self.state.accelerator.num_processes,
            ENGINE: self.state.engine.name,
            "micro_batch_tokens": self.state.micro_batch_tokens,
            QUESTIONS: self.validator.question_count,
        }
        if self.predecessor is not None:
            facts |= self.predecessor.facts
        return facts

    def start(self) -> None:
        """Write the recipe and ``run.json``, and print what the run is."""
        recipe = self.recipe
        state = self.state
        if is_main_process():
            model = state.model
            device = state.accelerator.device
            steps = len(state.plan)
            facts = self.facts(steps=steps)
            versions = {"python": platform.python_version(), **facts.pop("packages")}
            card = {
                "base_fingerprint": fingerprint(recipe.model.name, revision=recipe.model.revision),
                **facts,
                "steps": steps,
                **strategy(state.objective),
                "trainable_parameters": model.num_parameters(only_trainable=True),
                "versions": versions,
                "git": git_state(),
                "hardware": hardware(device),
                "kernels": kernels(model, device),
            }
            self.run.begin(recipe, card)
            with replacing(self.run.contents) as contents:
                contents.write_bytes(self.data.contents)
        lines = describe(state.model, state.plan, base=recipe.model, adapter=recipe.adapter, training=recipe.training)
        if self.predecessor is not None:
            lines.append(f"continues {self.predecessor.with_hash}")
        for line in (*lines, *self.data.remarks(), *self.validator.remarks()):
            say(line)

    def train(self, first_step: int) -> int:
        """Run the steps from ``first_step`` on, and return the number of updates done: all, or fewer if patience ran
        out.

        Ctrl-C or SIGTERM raises `Interrupted`, after a checkpoint.
        """
        total = len(self.state.plan)
        with ExitStack() as stack:
            records = []
            if is_main_process():
                for name in dict.fromkeys(self.recipe.tracking.to):
                    of_name = record(name, self.recipe, self.run, after=first_step)
                    records.append(stack.enter_context(of_name))
            signals = stack.enter_context(stop_requests())
            writer = stack.enter_context(ThreadPoolExecutor(1))  # whatever happens, its end is waited for
            is_done = first_step == total or self.state.selection.patience_ran_out
            if self.state.accelerator.device.type != "cpu" and not is_done:
                rehearse(self.state, first_step=first_step)
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
            done = train(
                self.state,
                first_step=first_step,
                report=tracker.log_step,
                checkpoint=partial(self.checkpoint, writer),
                validate=partial(self.validate, tracker),
                stop_requested=lambda: bool(signals),
            )
            self.wait_for_checkpoint()
        self.state.accelerator.wait_for_everyone()
        if done == total or self.state.selection.patience_ran_out:
            return done
        raise Interrupted(
            f"stopped after step {done} of {total}; all is saved. Resume with: {self.run.resume_command}",
            signal_number=signals[0] if signals else signal.SIGTERM,  # which another process got
        )

    def checkpoint(self, writer: Executor, step: int) -> None:
        """Copy the state after ``step`` updates, which ``writer`` saves while the training continues."""
        if is_main_process():
            self.wait_for_checkpoint()
            state = self.state
            facts = {**self.facts(steps=step), "step": step, "scaler": state.scaler.state_dict()}
            facts |= state.selection.facts
            files = copied_state(state)
            saving = writer.submit(save_checkpoint, self.run, files, self.recipe, step=step, facts=facts)
            self.writing.append(saving)

    def wait_for_checkpoint(self) -> None:
        """Wait until the last checkpoint is saved, and raise the error if saving failed."""
        while self.writing:
            self.writing.pop().result()

    def validate(self, tracker: Tracker, step: int) -> bool:
        """Record a validation, if there are validation rows, and return whether it is the best so far; ``False`` where
        validations do not decide the result."""
        if not self.data.validation:
            return False
        selection = self.state.selection
        metrics, samples = self.validator.measure(self.state)
        fields = as_fields(metrics)
        tracker.record({"step": step, **metrics}, samples)
        is_best = selection.consider(step, metrics[f"validation_{selection.best.by}"])
        remark = selection.remark(step, start=self.run.validation_at_start(selection.best.by))
        say("  ".join(filter(None, [f"step {step}/{len(self.state.plan)}", *fields, remark])))
        for line_of_sample in samples.lines():
            say(line_of_sample)
        if step == 0:
            tracker.begin_steps()
        return is_best

    def finish(self, steps: int) -> Path:
        """Save the result after ``steps`` updates, if anything was learned."""
        result = self.run.result
        if is_main_process():
            self._save_result(steps)
            record_outcome(self.run)
            for line in ending(self.run.facts, self.recipe.training):
                say(line)
            say(f"adapter saved in {result}")
        self.state.accelerator.wait_for_everyone()
        return result

    def _save_result(self, steps: int) -> None:
        moved = any(moments["exp_avg"].any() for moments in self.state.optimizer.state.values())
        if not (moved and has_learned(self.state.model)):
            raise MosloraError(f"nothing was learned: after {steps} steps the adapter is still as it started")
        # Those that a killed process left, before there is a result, with which the run is finished.
        delete_old_checkpoints(self.run, step=steps, training=self.recipe.training)
        facts = self.state.selection.facts
        if facts:
            facts[TRAINED_STEPS] = steps
        weights = adapter_state(self.state.model)
        if self.recipe.training.result == "best":
            best = self.state.selection.best
            if best.step is None:
                fix = "try a lower training.learning_rate"
                raise MosloraError(f"{self.run.path}: {best}, so no step is the best; {fix}")
            steps = best.step
            weights = open_adapter(self.run.checkpoint(steps)).weights()
        facts = {**self.facts(steps=steps), "step": steps, **facts}
        save_adapter(self.run.result, {WEIGHTS: weights}, self.recipe, facts=facts)
