"""May these runs be compared? How they were asked, and their bases, rows and steps, must be alike."""

import difflib
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from moslora.compare.arms import SEEDS, Arm, all_runs, cluster_codes
from moslora.compare.compared_run import ComparedRun, evaluations_of
from moslora.compare.logs import HASHES, PROMPT
from moslora.console import note, note_once
from moslora.errors import UsageError, capped, counted, some
from moslora.runs.conditions import Changes
from moslora.runs.evaluation import Evaluation

ROWS = "rows"
STEPS = "steps"
"""What ``--allow`` names for all fields of the rows, and of the steps, in which runs differ."""


def refuse_mixed(arms: Sequence[Arm], *, allowed: Sequence[str] = ()) -> None:
    """Refuses runs that were asked differently, one line for each field, or that differ in base, rows or steps, whose
    fields may be ``allowed`` to differ: by name, or all of them as rows or as steps. A note names those that do not.

    Raises:
        UsageError: also of an allowed field that no run has.
    """
    runs = all_runs(arms)
    differing = training_differences(runs)
    known = {ROWS, STEPS, "base", SEEDS, PROMPT, *(field for run in runs for field in _fields_of(run))}
    unknown = [field for field in allowed if field not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], sorted(known), n=1)
        fix = f"did you mean {near[0]}?" if near else f"must be among {', '.join(sorted(known))}"
        raise UsageError(f"--allow {unknown[0]}: no such field; {fix}")
    unlike = {SEEDS, PROMPT, *differing, *map(_kind, differing)}
    alike = [field for field in allowed if field not in unlike]
    if alike:
        note(f"--allow {some(alike)}: differs in none of these runs")
    faults = [f"{values}; evaluate both in the same way" for values in question_differences(runs).values()]
    made = {field: values for field, values in differing.items() if not {field, _kind(field)} & {*allowed}}
    if made:
        allow = ",".join(dict.fromkeys(map(_kind, made)))
        faults.append(f"{'; '.join(made.values())}; if that is meant, add --allow {allow}")
    if faults:
        raise UsageError(capped(faults))


def _fields_of(run: ComparedRun) -> list[str]:
    """The fields in which a run may differ from another one."""
    return [*facts_of(run, Changes.BASE), *run.made]


def _kind(field: str) -> str:
    """What a field of how a run was made is about; a field of its base is about itself."""
    first, _, _ = field.partition(".")
    return {"steps": STEPS, "rows": ROWS, "trained_rows": ROWS, "data": ROWS, "training": STEPS}.get(first, field)


def is_base_of(base: Evaluation, runs: Sequence[Evaluation]) -> bool:
    """Whether ``base`` answered the questions of the first of ``runs``, asked in the same way, and all ``runs`` are of
    this base, in the same precision."""
    first = runs[0]
    questions, others = ({task: answers.ids for task, answers in its.tasks.items()} for its in (base, first))
    asked_alike = questions == others and not question_differences([ComparedRun.of(base), ComparedRun.of(first)])
    return asked_alike and not base_differences([*map(ComparedRun.of, (base, *runs))])


def question_differences(runs: Sequence[ComparedRun]) -> dict[str, str]:
    """The differences in protocol, template and questions. The limit in tokens is none if it cut nothing in any."""
    tables = [answers for run in runs for answers in run.tasks.values()]
    limit_matters = any(any(its.truncated) or len(its.truncated) < len(its.ids) for its in tables)  # or not known
    ways = []
    for run in runs:
        way = facts_of(run, Changes.ASKED)
        if not limit_matters:
            way.pop("max_length", None)
        ways.append(way | {f"questions of {task}": str(run.evaluation.data.get(task))[:8] for task in run.tasks})
    return _differences(runs, ways)


def training_differences(runs: Sequence[ComparedRun]) -> dict[str, str]:
    """The differences in base, rows and steps, which may be meant."""
    return {**base_differences(runs), **_differences(runs, [run.made for run in runs])}


