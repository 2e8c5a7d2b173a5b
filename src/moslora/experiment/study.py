"""Runs an experiment: first each arm's learning rate is chosen, then its scored runs.

Each is a run folder (`moslora.experiment.one_run`); ``experiment.json`` lists those that are scored.
"""

import os
import shlex
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain, groupby
from pathlib import Path
from statistics import fmean

from moslora.compare.compared_run import ComparedRun, evaluations_of
from moslora.compare.comparison import compare_paths
from moslora.compare.conclusion import conclusions
from moslora.compare.gains import shared_base
from moslora.compare.index import EXPERIMENT, ExperimentIndex, ExperimentRun, read_index
from moslora.console import say
from moslora.errors import UsageError, on_interrupt, some
from moslora.experiment.file import Experiment, PlannedRun
from moslora.experiment.one_run import (
    RUN_FOLDERS,
    finished_run,
    loss_of,
    packed_run,
    planned_answers,
    planned_run,
    run_locally,
)
from moslora.experiment.provenance import changes
from moslora.experiment.tables import Curve, rate_table, score_table
from moslora.files import in_use, locked
from moslora.recipe.builtin import is_builtin
from moslora.recipe.layers import shown
from moslora.runs.outcomes import OUTCOMES
from moslora.runs.strength import strength_of


