"""Runs an experiment: first each arm's learning rate is chosen, then its scored runs.

Each is a run folder (`moslora.experiment.one_run`); ``experiment.json`` lists those that are scored.
"""

import math
import os
import shlex
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from moslora.compare.index import EXPERIMENT, ExperimentIndex, ExperimentRun, read_index
from moslora.compare.runs import read_complete, restricted_to
from moslora.console import say
from moslora.errors import UsageError, some, stopped
from moslora.evaluation.intervals import mean_and_error
from moslora.experiment.file import Experiment, Planned
from moslora.experiment.one_run import is_done, one_by_one, planned_run, state, validation_loss
from moslora.experiment.provenance import changes
from moslora.files import in_use, locked
from moslora.recipe.builtin import is_builtin
from moslora.recipe.layers import shown
from moslora.runs.evaluation import Evaluation
from moslora.runs.outcomes import OUTCOMES

_BUILT_IN = "the built-in experiment "


@dataclass(frozen=True)
class Curve:
    """The choice of an arm's learning rate: the lowest mean validation loss over the search's own seeds.

    Attributes:
        seeds: number of the search's seeds.
        losses: rate -> validation losses of the seeds that have run; infinite if not finite.
    """

    arm: str
    seeds: int
    losses: Mapping[float, list[float]]

    @property
    def best(self) -> float | None:
        """The chosen rate; ``None`` while runs are missing, or if no loss was finite. A lone rate needs no run."""
        if len(self.losses) == 1:
            return next(iter(self.losses))
        if not self.complete:
            return None
        means = {rate: fmean(losses) for rate, losses in self.losses.items()}
        best = min(means, key=means.__getitem__)
        return best if math.isfinite(means[best]) else None

    @property
    def complete(self) -> bool:
        """Whether every run of the search is done."""
        return all(len(losses) == self.seeds for losses in self.losses.values())

    @property
    def remark(self) -> str:
        """A note if no rate was good, or if the best is the lowest or the highest: the optimum may lie beyond."""
        rates, best = sorted(self.losses), self.best
        if self.complete and best is None:
            return f"{self.arm}: no learning rate had a finite validation loss, so no run is scored; add lower ones"
        if len(rates) == 1 or best not in (rates[0], rates[-1]):
            return ""
        side, inner = ("lowest", rates[1]) if best == rates[0] else ("highest", rates[-2])
        better = f"one beyond it may be better: add {best**2 / inner:.2g}"
        return f"{self.arm}: {best:g} is the {side} learning rate tried; {better}"


