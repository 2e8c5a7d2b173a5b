"""May these runs be compared? How they were asked, and their bases, rows and steps, must be alike."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moslora.compare.arms import Arm, all_runs, cluster_codes
from moslora.compare.runs import HASHES, PROMPT, ComparedRun
from moslora.console import note, note_once
from moslora.errors import UsageError, capped, counted, some
from moslora.recipe import Changes
from moslora.recipe.recipe import fields_that_change
from moslora.runs.evaluation import Evaluation
from moslora.runs.lineage import predecessor_of

MAX_LENGTH = "max_length"
"""The field of the settings with the limit in tokens, by default the model's context."""


@dataclass(frozen=True)
class Unlike:
    """A field in which two runs differ.

    Attributes:
        field: its name; one of base, rows or steps is accepted by ``--allow``.
        values: of both runs, and the runs that have them.
        fix: how to ask both alike; empty if the field may differ where that is meant.
    """

    field: str
    values: str
    fix: str


class NotComparable(UsageError):
    """Runs that differ in fields that must be alike: a line for each, and one for all that may differ.

    ``compare`` is the command that compares them nevertheless, once it allows these fields. Where others may not
    differ, that would not help.
    """

    def __init__(self, unlike: Sequence[Unlike], *, compare: str = "") -> None:
        faults = [f"{one.values}; {one.fix}" for one in unlike if one.fix]
        meant = [one for one in unlike if not one.fix]
        allow = " ".join(f"--allow {shlex.quote(one.field)}" for one in meant)
        how = ""
        if not faults:
            how = f"; if that is meant: {compare} {allow}" if compare else f"; if that is meant, add {allow}"
        if meant:
            faults.append("; ".join(one.values for one in meant) + how)
        super().__init__(capped(faults))
        self.unlike = unlike


def refuse_mixed(arms: Sequence[Arm], *, allowed: Sequence[str] = ()) -> None:
    """Refuses runs that were asked differently, or that differ in base, rows or steps: one line for each field, with
    both values. Fields of base, rows and steps may be ``allowed`` to differ.

    Raises:
        NotComparable: the runs differ.
    """
    runs = all_runs(arms)
    asked = how_asked([run.evaluation for run in runs])
    base_names: dict[str, str] = {}
    made = [_how_made(run, base_names) for run in runs]
    unlike = []
    for field, values in _differences(runs, asked).items():
        unlike.append(Unlike(field, values, "evaluate both in the same way"))
    for field, values in _differences(runs, made).items():
        if field not in allowed:
            unlike.append(Unlike(field, values, fix=""))
    if unlike:
        raise NotComparable(unlike)


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
    limit_matters = any(_may_be_cut(evaluation) for evaluation in evaluations)
    ways = []
    for evaluation in evaluations:
        fields = dict(evaluation.settings.asked)
        if not limit_matters:
            fields.pop(MAX_LENGTH, None)
        for task in evaluation.tasks:
            fields[f"questions of {task}"] = str(evaluation.settings.data.get(task))[:8]
        ways.append(fields)
    return ways


def _may_be_cut(evaluation: Evaluation) -> bool:
    """Whether one of its questions or texts was cut, or nobody knows."""
    for answers in evaluation.tasks.values():
        unknown = len(answers.cut) < len(answers.ids)
        if unknown or any(answers.cut):
            return True
    return False


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
        fix = "log both with the same data"
        if name == PROMPT:
            fix = f"if that is meant, add --allow {name}"
        for run in runs:
            unlike = []
            for task, answers in run.tasks.items():
                own = answers.hashes.get(name, ())
                others = first.tasks[task].hashes.get(name, ())
                places = zip(answers.ids, own, others, strict=False)
                unlike += [f"{task} {id}" for id, one, other in places if one != other]
            if unlike and (name != PROMPT or PROMPT not in allowed):
                count = counted(len(unlike), "question")
                raise UsageError(f"{name}: differs for {count} ({some(unlike)}) in {first.path} and {run.path}; {fix}")


def note_what_differs(arms: Sequence[Arm]) -> None:
    """Says what may differ and yet matters to a reader: steps that validations chose, weights that a run started with,
    versions, and clusters of questions, which are the same in all runs."""
    steps = []
    starts: dict[str, None] = {}
    for arm in arms:
        for run in arm.runs.values():
            if run.rule:
                steps.append(f"{arm.name} {run.facts['steps']:,} ({run.rule})")
            predecessor = predecessor_of(run.facts)
            if predecessor is not None:
                starts[f"{arm.name} from {predecessor}"] = None
    if steps:
        note(f"steps: {some(steps, separator='; ', most=8)}")
    if starts:
        note(f"continued: {some(list(starts), separator='; ', most=8)}")
    runs = all_runs(arms)
    versions = [{name: version[:20] for name, version in run.settings.made_with.items()} for run in runs]
    for values in _differences(runs, versions).values():
        note(f"{values}; this may change scores")
    clusters = [f"{task} {len(codes):,} in {codes.max() + 1:,}" for task, codes in cluster_codes(runs).items()]
    if clusters:
        counts = some(clusters, most=8)
        note_once(f"clusters: {counts}; equal questions, and those that share a text or a source, count together")
