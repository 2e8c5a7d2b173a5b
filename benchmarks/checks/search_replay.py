"""Which runs of a finished search an adaptive one would have taken, and what it would have chosen.

    python -m benchmarks.checks.search_replay runs/article-second

The folder is that of `article-second`, whose runs validate every ten steps. They are handed out one by one to a search
with other `rate_seeds`, as if they were trained then, until one is asked for that is not finished. Arms are searched
whose runs with the first two seeds are there.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks import DOCS
from benchmarks.tables import markdown, publish
from moslora.experiment.file import Experiment, Planned, load_experiment
from moslora.experiment.keys import RateSeeds
from moslora.experiment.one_run import is_done, planned_run
from moslora.experiment.study import Study
from moslora.files import write_text
from moslora.runs.run import METRICS


@dataclass
class Replay:
    """A search whose runs are those of a finished one.

    Attributes:
        experiment: with the seeds of this search.
        source: the folder of the finished one.
        out: the folder of this one.
        arms: those that are searched.
        taken: run -> the share of its steps that this search asked for.
        missing: runs that it asked for last, and that are not finished.
    """

    experiment: Experiment
    source: Path
    out: Path
    arms: tuple[str, ...]
    taken: dict[str, float] = field(default_factory=dict)
    missing: list[Planned] = field(default_factory=list)

    def search(self) -> dict[str, float | None]:
        """Takes the runs, round by round. Returns arm -> the chosen rate, ``None`` where runs are missing."""
        study = Study(self.experiment, self.out, self.arms)
        left = study.search.left()
        while left and not self.missing:
            for planned in left:
                self._take(planned)
            study.write_index()
            left = study.search.left()
        return {curve.arm: curve.best for curve in study.curves()}

    def _take(self, planned: Planned) -> None:
        """Copies a run as far as it is asked for."""
        if not is_done(self.source, planned):
            self.missing.append(planned)
            return
        then = planned_run(self.source, planned)
        steps = then.facts["steps"]
        last = steps
        facts = {"state": then.facts["experiment"]["state"]}
        if planned.stop_at is not None:
            validated = [row["step"] for row in then.metrics if "validation_loss" in row]
            last = min(step for step in validated if step >= planned.stop_at * steps)
            facts = {"state": "begun", "stopped_at": planned.stop_at}
        run = planned_run(self.out, planned)
        run.add_facts(steps=steps, experiment=facts)
        rows = [row for row in then.metrics if row["step"] <= last]
        write_text(run.path / METRICS, "".join(f"{json.dumps(row)}\n" for row in rows))
        self.taken[planned.name] = last / steps


def finished_arms(experiment: Experiment, source: Path, seeds: Sequence[int]) -> tuple[str, ...]:
    """The arms whose runs with these seeds are all there."""
    found = []
    for arm in experiment.file.searched:
        choices = [(arm, rate) for rate in experiment.file.rates(arm)]
        runs = experiment.planned(choices, scored=False, seeds=seeds)
        if all(is_done(source, planned) for planned in runs):
            found.append(arm)
    return tuple(found)


def searches(seeds: tuple[int, ...]) -> dict[str, RateSeeds]:
    """What is replayed: as it was, and with fewer runs."""
    first = seeds[:2]
    more = seeds[2:]
    return {
        "every rate with every seed": RateSeeds(every_rate=seeds),
        "every rate with two seeds": RateSeeds(every_rate=first),
        "two seeds, then one by one for close rates": RateSeeds(every_rate=first, close_rates=more),
        "two seeds, halved at 1/2": RateSeeds(every_rate=first, halve_at=(0.5,)),
        "two seeds, halved at 1/4 and 1/2": RateSeeds(every_rate=first, halve_at=(0.25, 0.5)),
    }


def rows_of(source: Path, seeds: tuple[int, ...]) -> list[list[str]]:
    """A row for each search: its runs, their length in whole runs, and the rates."""
    experiment = load_experiment("article-second")
    arms = finished_arms(experiment, source, seeds[:2])
    rows = [["search", "runs", "in whole runs", *arms]]
    for title, rate_seeds in searches(seeds).items():
        file = experiment.file.model_copy(update={"rate_seeds": rate_seeds})
        with tempfile.TemporaryDirectory() as folder:
            replay = Replay(replace(experiment, file=file), source, Path(folder), arms)
            chosen = replay.search()
        rates = []
        for arm in arms:
            rate = chosen[arm]
            text = "not finished"
            if rate is not None:
                text = f"{rate:g}"
            rates.append(text)
        runs = len(replay.taken) + len(replay.missing)
        whole = sum(replay.taken.values()) + len(replay.missing)
        rows.append([title, str(runs), f"{whole:.1f}", *rates])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", help="of the search, in their order [default: the file's]")
    parser.add_argument("--print-only", action="store_true", help="leave the document as it is")
    given = parser.parse_args()
    seeds = given.seeds
    if seeds is None:
        seeds = load_experiment("article-second").file.rate_seeds.every_rate
    table = markdown(rows_of(given.folder, tuple(seeds)))
    publish(table, DOCS / "experiments.md", "search-replay", print_only=given.print_only)


if __name__ == "__main__":
    main()
