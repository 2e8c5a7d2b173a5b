"""The runs of an experiment that are done as two tables and a card, to be committed or handed on."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from moslora.compare.comparable import base_differences, question_differences
from moslora.compare.compared_run import ComparedRun
from moslora.compare.gains import shared_base
from moslora.compare.index import EXPERIMENT, ArmCard, Card, read_index
from moslora.compare.tables import TABLES, FinishedRun, read_tables, write_tables
from moslora.errors import UsageError, capped, counted, some
from moslora.experiment.file import PlannedRun
from moslora.experiment.one_run import finished_run, made_with, planned_answers, planned_run
from moslora.experiment.study import Study
from moslora.files import locked, new_folder
from moslora.runs.conditions import Conditions
from moslora.runs.evaluation import Evaluation


def pack_runs(study: Study, out: Path) -> Iterator[str]:
    """Writes the runs of an experiment that are done, from its tables and from folders, into the folder ``out``; yields
    what to tell.

    Raises:
        UsageError: there are none, some were made or asked in another way, or ``out`` has runs that are not among them.
    """
    index = read_index(study.out)
    if index is None:
        raise UsageError(f"{study.out}: no runs of this experiment yet; without --pack the same command runs it")
    if out.resolve() == study.out.resolve():
        raise UsageError(f"{out}: the experiment's own folder; choose another one with --pack")
    study = study.with_all_arms()
    others = study.others()
    if others:
        raise UsageError("\n".join(others))
    with locked(study.out):
        every = (*study.experiment.rate_runs(study.arms), *study.scored_runs())
        done = []
        rows = []
        for planned in every:
            row = finished_run(study.out, planned)
            if row is not None:
                done.append(planned)
                rows.append(replace(row, evaluation=planned_answers(study.out, planned)))
        evaluations = [row.evaluation for row in rows if row.evaluation is not None]
        base = shared_base(evaluations)
        if base is not None:
            rows.append(FinishedRun(None, None, None, "base", evaluation=base))
        keys = {row.key for row in rows}
        lost = [row.name for row in read_tables(out) if row.key not in keys]
        if lost:
            raise UsageError(
                f"{out}: has runs that {study.out} does not have ({some(sorted(lost))}); choose another folder with"
                " --pack"
            )
        card = Card(_arms(study, done, index.card), _asked(evaluations))
        with new_folder(out, older=lambda: (EXPERIMENT, *TABLES)) as scratch:
            write_tables(scratch, rows)
            replace(index, file=study.file_seen_from(out), runs=(), card=card).write(scratch)
    yield f"written to {out}: {counted(len(done), 'run')}"
    yield f"next: moslora compare {shlex.quote(str(out))}"


def _arms(study: Study, done: Sequence[PlannedRun], before: Card | None) -> dict[str, ArmCard]:
    """Arm -> how its runs were made: as the card of the tables says, and the folders of the others."""
    known = before.arms if before is not None else {}
    cards: dict[str, ArmCard] = {}
    for planned in sorted(done, key=lambda one: not one.scored):  # as those that are scored have recorded more
        arm = planned.arm
        applied = study.experiment.file.applied(arm)
        new = ArmCard(study.experiment.recipes[arm].to_yaml(), (), applied.of if applied else "")
        card = cards.get(arm) or known.get(arm) or new
        made = made_with(planned_run(study.out, planned))
        if not any(made.items() <= other.items() for other in card.made_with):
            card = replace(card, made_with=(*card.made_with, made))
        cards[arm] = card
    return cards


def _asked(evaluations: Sequence[Evaluation]) -> Conditions | None:
    """How all were asked; ``None`` if there are none.

    Raises:
        UsageError: they were asked in several ways.
    """
    if not evaluations:
        return None
    runs = [*map(ComparedRun.of, evaluations)]
    different = {**question_differences(runs), **base_differences(runs)}
    if different:
        raise UsageError(f"{capped(different.values())}; evaluate all in the same way")
    first = evaluations[0]
    assert first.conditions is not None and first.weights is not None, "runs are evaluated here"
    data = {task: first.data[task] for task in first.tasks}
    return replace(first.conditions, data=data, answered_by=replace(first.weights, adapter=None))
