"""Runs an experiment: first each arm's learning rate is chosen, then its scored runs.

Each is a run folder (`moslora.experiment.one_run`); ``experiment.json`` lists those that are scored.
"""

import shlex
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from moslora.compare.answers import Answers, read_answers
from moslora.compare.index import ExperimentIndex, ExperimentRun
from moslora.console import say
from moslora.errors import UsageError, some, stopped
from moslora.evaluation.predictions import mean_and_error
from moslora.experiment.file import Experiment, Planned
from moslora.experiment.one_run import is_done, one_by_one, run_of, state
from moslora.experiment.provenance import CODE, changes
from moslora.experiment.rates import Curve, curves, rate_table
from moslora.files import in_use, locked


@dataclass(frozen=True)
class Study:
    """An experiment in its folder.

    Attributes:
        out: the folder.
        arms: those that run.
        any_code: whether results of other code count.
        start: starts runs, one by one or on Ray (`moslora.experiment.on_ray`): a block with a function for each run,
            which returns once that run is done.
    """

    experiment: Experiment
    out: Path
    arms: tuple[str, ...]
    any_code: bool = False
    start: Callable[..., AbstractContextManager[Sequence[Callable[[], None]]]] = one_by_one
    _seconds: list[float] = field(default_factory=list)

    @stopped("stopped; the work so far is saved, and the same command continues from there")
    def run(self) -> None:
        """Runs what is left.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; the run in progress saved first.
            UsageError: something there was made with another recipe, other data or other code.
            MosloraError: a run failed.
        """
        if others := self.others():
            raise UsageError("\n".join(others))
        with locked(self.out):
            self._finish(self.experiment.search(self.arms), later=len(self.arms) * len(self.experiment.file.seeds))
            for line in self.remarks():
                say(line)
            self._finish(self.scored(), later=0)

    def curves(self) -> list[Curve]:
        """What is known of the arms' learning rates."""
        return curves(self.experiment, self.out, self.arms)

    def scored(self) -> list[Planned]:
        """The runs that are scored, seed after seed, of the arms whose learning rate is chosen."""
        chosen = [(curve.arm, rate) for curve in self.curves() if (rate := curve.best) is not None]
        seeds = self.experiment.file.seeds
        return [self.experiment.planned(arm, rate, seed, scored=True) for seed in seeds for arm, rate in chosen]

    def remarks(self) -> Iterator[str]:
        """Notes on the choice of the learning rates."""
        for curve in self.curves():
            yield from curve.remarks()

    def others(self) -> list[str]:
        """A line for each way in which runs there differ from those that this experiment would make."""
        found: dict[str, list[str]] = defaultdict(list)
        file, planned = self.experiment.file, self.experiment.planned
        scored = [
            planned(arm, rate, seed, scored=True)
            for arm in self.arms
            for rate in file.learning_rates
            for seed in file.seeds
        ]
        for one in (*self.experiment.search(self.arms), *scored):
            if text := self._differs(one):
                found[text].append(str(run_of(self.out, one).path))
        fix = "remove what is old to run it again, or choose another folder with --out"
        kept = {CODE: f"{fix}, or count it with --any-code"}
        return [f"{some(paths, most=1)}: {text}; {kept.get(text, fix)}" for text, paths in found.items()]

    def _whole(self) -> "Study":
        """This one with all arms."""
        return replace(self, arms=tuple(self.experiment.recipes))

    def _counts(self, planned: Planned) -> bool:
        """Whether a run and the search for its rate are as they would be made now."""
        return not any(map(self._differs, (*self.experiment.search((planned.arm,)), planned)))

    def _differs(self, planned: Planned) -> str:
        """What is different about a run that is there; empty if nothing is."""
        run = run_of(self.out, planned)
        made_with = run.facts.get("experiment")
        if made_with and run.exists:
            return some(changes(planned, run.recipe, made_with, any_code=self.any_code), separator="; ")
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
        """Writes ``experiment.json``: every scored run that is done, of the other arms those that still count."""
        file = self.experiment.file
        runs = tuple(
            ExperimentRun(p.arm, p.seed, p.learning_rate, f"runs/{p.name}", state(run_of(self.out, p)) == "diverged")
            for p in self._whole().scored()
            if is_done(self.out, p) and (p.arm in self.arms or self._counts(p))
        )
        ExperimentIndex(self.experiment.name, file.contrast, file.outcome, runs).write(self.out)

    def tables(self) -> Iterator[list[list[str]]]:
        """The curve of the learning rate, and the scores so far."""
        found = self.curves()
        if len(self.experiment.file.learning_rates) > 1:
            yield rate_table(found)
        yield self._scores(found)

    def closing(self) -> Iterator[str]:
        """What to say below the tables."""
        yield from self.remarks()
        yield from (f"note: {line}" for line in self._whole().others())
        total = len(self.arms) * len(self.experiment.file.seeds)
        found = [run_of(self.out, planned) for planned in self.scored() if is_done(self.out, planned)]
        if diverged := [run.name for run in found if state(run) == "diverged"]:
            yield f"diverged, and so without a score: {', '.join(diverged)}"
        if done := len(found) - len(diverged):
            yield f"{done} of {total} runs are scored; to compare them: moslora compare {shlex.quote(str(self.out))}"
        else:
            yield f"none of {total} runs is scored yet"

    def _scores(self, found: Sequence[Curve]) -> list[list[str]]:
        names = {"log_probability": "log p of the right option", "accuracy": "accuracy, %"}
        order = sorted(names, key=lambda name: name != self.experiment.file.outcome)
        rows = [["arm", "learning rate", "seeds", *(names[name] for name in order)]]
        scored = [(planned.arm, run_of(self.out, planned)) for planned in self.scored()]
        for curve in found:
            rate = "not chosen" if curve.best is None else f"{curve.best:g}"
            done = [run for arm, run in scored if arm == curve.arm and state(run) == "scored"]
            runs = [read_answers(run.evaluation()) for run in done]
            seeds = f"{len(runs)}/{len(self.experiment.file.seeds)}"
            rows.append([curve.arm, rate, seeds, *(_mean_over_seeds(runs, name) for name in order)])
        return rows


def _mean_over_seeds(runs: Sequence[Answers], name: str) -> str:
    """The mean of the runs' macro averages, ± its standard error over the seeds."""
    column, factor, digits = {"accuracy": ("correct", 100, 1), "log_probability": ("log_probability", 1, 4)}[name]
    macros = []
    for run in runs:
        columns = [getattr(answers, column) for answers in run.tasks.values()]
        if all(columns):  # under `generate` there are no probabilities
            macros.append(factor * mean_and_error([mean_and_error(values)[0] for values in columns])[0])
    if not macros:
        return "–"
    mean, error = mean_and_error(macros)
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