@dataclass(frozen=True)
class Study:
    """An experiment in its folder.

    Attributes:
        out: the folder.
        arms: those that run.
        any_code: whether results of other code count.
        any_rate: whether an arm is scored whose best learning rate is the lowest or the highest tried.
        fetching: whether base and rows are looked at, which may have to be fetched. A table alone needs neither.
        start: starts runs, one by one or on Ray (`moslora.experiment.on_ray`): a block with a function for each run,
            which returns once that run is done.
    """

    experiment: Experiment
    out: Path
    arms: tuple[str, ...]
    any_code: bool = False
    any_rate: bool = False
    fetching: bool = True
    start: Callable[..., AbstractContextManager[Sequence[Callable[[], None]]]] = one_by_one
    _seconds: list[float] = field(default_factory=list)

    @stopped("stopped: the work so far is saved, and the same command continues from there")
    def run(self) -> bool:
        """Runs what is left; false if an arm waits for a learning rate beyond those tried.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; the run in progress saved first.
            UsageError: something there was made with another recipe, other data or other code.
            MosloraError: a run failed.
        """
        self.refuse_other_file()
        if others := self.others():
            raise UsageError("\n".join(others))
        with locked(self.out):
            self.write_index()
            self._finish(self.experiment.search(self.arms), later=len(self.arms) * len(self.experiment.file.seeds))
            for remark in (remarks := self._remarks()).values():
                say(remark)
            scored = self.scored()
            left = [one for one in scored if self.any_rate or one.arm not in remarks or is_done(self.out, one)]
            self._finish(left, later=0)
            return len(left) == len(scored)

    def refuse_other_file(self) -> None:
        """Refuses the folder of another experiment file's runs: two files may have one name, in two folders.

        A file that is not there any more was moved, and one of the same content is a copy.
        """
        index = read_index(self.out)
        other = index.file if index else ""
        if other in ("", self._file):
            return
        mine, there = self.experiment.path, Path(os.path.normpath(os.path.realpath(self.out) / Path(other)))
        if not other.startswith(_BUILT_IN):
            if not there.is_file() or there.samefile(mine) or there.read_bytes() == mine.read_bytes():
                return
            other = shown(there)
        folder = f"{mine.resolve().parent.name}-{self.experiment.name}"
        raise UsageError(
            f"{self.out}: has the runs of {other}; choose another folder, such as --out"
            f" {shlex.quote(str(self.out.with_name(folder)))}, or, if this file takes its place, remove"
            f" {self.out / EXPERIMENT}"
        )

    @property
    def _file(self) -> str:
        """The experiment's file, as seen from the folder."""
        path = self.experiment.path
        if is_builtin(path, kind="experiment"):
            return _BUILT_IN + self.experiment.name
        return os.path.relpath(os.path.realpath(path), os.path.realpath(self.out))

    def curves(self) -> list[Curve]:
        """The arms' learning rates, as far as they are known."""
        file, seeds = self.experiment.file, len(self.experiment.file.rate_seeds)

        def losses(arm: str, rate: float) -> list[float]:
            planned = self.experiment.planned([(arm, rate)], scored=False)
            return [validation_loss(planned_run(self.out, one)) for one in planned if is_done(self.out, one)]

        return [Curve(arm, seeds, {rate: losses(arm, rate) for rate in file.rates(arm)}) for arm in self.arms]

    def _remarks(self) -> dict[str, str]:
        """Arm -> the remark on its curve, and if the arm waits, the option that scores it."""
        waiting = {one.arm for one in self.scored() if not (self.any_rate or is_done(self.out, one))}
        advice = ", or score the arm so with --any-rate"
        return {one.arm: one.remark + advice * (one.arm in waiting) for one in self.curves() if one.remark}

    def scored(self) -> list[Planned]:
        """The runs that are scored, seed after seed, of the arms whose learning rate is chosen."""
        chosen = [(curve.arm, rate) for curve in self.curves() if (rate := curve.best) is not None]
        return self.experiment.planned(chosen, scored=True)

    def others(self) -> list[str]:
        """A line for each way in which runs there differ from those that this experiment would make."""
        found: dict[str, list[str]] = defaultdict(list)
        choices = [(arm, rate) for arm in self.arms for rate in self.experiment.file.rates(arm)]
        for one in (*self.experiment.search(self.arms), *self.experiment.planned(choices, scored=True)):
            text = self._differs(one)
            if text:
                found[f"{text}; {self._fix(one)}"].append(str(planned_run(self.out, one).path))
        return [f"{some(paths, most=1)}: {text}" for text, paths in found.items()]

    def _fix(self, planned: Planned) -> str:
        """What to do about a run that differs."""
        fix = "remove what is old to run it again, or choose another folder with --out"
        if replace(self, any_code=True)._differs(planned):
            return fix
        return f"{fix}, or count it with --any-code"

    def _whole(self) -> "Study":
        """This one with all arms."""
        return replace(self, arms=tuple(self.experiment.recipes))

    def _differs(self, planned: Planned) -> str:
        """The differences of a run that is there; empty if it has none."""
        run = planned_run(self.out, planned)
        made_with = run.facts.get("experiment")
        if made_with and run.exists:
            found = changes(planned, run.recipe, made_with, any_code=self.any_code, fetching=self.fetching)
            return some(found, separator="; ")
        return "not a run of this experiment" if in_use(run.path) and not made_with else ""

    def _finish(self, runs: Sequence[Planned], *, later: int) -> None:
        """Does those of ``runs`` that are not done; ``later`` others come after them."""
        left = [planned for planned in runs if not is_done(self.out, planned)]
        with self.start(left, out=self.out) if left else nullcontext(()) as waits:
            for number, (planned, done) in enumerate(zip(left, waits, strict=True)):
                pending = len(left) - number + later
                minutes = f", about {pending * fmean(self._seconds) / 60:.0f} min" if self._seconds else ""
                say(f"{planned.name}: {pending} left{minutes}")
                began = time.monotonic()
                done()
                self._seconds.append(time.monotonic() - began)
                self.write_index()
        self.write_index()

    def write_index(self) -> None:
        """Writes ``experiment.json``: every scored run that is done; of the other arms those that, with the search for
        their rate, would be made the same now."""
        file, runs = self.experiment.file, []
        for one in self._whole().scored():
            behind = (*self.experiment.search((one.arm,)), one)
            if is_done(self.out, one) and (one.arm in self.arms or not any(map(self._differs, behind))):
                rate, diverged = one.recipe.training.learning_rate, state(planned_run(self.out, one)) == "diverged"
                runs.append(ExperimentRun(one.arm, one.recipe.seed, rate, f"runs/{one.name}", diverged))
        named, others = file.named[0], file.named[1:]
        ExperimentIndex(self.experiment.name, named, file.outcome, tuple(runs), others, self._file).write(self.out)

    def tables(self) -> Iterator[list[list[str]]]:
        """The curves of the learning rates, and the scores so far."""
        found = self.curves()
        if any(len(curve.losses) > 1 for curve in found):
            yield _rate_table(found)
        yield self._scores(found)

    def closing(self) -> Iterator[str]:
        """The lines below the tables."""
        yield from self._remarks().values()
        yield from (f"note: {line}" for line in self._whole().others())
        total = len(self.arms) * len(self.experiment.file.seeds)
        found = [planned_run(self.out, planned) for planned in self.scored() if is_done(self.out, planned)]
        if diverged := [run.name for run in found if state(run) == "diverged"]:
            yield f"diverged, and so without a score: {', '.join(diverged)}"
        if done := len(found) - len(diverged):
            yield f"{done} of {total} runs are scored; to compare them: moslora compare {shlex.quote(str(self.out))}"
        else:
            yield f"none of {total} runs is scored yet"

    def _scores(self, found: Sequence[Curve]) -> list[list[str]]:
        file = self.experiment.file
        recipe = self.experiment.recipes[self.arms[0]]  # all ask the same
        texts = any(task.is_text for task in recipe.questions.tasks)
        named = dict.fromkeys((file.outcome, *file.also, *OUTCOMES))
        order = [outcome for outcome in named if texts or not OUTCOMES[outcome].of_texts]
        rows = [["arm", "learning rate", "seeds", *(OUTCOMES[outcome].title for outcome in order)]]
        scored = [(one.arm, planned_run(self.out, one)) for one in self.scored()]
        planned = [task.name for task in recipe.questions.tasks], recipe.evaluation.limit  # may have been asked more
        for curve in found:
            rate = "not chosen" if curve.best is None else f"{curve.best:g}"
            done = [run for arm, run in scored if arm == curve.arm and state(run) == "scored"]
            runs = [restricted_to(read_complete(run.evaluation()), *planned) for run in done]
            seeds = f"{len(runs)}/{len(file.seeds)}"
            rows.append([curve.arm, rate, seeds, *(_mean_over_seeds(runs, outcome) for outcome in order)])
        return rows


