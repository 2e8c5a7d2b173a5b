"""May these runs be compared? How they were asked, and their bases, rows and steps, must be alike."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from moslora.compare.arms import Arm, all_runs, cluster_codes
from moslora.compare.runs import HASHES, PROMPT, ComparedRun
from moslora.console import note, note_once
from moslora.errors import UsageError, capped, counted, some
from moslora.recipe import Changes
from moslora.recipe.recipe import fields_that_change
from moslora.runs.evaluation import Evaluation

MAX_LENGTH = "max_length"
"""The field of the settings with the limit in tokens, by default the model's context."""


class NotComparable(UsageError):
    """Runs that differ in fields that must be alike.

    Attributes:
        asked: field -> values, of how they were asked.
        made: likewise, of base, rows and steps, which may be meant to differ: ``--allow`` takes these fields.
    """

    def __init__(self, asked: Mapping[str, str], made: Mapping[str, str]) -> None:
        faults = [f"{values}; evaluate both in the same way" for values in asked.values()]
        if made:
            allow = " ".join(f"--allow {shlex.quote(field)}" for field in made)
            faults.append(f"{'; '.join(made.values())}; if that is meant, add {allow}")
        super().__init__(capped(faults))
        self.asked = asked
        self.made = made


def refuse_mixed(arms: Sequence[Arm], *, allowed: Sequence[str] = ()) -> None:
    """Refuses runs that were asked differently, or that differ in base, rows or steps: one line for each field, with
    both values. Fields of base, rows and steps may be ``allowed`` to differ.

    Raises:
        NotComparable: the runs differ.
    """
    runs = all_runs(arms)
    base_names: dict[str, str] = {}
    asked = _differences(runs, how_asked([run.evaluation for run in runs]))
    made = _differences(runs, [_how_made(run, base_names) for run in runs])
    made = {field: values for field, values in made.items() if field not in allowed}
    if asked or made:
        raise NotComparable(asked, made)


def _differences(runs: Sequence[ComparedRun], fields: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """Field -> its value in the first run that has it, and the first other one; of the ``fields`` of each run."""
    first: dict[str, tuple[object, Path]] = {}
    found: dict[str, str] = {}
    for run, own in zip(runs, fields, strict=True):
        for field, value in own.items():
            before, path = first.setdefault(field, (value, run.path))
            if value != before:
                found.setdefault(field, f"{field}: {before} in {path}, {value} in {run.path}")
    return found


def how_asked(evaluations: Sequence[Evaluation]) -> list[dict[str, str]]:
    """Field -> value, of protocol, template and questions, for each evaluation. The limit in tokens is left out if it
    cut nothing in any of them."""
    tables = [answers for evaluation in evaluations for answers in evaluation.tasks.values()]
    limit_matters = any(any(answers.cut) or len(answers.cut) < len(answers.ids) for answers in tables)  # or not known
    ways = []
    for evaluation in evaluations:
        fields = dict(evaluation.settings.asked)
        if not limit_matters:
            fields.pop(MAX_LENGTH, None)
        for task in evaluation.tasks:
            fields[f"questions of {task}"] = str(evaluation.settings.data.get(task))[:8]
        ways.append(fields)
    return ways


def _how_made(run: ComparedRun, base_names: dict[str, str]) -> dict[str, str]:
    """Field -> value, of base, rows and steps: all rows of the source, and those that a seed has chosen among them.

    Args:
        run: a run, or a base.
        base_names: fingerprint -> the base as the first run names it, as the same base may lie in several folders;
            completed here.
    """
    fields = dict(run.settings.model)
    if not run.settings.known:
        fields[PROMPT] = "of each question"
    fingerprint = run.settings.metadata.get("fingerprint")
    if fingerprint:
        fields["base"] = base_names.setdefault(fingerprint, fields["base"])
    if run.recipe is None:
        return fields
    if "imported" in run.facts:
        fields["steps"] = "unknown, as are its rows,"
        return fields
    for key in fields_that_change(Changes.ROWS):
        section, _, name = key.partition(".")
        fields[key] = str(run.recipe[section].get(name))
    fields["trained_rows"] = str(run.facts.get("trained_rows"))
    fields["steps"] = run.rule or str(run.facts.get("steps"))
    hashes = run.facts.get("data", {})
    fields[f"rows.{run.seed}"] = str(hashes.get("sha256"))[:8]
    if "source_sha256" in hashes:
        fields["rows"] = hashes["source_sha256"][:8]
    return fields


def refuse_other_prompts(runs: Sequence[ComparedRun], *, allowed: Sequence[str]) -> None:
    """Refuses logs of the same ids of which a hash says that something else was asked: the first, as other data have
    other prompts."""
    first = runs[0]
    for name in HASHES:
        if name == PROMPT and name in allowed:
            continue
        fix = f"if that is meant, add --allow {name}" if name == PROMPT else "log both with the same data"
        for run in runs:
            unlike = []
            for task, answers in run.tasks.items():
                hashes = (its.hashes.get(name, ()) for its in (answers, first.tasks[task]))
                unlike += [f"{task} {id}" for id, one, other in zip(answers.ids, *hashes, strict=False) if one != other]
            if unlike:
                count = counted(len(unlike), "question")
                raise UsageError(f"{name}: differs for {count} ({some(unlike)}) in {first.path} and {run.path}; {fix}")


def note_what_differs(arms: Sequence[Arm]) -> None:
    """Says what may differ and yet matters to a reader: steps that validations chose, versions, and clusters of
    questions, which are the same in all runs."""
    chosen = [(arm.name, run) for arm in arms for run in arm.runs.values() if run.rule]
    steps = [f"{name} {run.facts['steps']:,} ({run.rule})" for name, run in chosen]
    if steps:
        note(f"steps: {some(steps, separator='; ', most=8)}")
    runs = all_runs(arms)
    versions = [{name: version[:20] for name, version in run.settings.made_with.items()} for run in runs]
    for values in _differences(runs, versions).values():
        note(f"{values}; this may change scores")
    clusters = [f"{task} {len(codes):,} in {codes.max() + 1:,}" for task, codes in cluster_codes(runs).items()]
    if clusters:
        counts = some(clusters, most=8)
        note_once(f"clusters: {counts}; equal questions, and those that share a text or a source, count together")
