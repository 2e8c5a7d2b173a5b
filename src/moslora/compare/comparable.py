"""Refusal of runs that cannot be compared: those with other questions, or, unless allowed, another base, rows or steps.

What two comparable runs show is in `moslora.compare.contrast`.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from moslora.compare.arms import SEEDS, Arm, all_runs, cluster_codes
from moslora.compare.compared_run import ComparedRun, evaluations_of
from moslora.compare.logs import HASHES, PROMPT
from moslora.console import note, note_once
from moslora.errors import UsageError, capped, counted, did_you_mean, near_words, some
from moslora.runs.conditions import Changes
from moslora.runs.evaluation import Evaluation

ROWS = "rows"
STEPS = "steps"
"""Values of ``--allow`` for all fields of the rows, and for all fields of the steps."""


def refuse_mixed(arms: Sequence[Arm], *, allowed: Sequence[str] = ()) -> None:
    """Refuse runs that were asked in different ways, or that differ in base, rows or steps.

    Args:
        arms: arms of these runs.
        allowed: fields of base, rows and steps that may differ: by name, or as `ROWS` or `STEPS`.

    Raises:
        UsageError: a line for each way of asking that differs, and one for base, rows and steps; or an allowed field
            that no run has.
    """
    runs = all_runs(arms)
    fields = {ROWS, STEPS, "base", SEEDS, PROMPT}
    for run in runs:
        fields.update(facts_of(run, Changes.BASE), run.training_facts)
    for field in allowed:
        if field not in fields:
            fix = did_you_mean(near_words(field, fields), otherwise=f"must be among {', '.join(sorted(fields))}")
            raise UsageError(f"--allow {field}: no such field; {fix}")
    faults = [f"{values}; evaluate both in the same way" for values in question_differences(runs).values()]
    refused = {
        field: values for field, values in training_differences(runs).items() if not {field, _kind(field)} & {*allowed}
    }
    if refused:
        allow = ",".join(dict.fromkeys(map(_kind, refused)))
        faults.append(f"{'; '.join(refused.values())}; if that is meant, add --allow {allow}")
    if faults:
        raise UsageError(capped(faults))


def _kind(field: str) -> str:
    """Return `ROWS` or `STEPS` if the field affects one of these; a field of the base is returned as it is."""
    first, _, _ = field.partition(".")
    return {"steps": STEPS, "rows": ROWS, "trained_rows": ROWS, "data": ROWS, "training": STEPS}.get(first, field)


def is_base_of(base: Evaluation, runs: Sequence[Evaluation]) -> bool:
    """Whether ``base`` answered the first run's questions in the same way, and all runs have this base and precision.

    Args:
        base: answers of an untrained model.
        runs: answers of at least one run.
    """
    questions, of_base = ({task: answers.ids for task, answers in each.tasks.items()} for each in (runs[0], base))
    compared = [*map(ComparedRun.of, (base, *runs))]
    return questions == of_base and not (question_differences(compared[:2]) or base_differences(compared))


def question_differences(runs: Sequence[ComparedRun]) -> dict[str, str]:
    """Return the differences in protocol, template and questions, by field.

    Another maximum length is no difference if no run truncated a question.
    """
    tables = [answers for run in runs for answers in run.tasks.values()]
    # A table without the column does not record what was truncated.
    limit_matters = any(any(table.truncated) or len(table.truncated) < len(table.ids) for table in tables)
    ways = []
    for run in runs:
        way = facts_of(run, Changes.ASKED)
        if not limit_matters:
            way.pop("max_length", None)
        ways.append(way | {f"questions of {task}": str(run.evaluation.data.get(task))[:8] for task in run.tasks})
    return _differences(runs, ways)


def training_differences(runs: Sequence[ComparedRun]) -> dict[str, str]:
    """Return the differences in base, rows and steps, by field."""
    return {**base_differences(runs), **_differences(runs, [run.training_facts for run in runs])}


def base_differences(runs: Sequence[ComparedRun]) -> dict[str, str]:
    """Return the differences of the runs' bases and of the precision in which they answered, by field.

    A base is identified by its fingerprint, as copies may be in several folders. It is named as in the first run.
    """
    names: dict[str | None, str] = {}
    bases = []
    for run in runs:
        base = facts_of(run, Changes.BASE)
        weights = run.evaluation.weights
        if weights is not None:
            fingerprint = base.pop("fingerprint")
            # The last part of the path, as one folder has several spellings.
            name = str(weights.base).rstrip("/").rpartition("/")[2]
            commit = weights.base_commit and f", commit {weights.base_commit[:8]}"
            base["base"] = names.setdefault(fingerprint, f"{name} ({fingerprint}{commit})")
        bases.append(base)
    return _differences(runs, bases)


def facts_of(run: ComparedRun, *changing: Changes) -> dict[str, Any]:
    """Return the facts of a run's evaluation that determine one of the aspects ``changing``.

    Empty for a log of another program, which has none.
    """
    conditions = run.evaluation.conditions
    return conditions.facts(*changing) if conditions else {}


def _differences(runs: Sequence[ComparedRun], fields: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return, by field, its value in the first run that has the field and the first other value, each with its run.

    Args:
        runs: compared runs.
        fields: field -> value, of each run.
    """
    first: dict[str, tuple[Any, Path]] = {}
    differences: dict[str, str] = {}
    for run, values in zip(runs, fields, strict=True):
        for field, value in values.items():
            before, path = first.setdefault(field, (value, run.path))
            if value != before:
                differences.setdefault(field, f"{field}: {before} in {path}, {value} in {run.path}")
    return differences


