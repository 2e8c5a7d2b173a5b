"""An experiment in its folder: which runs are missing, doing them, and the tables of those that are done.

The search for the learning rates comes first, then the scored runs. ``experiment.json`` lists the scored runs. How a
single run is done is in `moslora.experiment.one_run`.
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
    answered_run,
    finished_run,
    loss_of,
    packed_run,
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
        experiment: experiment to run.
        out: its folder.
        arms: names of the arms to run.
        any_code: whether runs by other versions of moslora count.
        any_rate: whether to score an arm whose best learning rate is the lowest or the highest tried.
        fetching: whether to compare the base and rows of runs with the planned ones, which may have to be downloaded;
            not needed to print a table.
        start: context manager that starts runs, here or on Ray (`moslora.experiment.on_ray`), and yields for each a
            function that returns once the run is done.

    Raises:
        UsageError: the folder holds the runs of another experiment file.
    """

    experiment: Experiment
    out: Path
    arms: tuple[str, ...]
    any_code: bool = False
    any_rate: bool = False
    fetching: bool = True
    start: Callable[..., AbstractContextManager[Sequence[Callable[[], None]]]] = run_locally
    _seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Two files may have one name, in two folders. A file that is gone was moved.
        index = read_index(self.out)
        other = self.out / index.file if index is not None else None
        if other is not None and other.is_file() and not other.samefile(self.experiment.path):
            raise UsageError(
                f"{self.out}: holds the runs of {shown(other.resolve())}; choose another folder with --out, or, if"
                f" your file replaces that one, remove {self.out / EXPERIMENT}"
            )

    @on_interrupt("stopped: the work so far is saved, and the same command continues from there")
    def run(self) -> bool:
        """Do the missing runs, and return whether all runs of the arms with a chosen learning rate are done.

        Unless `any_rate`, runs of an arm whose best learning rate is the lowest or the highest tried are not scored.

        Raises:
            Interrupted: Ctrl-C or SIGTERM, after the run in progress was saved.
            UsageError: a run in the folder has another recipe, other data or other code than planned.
            MosloraError: a run failed.
        """
        self.refuse_mismatches()
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
            ready = [run for run in scored if trained(run.arm) not in waiting or finished_run(self.out, run)]
            self._finish(ready, later=0)
            return len(ready) == len(scored)

    def file_seen_from(self, folder: Path) -> str:
        """Return the path of the experiment's file relative to a folder with its runs, or the built-in name."""
        path = self.experiment.path
        if is_builtin(path, kind="experiment"):
            return f"the built-in experiment {self.experiment.name}"
        return os.path.relpath(os.path.realpath(path), os.path.realpath(folder))

    def curves(self) -> list[Curve]:
        """Return the curve of each arm: validation losses by learning rate, as far as there are any."""
        file = self.experiment.file
        curves = []
        for arm in self.arms:
            losses: dict[float, list[float]] = {}
            for rate in file.rates(arm):
                searched = self.experiment.planned([(file.trained(arm), rate)], scored=False)
                rows = [finished_run(self.out, planned) for planned in searched]
                losses[rate] = [loss_of(row) for row in rows if row is not None]
            curves.append(Curve(arm, len(file.rate_seeds), losses))
        return curves

    def _remarks(self) -> dict[str, str]:
        """Return arm -> remark on its losses by learning rate, without the arms that apply another arm's adapters."""
        return {curve.arm: curve.remark for curve in self._searched() if curve.remark}

    def _searched(self) -> list[Curve]:
        """Return the curves of the arms that train, also of those with a single learning rate."""
        return [curve for curve in self.curves() if not self.experiment.file.applied(curve.arm)]

    def scored_runs(self) -> list[PlannedRun]:
        """Return the scored runs, seed after seed, of the arms whose learning rate is chosen."""
        chosen = [(curve.arm, curve.best) for curve in self.curves() if curve.best is not None]
        return self.experiment.planned(chosen, scored=True)

    def refuse_mismatches(self) -> None:
        """Refuse to count runs in the folder that differ from the planned ones.

        Raises:
            UsageError: a line for each difference.
        """
        mismatches = self.mismatches()
        if mismatches:
            raise UsageError("\n".join(mismatches))

    def mismatches(self) -> list[str]:
        """Return a line for each difference between runs in the folder and the planned ones."""
        choices = [(arm, rate) for arm in self.arms for rate in self.experiment.file.rates(arm)]
        names_by_fault: dict[str, list[str]] = defaultdict(list)
        for planned in (*self.experiment.rate_runs(self.arms), *self.experiment.planned(choices, scored=True)):
            difference = self._difference(planned)
            if difference:
                names_by_fault[difference].append(planned.name)
        fix = "remove it to run it again, choose another folder with --out, or if only the code changed add --any-code"
        return [f"{self.out}: {some(names, most=1)}: {text}; {fix}" for text, names in names_by_fault.items()]

    def with_all_arms(self) -> "Study":
        """Return the study with all arms."""
        return replace(self, arms=tuple(self.experiment.recipes))

    def _difference(self, planned: PlannedRun) -> str:
        """Return the differences between a run on disk and the planned one; empty if there are none, or no run."""
        run = planned_run(self.out, planned)
        recorded = run.facts.get("experiment")
        packed = packed_run(self.out, planned)
        strength = packed.strength if packed is not None else getattr(strength_of(run.facts), "value", None)
        if packed is not None:
            index = read_index(self.out)
            assert index is not None and index.card is not None
            card = index.card.arms[planned.arm]
            recipe = card.read_recipe()
            training = recipe.training.model_copy(update={"learning_rate": planned.recipe.training.learning_rate})
            recipe = recipe.model_copy(update={"seed": planned.recipe.seed, "training": training})
            provenances = card.made_with
        elif recorded and run.exists:
            recipe = run.recipe
            provenances = (recorded,)
        elif in_use(run.path) and not recorded:
            return "not a run of this experiment"
        else:
            return ""
        differences = []
        if isinstance(planned.strength, float) and strength not in (planned.strength, None):
            differences.append(f"strength was {strength:g}, is {planned.strength:g}")
        for made_with in provenances:
            differences += changes(planned, recipe, made_with, any_code=self.any_code, fetching=self.fetching)
        return some(dict.fromkeys(differences), separator="; ")

    def _finish(self, runs: Sequence[PlannedRun], *, later: int) -> None:
        """Do those of ``runs`` that are not done; ``later`` further runs are counted in the progress."""
        missing = [planned for planned in runs if finished_run(self.out, planned) is None]
        self.write_index()
        if not missing:
            return
        pending = len(missing) + later
        # An adapter is trained before it is applied.
        for _, group in groupby(missing, key=lambda planned: planned.strength is None):
            together = [*group]
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
        """Write ``experiment.json``, which lists every scored run that is done and in no table.

        A run of an arm that this command does not run is listed only if the run, and the search for its rate, match the
        plan.
        """
        runs = []
        for planned in self.with_all_arms().scored_runs():
            row = finished_run(self.out, planned)
            if row is None or packed_run(self.out, planned) is not None:
                continue
            with_search = (*self.experiment.rate_runs((planned.arm,)), planned)
            if planned.arm in self.arms or not any(map(self._difference, with_search)):
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
            margin=file.margin,
            card=before.card if before is not None else None,
        )
        index.write(self.out)

    def tables(self) -> Iterator[list[list[str]]]:
        """Yield the table of the learning rates, if there are several, and that of the scores so far."""
        curves = self.curves()
        if any(len(curve.losses) > 1 for curve in curves):
            yield rate_table(self._searched())
        # The runs may also have answers to other questions than the planned ones.
        scored: dict[str, list[ComparedRun]] = {arm: [] for arm in self.arms}
        strengths: dict[str, list[float]] = {}
        for planned in self.scored_runs():
            row = answered_run(self.out, planned)
            if row is None:
                continue
            if row.evaluation is not None:
                run = ComparedRun(row.evaluation, row.evaluation.folder, validation_loss=row.validation_loss)
                scored[planned.arm].append(run)
            if row.strength is not None:
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
        """Return the outcomes that the table of scores shows, planned ones first."""
        file = self.experiment.file
        tasks = self.experiment.recipes[self.arms[0]].questions.tasks  # the same in all arms
        with_texts = any(task.is_text for task in tasks)
        always = [name for name, outcome in OUTCOMES.items() if outcome.always_shown]
        names = dict.fromkeys((file.outcome, *file.also, *always))
        return [name for name in names if with_texts or not OUTCOMES[name].of_texts]

    def closing(self) -> Iterator[str]:
        """Yield the lines below the tables."""
        yield from self._remarks().values()
        yield from (f"note: {line}" for line in self.with_all_arms().mismatches())
        total = len(self.arms) * len(self.experiment.file.seeds)
        rows = [finished_run(self.out, planned) for planned in self.scored_runs()]
        finished = [row for row in rows if row is not None]
        diverged = [row.name for row in finished if row.diverged]
        if diverged:
            yield f"diverged, so without a score: {', '.join(diverged)}"
        scored = len(finished) - len(diverged)
        yield f"{scored} of {total} runs are scored; to compare them: moslora compare {shlex.quote(str(self.out))}"
        if len(finished) == total:
            with suppress(UsageError):  # `moslora compare` says why they cannot be compared
                yield from conclusions(compare_paths([self.out]).within(None))
