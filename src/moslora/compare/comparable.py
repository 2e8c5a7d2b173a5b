"""May these runs be compared? How they were asked, and their bases, rows and steps, must be alike."""

import re
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

    def __init__(self, unlike: Sequence[Unlike], *others: str, compare: str = "") -> None:
        faults = [f"{one.values}; {one.fix}" for one in unlike if one.fix]
        meant = [one for one in unlike if not one.fix]
        allow = " ".join(f"--allow {shlex.quote(one.field)}" for one in meant)
        how = ""
        if not faults:
            how = f"; if that is meant: {compare} {allow}" if compare else f"; if that is meant, add {allow}"
        if meant:
            faults.append("; ".join(one.values for one in meant) + how)
        super().__init__(capped([*faults, *others]))
        self.unlike = unlike
        self.others = others


def refuse_mixed(arms: Sequence[Arm], *, allowed: Sequence[str] = ()) -> None:
    """Refuses runs that were asked differently, or that differ in base, rows or steps: one line for each field, with
    both values. Fields of base, rows and steps may be ``allowed`` to differ.

    Raises:
        NotComparable: the runs differ.
    """
    runs = all_runs(arms)
    ways = how_asked([run.evaluation for run in runs])
    base_names: dict[str, str] = {}
    first: dict[str, tuple[str, Path]] = {}  # field -> its value in the first run that has it, and that run
    unlike: dict[str, Unlike] = {}
    may_be_allowed: dict[str, None] = {}
    for run, asked in zip(runs, ways, strict=True):
        made = _how_made(run, base_names)
        may_be_allowed |= dict.fromkeys(made)
        for field, value in {**asked, **made}.items():
            first_value, first_path = first.setdefault(field, (value, run.path))
            if value == first_value or field in allowed:
                continue
            fix = ""
            if field in asked:
                fix = _how_to_ask_alike(field)
            values = f"{field}: {first_value} in {first_path}, {value} in {run.path}"
            unlike.setdefault(field, Unlike(field, values, fix))
    others = []
    unknown = [field for field in allowed if field not in may_be_allowed]
    if unknown:
        others.append(f"--allow {', '.join(unknown)}: must be one of {', '.join(may_be_allowed)}")
    if unlike or others:
        raise NotComparable(list(unlike.values()), *others)


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
    fields[f"rows.{run.seed}"] = str(run.facts.get("data", {}).get("sha256"))[:8]
    if run.source_hash:
        fields["rows"] = run.source_hash[:8]
    return fields


def _how_to_ask_alike(field: str) -> str:
    if field == MAX_LENGTH:
        return "questions were cut at this length, so evaluate both with the same --max-length"
    if field.startswith("questions"):
        return "evaluate both in the same way, or choose other --tasks"
    return "evaluate both in the same way"


def refuse_other_prompts(runs: Sequence[ComparedRun], *, allowed: Sequence[str]) -> None:
    """Refuses logs of the same ids of which a hash says that something else was asked: the first, as other data have
    other prompts."""
    first = runs[0]
    for name in HASHES:
        if name in allowed:
            continue
        for run in runs:
            unlike = _with_another_hash(name, run, first)
            if not unlike:
                continue
            fix = "log both with the same data"
            if name == PROMPT:
                fix = f"if that is meant, add --allow {name}"
            raise UsageError(
                f"{name}: differs for {counted(len(unlike), 'question')} ({some(unlike)}) between {first.path} and"
                f" {run.path}; {fix}"
            )


def _with_another_hash(name: str, run: ComparedRun, other: ComparedRun) -> list[str]:
    """The questions, as ``TASK ID``, of which both runs have this hash, and not the same."""
    found = []
    for task, answers in run.tasks.items():
        mine = answers.hashes.get(name, ())
        its = other.tasks[task].hashes.get(name, ())
        for id, one, another in zip(answers.ids, mine, its, strict=False):
            if one != another:
                found.append(f"{task} {id}")
    return found


def note_steps(arms: Sequence[Arm]) -> None:
    """Says which steps are compared, where validations chose them."""
    found = []
    for arm in arms:
        steps = [f"{run.facts['steps']:,}" for run in arm.runs.values() if run.rule]
        if steps:
            found.append(f"{arm.name} {', '.join(steps)}")
    if found:
        rule = next(run.rule for run in all_runs(arms) if run.rule)
        note(f"steps, each {rule}: {some(found, separator='; ', most=8)}")


def note_clusters(runs: Sequence[ComparedRun]) -> None:
    """Says which questions, the same in all runs, are in clusters."""
    found = []
    for task, codes in cluster_codes(runs).items():
        found.append(f"{task} {len(codes):,} in {codes.max() + 1:,}")
    if found:
        counts = some(found, most=8)
        note_once(f"clusters: {counts}; equal questions, and those that share a text or a source, count together")
    unlike = _with_other_clusters(runs)
    if unlike:
        note(f"other clusters: {some(unlike, separator='; ', most=4)}; of two arms those of the first count")


def _with_other_clusters(runs: Sequence[ComparedRun]) -> list[str]:
    """The tasks whose questions two runs group in different ways, with the first two such runs."""
    found: dict[str, str] = {}
    for task in runs[0].tasks:
        known = [run for run in runs if run.tasks[task].clusters]
        for run in known:
            if run.tasks[task].grouping != known[0].tasks[task].grouping:
                found.setdefault(task, f"{task} in {run.path} than in {known[0].path}")
    return list(found.values())


def note_predecessors(arms: Sequence[Arm]) -> None:
    """Says which arms started with the weights of another adapter."""
    found = []
    for arm in arms:
        for run in arm.runs.values():
            predecessor = predecessor_of(run.facts)
            if predecessor is not None:
                found.append(f"{arm.name} from {predecessor}")
    if found:
        note(f"continued: {some(list(dict.fromkeys(found)), separator='; ', most=8)}")


def note_versions(runs: Sequence[ComparedRun]) -> None:
    """Says which versions, tokenizer and chat template are not those of all runs that have recorded them."""
    first: dict[str, dict[str, Path]] = {}  # package or part -> version or hash -> the first run that has it
    for run in runs:
        for name, version in run.settings.made_with.items():
            first.setdefault(name, {}).setdefault(version, run.path)
    for name, places in first.items():
        if len(places) > 1:
            note(f"{_unlike(name.replace('_', ' '), places)}; this may change scores")


def _unlike(name: str, places: Mapping[str, Path]) -> str:
    """What differs and where, in words; a hash says nothing to a reader."""
    if all(re.fullmatch("[0-9a-f]{16,}", value) for value in places):
        return f"the {name} differs: " + some([str(path) for path in places.values()], separator=" than in ", most=2)
    return f"{name} was " + some([f"{value} in {path}" for value, path in places.items()])
