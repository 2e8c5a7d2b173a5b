"""Finished runs of an experiment written as two tables and a card, to be committed or shared.

The tables are in `moslora.compare.tables`, which also reads them.
"""

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
from moslora.experiment.one_run import answered_run, planned_run, recorded_provenance
from moslora.experiment.study import Study
from moslora.files import locked, new_folder
from moslora.runs.conditions import Conditions
from moslora.runs.evaluation import Evaluation


def pack_runs(study: Study, out: Path) -> Iterator[str]:
    """Write the finished runs of an experiment, from its tables and from folders, into the folder ``out``.

    Yields:
        Lines for the user.

    Raises:
        UsageError: there are no runs; some differ from the plan in recipe or provenance, or from each other in the
            conditions of their evaluation; or ``out`` is the experiment's own folder, or has runs that this one lacks.
    """
    index = read_index(study.out)
    if index is None:
        raise UsageError(f"{study.out}: no runs of this experiment yet; without --pack the same command runs it")
    if out.resolve() == study.out.resolve():
        raise UsageError(f"{out}: the experiment's own folder; choose another one with --pack")
    study = study.with_all_arms()
    study.refuse_mismatches()
    with locked(study.out):
        done = []
        rows = []
        for planned in (*study.experiment.rate_runs(study.arms), *study.scored_runs()):
            row = answered_run(study.out, planned)
            if row is not None:
                done.append(planned)
                rows.append(row)
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
    """Return arm -> its entry in the card ``experiment.json``, from earlier tables and from run folders.

    Args:
        study: experiment in its folder.
        done: finished runs.
        before: card of the tables in the experiment's folder, if it has tables.
    """
    cards_before = before.arms if before is not None else {}
    cards: dict[str, ArmCard] = {}
    for planned in sorted(done, key=lambda run: not run.scored):  # a scored run has recorded more
        arm = planned.arm
        applied = study.experiment.file.applied(arm)
        new = ArmCard(study.experiment.recipes[arm].to_yaml(), (), applied.of if applied else "")
        card = cards.get(arm) or cards_before.get(arm) or new
        provenance = recorded_provenance(planned_run(study.out, planned))
        if not any(provenance.items() <= other.items() for other in card.made_with):
            card = replace(card, made_with=(*card.made_with, provenance))
        cards[arm] = card
    return cards


def _asked(evaluations: Sequence[Evaluation]) -> Conditions | None:
    """Return the conditions of all evaluations; ``None`` if there are none.

    Raises:
        UsageError: the conditions differ.
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