@dataclass(frozen=True)
class Study:
    """An experiment in its folder.

    Attributes:
        out: the folder.
        arms: those that run.
        any_code: whether results of other code count.
        any_rate: whether an arm is scored whose best learning rate is the lowest or the highest tried.
        fetching: whether base and rows are looked at, which may have to be fetched. A table alone needs neither.
        start: starts runs, on this machine or on Ray (`moslora.experiment.on_ray`): a block with a function for each
            run, which returns once that run is done.
    """

    experiment: Experiment
    out: Path
    arms: tuple[str, ...]
    any_code: bool = False
    any_rate: bool = False
    fetching: bool = True
    start: Callable[..., AbstractContextManager[Sequence[Callable[[], None]]]] = run_locally
    _seconds: list[float] = field(default_factory=list)

    @on_interrupt("stopped: the work so far is saved, and the same command continues from there")
    def run(self) -> bool:
        """Runs what is left; false if an arm waits for a learning rate beyond those tried.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; the run in progress saved first.
            UsageError: something there was made with another recipe, other data or other code.
            MosloraError: a run failed.
        """
        self.refuse_other_file()
        others = self.others()
        if others:
            raise UsageError("\n".join(others))
        with locked(self.out):
            self.write_index()
            searching = self.experiment.rate_runs(self.arms)
            self._finish(searching, later=len(self.arms) * len(self.experiment.file.seeds))
            remarks = self._remarks()
            for remark in remarks.values():
                say(remark)
            scored = self.scored_runs()
            waiting = set() if self.any_rate else remarks.keys()
            trained = self.experiment.file.trained
            ready = [one for one in scored if trained(one.arm) not in waiting or finished_run(self.out, one)]
            self._finish(ready, later=0)
            return len(ready) == len(scored)

    def refuse_other_file(self) -> None:
        """Refuses the folder of another experiment file's runs: two files may have one name, in two folders. A file
        that is not there any more was moved."""
        index = read_index(self.out)
        if index is None:
            return
        other = self.out / index.file
        if other.is_file() and not other.samefile(self.experiment.path):
            raise UsageError(
                f"{self.out}: holds the runs of {shown(other.resolve())}; choose another folder with --out, or, if"
                f" this file takes its place, remove {self.out / EXPERIMENT}"
            )

    def file_seen_from(self, folder: Path) -> str:
        """The experiment's file, as seen from a folder with its runs."""
        path = self.experiment.path
        if is_builtin(path, kind="experiment"):
            return f"the built-in experiment {self.experiment.name}"
        return os.path.relpath(os.path.realpath(path), os.path.realpath(folder))

    def curves(self) -> list[Curve]:
        """The arms' learning rates, as far as they are known."""
        file = self.experiment.file
        curves = []
        for arm in self.arms:
            losses: dict[float, list[float]] = {}
            for rate in file.rates(arm):
                searched = self.experiment.planned([(file.trained(arm), rate)], scored=False)
                rows = [finished_run(self.out, one) for one in searched]
                losses[rate] = [loss_of(row) for row in rows if row is not None]
            curves.append(Curve(arm, len(file.rate_seeds), losses))
        return curves

    def _remarks(self) -> dict[str, str]:
        """Arm that trains -> the remark on its curve."""
        return {curve.arm: curve.remark for curve in self._searched() if curve.remark}

    def _searched(self) -> list[Curve]:
        """The learning rates of the arms that train."""
        return [curve for curve in self.curves() if not self.experiment.file.applied(curve.arm)]

    def scored_runs(self) -> list[PlannedRun]:
        """The runs that are scored, seed after seed, of the arms whose learning rate is chosen."""
        chosen = [(curve.arm, curve.best) for curve in self.curves() if curve.best is not None]
        return self.experiment.planned(chosen, scored=True)

    def others(self) -> list[str]:
        """A line for each way in which runs there differ from those that this experiment would make."""
        choices = [(arm, rate) for arm in self.arms for rate in self.experiment.file.rates(arm)]
        names_by_fault: dict[str, list[str]] = defaultdict(list)
        for planned in (*self.experiment.rate_runs(self.arms), *self.experiment.planned(choices, scored=True)):
            text = self._differs(planned)
            if text:
                names_by_fault[text].append(planned.name)
        fix = "remove it to run it again, choose another folder with --out, or if only the code changed add --any-code"
        return [f"{self.out}: {some(names, most=1)}: {text}; {fix}" for text, names in names_by_fault.items()]

    def with_all_arms(self) -> "Study":
        """The same experiment, whichever arms run."""
        return replace(self, arms=tuple(self.experiment.recipes))

    def _differs(self, planned: PlannedRun) -> str:
        """The differences of a run that is there; empty if it has none."""
        run = planned_run(self.out, planned)
        begun_with = run.facts.get("experiment")
        packed = packed_run(self.out, planned)
        strength = packed.strength if packed is not None else getattr(strength_of(run.facts), "value", None)
        if packed is not None:
            index = read_index(self.out)
            assert index is not None and index.card is not None
            arm = index.card.arms[planned.arm]  # of which all rates and seeds are in the tables
            recipe = arm.read_recipe()
            training = recipe.training.model_copy(update={"learning_rate": planned.recipe.training.learning_rate})
            recipe = recipe.model_copy(update={"seed": planned.recipe.seed, "training": training})
            ways = arm.made_with
        elif begun_with and run.exists:
            recipe = run.recipe
            ways = (begun_with,)
        elif in_use(run.path) and not begun_with:
            return "not a run of this experiment"
        else:
            return ""
        differences = []
        if isinstance(planned.strength, float) and strength not in (planned.strength, None):
            differences.append(f"strength was {strength:g}, is {planned.strength:g}")
        for made_with in ways:
            differences += changes(planned, recipe, made_with, any_code=self.any_code, fetching=self.fetching)
        return some(dict.fromkeys(differences), separator="; ")

    def _finish(self, runs: Sequence[PlannedRun], *, later: int) -> None:
        """Does those of ``runs`` that are not done; ``later`` others come after them."""
        left = [planned for planned in runs if finished_run(self.out, planned) is None]
        self.write_index()
        if not left:
            return
        pending = len(left) + later
        for _, alike in groupby(left, key=lambda planned: planned.strength is None):  # applied once it is trained
            together = [*alike]
            with self.start(together, out=self.out) as waits:
                for planned, wait in zip(together, waits, strict=True):
                    text = f"{planned.name}: {pending} left"
                    if self._seconds:
                        text += f", about {pending * fmean(self._seconds) / 60:.0f} min"
                    say(text)
                    began = time.monotonic()
                    wait()
                    self._seconds.append(time.monotonic() - began)
                    pending -= 1
                    self.write_index()

    def write_index(self) -> None:
        """Writes ``experiment.json``: every scored run that is done and in no table; of the other arms those that, with
        the search for their rate, would be made the same now."""
        runs = []
        for planned in self.with_all_arms().scored_runs():
            row = finished_run(self.out, planned)
            if row is None or packed_run(self.out, planned) is not None:
                continue
            behind = (*self.experiment.rate_runs((planned.arm,)), planned)
            if planned.arm in self.arms or not any(self._differs(one) for one in behind):
                runs.append(
                    ExperimentRun(
                        arm=planned.arm,
                        seed=planned.recipe.seed,
                        learning_rate=planned.recipe.training.learning_rate,
                        folder=f"{RUN_FOLDERS}/{planned.name}",
                        diverged=row.diverged,
                    )
                )
        file = self.experiment.file
        before = read_index(self.out)
        first, *others = file.named
        index = ExperimentIndex(
            name=self.experiment.name,
            contrast=first,
            outcome=file.outcome,
            runs=tuple(runs),
            others=tuple(others),
            file=self.file_seen_from(self.out),
            margin=None if file.margin is None else str(file.margin),
            card=before.card if before is not None else None,
        )
        index.write(self.out)

    def tables(self) -> Iterator[list[list[str]]]:
        """The curves of the learning rates, and the scores so far."""
        curves = self.curves()
        if any(len(curve.losses) > 1 for curve in curves):
            yield rate_table(self._searched())
        # Of the planned questions alone: the runs may have been asked more.
        scored: dict[str, list[ComparedRun]] = {arm: [] for arm in self.arms}
        strengths: dict[str, list[float]] = {}
        for planned in self.scored_runs():
            row = finished_run(self.out, planned)
            evaluation = planned_answers(self.out, planned)
            if row is not None and evaluation is not None:
                run = ComparedRun(evaluation, evaluation.folder, validation_loss=row.validation_loss)
                scored[planned.arm].append(run)
            if row is not None and row.strength is not None:
                strengths.setdefault(planned.arm, []).append(row.strength)
        yield score_table(
            curves,
            scored,
            outcomes=self._outcomes(),
            seeds=len(self.experiment.file.seeds),
            strengths=strengths,
            base=shared_base(evaluations_of([*chain(*scored.values())])),
        )

    def _outcomes(self) -> list[str]:
        """The outcomes of what is asked, those named beforehand first."""
        file = self.experiment.file
        asked = self.experiment.recipes[self.arms[0]].questions.tasks  # the same in all arms
        texts = any(task.is_text for task in asked)
        always = [name for name, outcome in OUTCOMES.items() if outcome.always_shown]
        named = dict.fromkeys((file.outcome, *file.also, *always))
        return [outcome for outcome in named if texts or not OUTCOMES[outcome].of_texts]

    def closing(self) -> Iterator[str]:
        """The lines below the tables."""
        yield from self._remarks().values()
        yield from (f"note: {line}" for line in self.with_all_arms().others())
        total = len(self.arms) * len(self.experiment.file.seeds)
        rows = [finished_run(self.out, planned) for planned in self.scored_runs()]
        finished = [row for row in rows if row is not None]
        diverged = [row.name for row in finished if row.diverged]
        if diverged:
            yield f"diverged, so without a score: {', '.join(diverged)}"
        scored = len(finished) - len(diverged)
        yield f"{scored} of {total} runs are scored; to compare them: moslora compare {shlex.quote(str(self.out))}"
        if len(finished) == total:
            with suppress(UsageError):  # they cannot be compared, of which `compare` says why
                yield from conclusions(compare_paths([self.out]).within(None))