def _mean_over_seeds(runs: Sequence[Evaluation], outcome: str) -> str:
    """The mean of the runs' macro averages, ± its standard error over the seeds."""
    factor, digits = OUTCOMES[outcome].factor, OUTCOMES[outcome].fine
    columns = [[its.outcomes[outcome] for its in run.tasks.values() if outcome in its.outcomes] for run in runs]
    if not (columns and columns[0] and columns[0][0]):  # under `generate` there are no probabilities
        return "–"
    mean, error = mean_and_error([factor * fmean(map(fmean, tasks)) for tasks in columns])
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def _rate_table(found: Sequence[Curve]) -> list[list[str]]:
    """Arms × rates: the mean validation loss, ± half the range where there are several seeds; a * marks the choice."""
    rates = sorted({rate for curve in found for rate in curve.losses})

    def cell(curve: Curve, rate: float) -> str:
        losses = curve.losses.get(rate)
        if not losses:
            return "" if losses is None else "*" if rate == curve.best else "–"
        some = f" ({len(losses)} of {curve.seeds})" if len(losses) < curve.seeds else ""
        if not math.isfinite(sum(losses)):
            return f"not finite{some}"
        spread = f" ± {(max(losses) - min(losses)) / 2:.4f}" if len(losses) > 1 else ""
        return f"{fmean(losses):.4f}{spread}{some}" + " *" * (rate == curve.best)

    return [
        ["validation loss at learning rate", *(f"{rate:g}" for rate in rates)],
        *([curve.arm, *(cell(curve, rate) for rate in rates)] for curve in found),
    ]