def base_differences(runs: Sequence[ComparedRun]) -> dict[str, str]:
    """The differences of their bases, in the precision in which they were asked. A base with the fingerprint of one
    before has its name, as the same may lie in several folders."""
    names: dict[str | None, str] = {}
    bases = []
    for run in runs:
        base = facts_of(run, Changes.BASE)
        if run.evaluation.weights is not None:
            fingerprint = base.pop("fingerprint")
            # The last part of a path, as the same folder may be written in several ways.
            name = str(run.evaluation.weights.base).rstrip("/").rpartition("/")[2]
            base["base"] = names.setdefault(fingerprint, f"{name} ({fingerprint})")
        bases.append(base)
    return _differences(runs, bases)


def facts_of(run: ComparedRun, *changing: Changes) -> dict[str, Any]:
    """The facts of its conditions that change one of ``changing``; empty if they are not known, as of a log."""
    conditions = run.evaluation.conditions
    return conditions.facts(*changing) if conditions else {}


def _differences(runs: Sequence[ComparedRun], fields: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Field -> its value in the first run that has it, and the first other one; of the ``fields`` of each run."""
    first: dict[str, tuple[Any, Path]] = {}
    differences: dict[str, str] = {}
    for run, own in zip(runs, fields, strict=True):
        for field, value in own.items():
            before, path = first.setdefault(field, (value, run.path))
            if value != before:
                differences.setdefault(field, f"{field}: {before} in {path}, {value} in {run.path}")
    return differences


def refuse_other_prompts(runs: Sequence[ComparedRun], *, allowed: Sequence[str]) -> None:
    """Refuses logs of the same ids of which a hash says that something else was asked: the first, as other data have
    other prompts."""
    first = runs[0]
    for name, run in product(HASHES, runs):
        for task, answers in run.tasks.items():
            hashes = (its.hashes.get(name, ()) for its in (answers, first.tasks[task]))
            unlike = [f"{task} {id}" for id, one, other in zip(answers.ids, *hashes, strict=False) if one != other]
            if unlike and not (name == PROMPT and name in allowed):
                raise UsageError(
                    f"{name}: differs for {counted(len(unlike), 'question')} ({some(unlike)}) in {first.path} and"
                    f" {run.path}; log both with the same data, or if other prompts are meant, add --allow {PROMPT}"
                )


def note_what_differs(arms: Sequence[Arm]) -> None:
    """Says what may differ and yet matters to a reader: steps that validations chose, versions, and clusters of
    questions, which are the same in all runs."""
    runs = all_runs(arms)
    chosen = [(arm.name, run) for arm in arms for run in arm.runs.values() if run.chosen_step is not None]
    if chosen:
        steps = [f"{name} {run.chosen_step:,} ({run.made['steps']})" for name, run in chosen]
        note(f"steps: {some(steps, separator='; ', most=8)}")
    trained_rows = {
        run.seed: rows for run in runs for field, rows in run.made.items() if field == f"trained_rows.{run.seed}"
    }
    if len({*trained_rows.values()}) > 1:
        by_seed = [f"{rows} with seed {seed}" for seed, rows in trained_rows.items()]
        note(f"trained rows: {some(by_seed, most=8)}; those that repeat a seed's validation rows are left out")
    made_with = [facts_of(run, Changes.TOKENS, Changes.VERSIONS) for run in runs]
    short = [{key.rpartition(".")[2]: value[:20] for key, value in its.items()} for its in made_with]
    for values in _differences(runs, short).values():
        note(f"{values}; this may change scores")
    codes_by_task = cluster_codes(evaluations_of(runs))
    clusters = [f"{task} {len(codes):,} in {codes.max() + 1:,}" for task, codes in codes_by_task.items()]
    if clusters:
        counts = some(clusters, most=8)
        note_once(f"clusters: {counts}; equal questions, and those that share a text or a source, count together")