def refuse_other_prompts(runs: Sequence[ComparedRun], *, allowed: Sequence[str]) -> None:
    """Refuse logs whose questions have the same ids but other hashes.

    Raises:
        UsageError: names only the first of `HASHES` that differs, since other data also have other prompts.
    """
    first = runs[0]
    for name, run in product(HASHES, runs):
        for task, answers in run.tasks.items():
            hashes = (table.hashes.get(name, ()) for table in (answers, first.tasks[task]))
            differing = [f"{task} {id}" for id, one, other in zip(answers.ids, *hashes, strict=False) if one != other]
            if differing and not (name == PROMPT and name in allowed):
                raise UsageError(
                    f"{name}: differs for {counted(len(differing), 'question')} ({some(differing)}) in {first.path} and"
                    f" {run.path}; log both with the same data, or if other prompts are meant, add --allow {PROMPT}"
                )


def note_what_differs(arms: Sequence[Arm]) -> None:
    """Print differences that are allowed but matter to a reader, and the clusters of the questions.

    The differences are the steps that validations chose, the tokenizer or chat template, versions of packages, and the
    commit of a base whose weights are the same.
    """
    runs = all_runs(arms)
    chosen = [(arm.name, run) for arm in arms for run in arm.runs.values() if run.chosen_step is not None]
    if chosen:
        steps = [f"{name} {run.chosen_step:,} ({run.training_facts['steps']})" for name, run in chosen]
        note(f"steps: {some(steps, separator='; ', most=8)}")
    facts = [facts_of(run, Changes.TOKENS, Changes.VERSIONS, Changes.COMMIT) for run in runs]
    shortened = [{key.rpartition(".")[2]: value[:20] for key, value in of_run.items() if value} for of_run in facts]
    for values in _differences(runs, shortened).values():
        note(f"{values}; this may change scores")
    codes_by_task = cluster_codes(evaluations_of(runs))
    clusters = [f"{task} {len(codes):,} in {codes.max() + 1:,}" for task, codes in codes_by_task.items()]
    if clusters:
        counts = some(clusters, most=8)
        note_once(f"clusters: {counts}; equal questions, and those that share a text or a source, count together")
