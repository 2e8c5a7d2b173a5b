"""Arms against each other, if they can be compared: contrasts named beforehand, everything else exploratory."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from moslora.compare.answers import HASHES, PROMPT, Answers, Log, in_common
from moslora.compare.arms import Arm, eval_command, load_arms, pair, values
from moslora.compare.index import ExperimentIndex, read_index
from moslora.compare.outcomes import DEFAULTS, Measure, measure
from moslora.compare.statistics import MACRO, MICRO, Effect, Floats, effects
from moslora.console import note
from moslora.errors import UsageError, capped, some
from moslora.tasks import COMMONSENSE, GROUP, split_names, unknown_names

MAX_LENGTH = "max_length"
"""The field of the settings with the limit in tokens, by default the model's context."""


@dataclass(frozen=True)
class Contrast:
    """One arm against another, run by run and question by question.

    Attributes:
        seeds: pairs of runs, S; 1 for one run against one.
        y: task -> the outcome of both arms, shape ``(2, S, n)``.
        majority: task -> the accuracy of always giving the most frequent label, shape ``(n,)``; empty if it is unknown,
            or no accuracy is compared.
        effects: task and average -> ``after`` minus ``before``.
    """

    before: str
    after: str
    unit: Measure
    seeds: int
    y: dict[str, Floats]
    majority: dict[str, Floats]
    effects: dict[str, Effect]

    def questions(self, task: str | None = None) -> int:
        """Number of questions of a task, or of all."""
        if task is not None:
            return self.y[task].shape[2]
        return sum(y.shape[2] for y in self.y.values())

    @cached_property
    def means(self) -> dict[str, tuple[float, float]]:
        """Task and average -> the mean outcome of both arms."""
        means = {task: y.mean(axis=(1, 2)) for task, y in self.y.items()}
        sizes = [y.shape[2] for y in self.y.values()]
        means[MACRO] = np.mean(list(means.values()), axis=0)
        means[MICRO] = np.average([means[task] for task in self.y], axis=0, weights=sizes)
        return {name: (float(one), float(other)) for name, (one, other) in means.items()}

    @cached_property
    def over_majority(self) -> Effect:
        """``after`` minus the majority class, macro, where accuracies are compared."""
        return effects({task: y[1] - self.majority[task] for task, y in self.y.items()}, binary=True)[MACRO]


@dataclass(frozen=True)
class Comparison:
    """Of the ``count`` contrasts that were named, those that have runs, or the only one there is; and if no more than
    one was named, every other arm against the first. ``questions`` says which questions of the arms were left out."""

    outcome: str
    arms: tuple[Arm, ...]
    named: tuple[Contrast, ...]
    exploratory: tuple[Contrast, ...]
    count: int
    questions: str = ""

    @property
    def main(self) -> Contrast | None:
        """The one contrast that was named; ``None`` if several were."""
        return self.named[0] if self.named and self.count == 1 else None


def compare(
    paths: Sequence[Path],
    *,
    contrasts: Sequence[tuple[str, str]] = (),
    outcome: str | None = None,
    evaluation: str | None = None,
    tasks: str | None = None,
    allowed: Sequence[str] = (),
) -> Comparison:
    """`compare_arms` for the arms that `load_arms` finds, by default with an experiment's own contrasts and outcome."""
    arms = load_arms(paths, evaluation=evaluation)
    if len(paths) == 1 and (index := read_index(paths[0])):
        outcome = outcome or index.outcome
        if not contrasts:
            return compare_planned(arms, index, outcome=outcome, tasks=tasks, allowed=allowed)
    return compare_arms(arms, contrasts=contrasts, outcome=outcome, tasks=tasks, allowed=allowed)


def compare_planned(
    arms: Sequence[Arm], index: ExperimentIndex, *, outcome: str, tasks: str | None = None, allowed: Sequence[str] = ()
) -> Comparison:
    """`compare_arms` for an experiment's own contrasts; those without runs yet count in their number, too."""
    planned, there = (index.contrast, *index.others), {arm.name for arm in arms}
    contrasts = [pair for pair in planned if there.issuperset(pair)] or planned
    found = compare_arms(arms, contrasts=contrasts, outcome=outcome, tasks=tasks, allowed=allowed)
    return replace(found, count=len(planned), exploratory=found.exploratory if len(planned) < 2 else ())


def compare_arms(
    arms: Sequence[Arm],
    *,
    contrasts: Sequence[tuple[str, str]] = (),
    outcome: str | None = None,
    tasks: str | None = None,
    allowed: Sequence[str] = (),
) -> Comparison:
    """Compares arms on the questions that all of their runs answered.

    Args:
        arms: two or more.
        contrasts: names of two arms each, the second to be held against the first; the default is the only two.
        outcome: the number that is compared; ``None`` for the first of `DEFAULTS` that all have.
        tasks: names separated by commas, of the tasks that are compared; ``None`` for all.
        allowed: fields that may differ; see `refuse_mixed`.
    """
    known = list(dict.fromkeys(task for arm in arms for run in arm.runs.values() for task in run.tasks))
    if names := split_names(tasks or "", group=[task for task in COMMONSENSE if task in known] or [GROUP]):
        if faults := unknown_names(names, known):
            raise UsageError("\n".join(faults))
        arms = [arm.each(lambda run: run.restricted_to(names)) for arm in arms]
    arms = _with_outcome(arms, outcome)
    refuse_mixed(arms, allowed=allowed)
    arms, questions = _on_the_same_questions(arms)
    _note_versions(arms)
    runs = [run for arm in arms for run in arm.runs.values()]
    _refuse_other_prompts(runs, allowed=allowed)
    outcome, unit = _outcome(runs, outcome)
    by_name = {arm.name: arm for arm in arms}
    if unknown := [name for pair in contrasts for name in pair if name not in by_name]:
        raise UsageError(f"contrast: no arm {', '.join(unknown)}; must be two among {', '.join(by_name)}")
    others = [(arms[0].name, arm.name) for arm in arms[1:]]
    pairs = dict.fromkeys(contrasts or (others if len(others) == 1 else ()))
    named, exploratory = (
        tuple(_contrast(by_name[one], by_name[other], outcome, unit) for one, other in chosen)
        for chosen in (pairs, others if len(others) > 1 >= len(pairs) else ())
    )
    return Comparison(outcome, tuple(arms), named, exploratory, len(named), questions)


def _with_outcome(arms: Sequence[Arm], outcome: str | None) -> list[Arm]:
    """The arms with texts alone if the outcome is that of texts, or there is nothing else; otherwise with questions."""
    found = [(task, its) for arm in arms for run in arm.runs.values() for task, its in run.tasks.items()]
    are_texts = {task: "nats_per_byte" in its.outcomes for task, its in found}
    wanted = outcome == "nats_per_byte" or all(are_texts.values())
    if (texts := [task for task, kind in are_texts.items() if kind]) and not wanted:
        note(f"texts are left out: {some(texts)}; --outcome nats_per_byte compares them")
    kept = [task for task, kind in are_texts.items() if kind == wanted] or list(are_texts)
    return [arm.each(lambda run: run.restricted_to(kept)) for arm in arms]


def _on_the_same_questions(arms: Sequence[Arm]) -> tuple[list[Arm], str]:
    """The arms with the questions that all of their runs answered, and a line on the others."""
    runs = [run for arm in arms for run in arm.runs.values()]
    questions, line = in_common(runs)
    if not questions:
        runs.sort(key=lambda run: not run.tasks)  # one without any is asked those of the others
        other = next(n for n in range(1, len(runs)) if not in_common(runs[: n + 1])[0])
        fix = "evaluate both on the same questions"
        if not isinstance(runs[0].settings, Log):
            fix += f": {eval_command(runs[other], runs[0].only(in_common(runs[:other])[0]))}"
        raise UsageError(f"{runs[0].path} and {runs[other].path}: no question in common; {fix}")
    return [arm.each(lambda run: run.only(questions)) for arm in arms], line


def _outcome(runs: Sequence[Answers], chosen: str | None) -> tuple[str, Measure]:
    """The ``chosen`` outcome, or the natural one; all runs have it of all tasks."""
    had = [answers.outcomes for run in runs for answers in run.tasks.values()]
    shared = [name for name in had[0] if all(outcomes.get(name) for outcomes in had)]
    name = chosen or next((name for name in DEFAULTS if name in shared), shared[0] if len(shared) == 1 else "")
    if name not in shared:
        known = f"must be one of {', '.join(shared)}" if shared else "none is known"
        raise UsageError(f"--metric {name or 'NAME'}: {known} for all of these tasks; choose others with --tasks")
    return name, measure(name, np.concatenate([outcomes[name] for outcomes in had]))


def _contrast(before: Arm, after: Arm, outcome: str, unit: Measure) -> Contrast:
    pairs = pair(before, after)
    ones, others = (values(runs, outcome) for runs in zip(*pairs, strict=True))
    gold = {task: answers.gold for task, answers in pairs[0][0].tasks.items()}
    if not (unit.binary and outcome.startswith("acc") and all(gold.values())):
        gold = {}
    frequent = {task: Counter(labels).most_common(1)[0][0] for task, labels in gold.items()}
    return Contrast(
        before=before.name,
        after=after.name,
        unit=unit,
        seeds=len(pairs),
        y={task: np.stack([ones[task], others[task]]) for task in ones},
        majority={task: np.equal(labels, frequent[task]).astype(float) for task, labels in gold.items()},
        effects=effects({task: others[task] - ones[task] for task in ones}, binary=unit.binary),
    )


def refuse_mixed(arms: Sequence[Arm], *, allowed: Sequence[str] = ()) -> None:
    """Refuses runs that were asked differently, or that differ in base, rows or steps, except in ``allowed`` fields:
    one line for each, with both values. Where nothing was cut, its limit did not matter."""
    uncut = not _may_be_cut([run for arm in arms for run in arm.runs.values()])
    faults: dict[str, str] = {}
    seen: dict[str, tuple[str, Path]] = {}
    bases: dict[str, str] = {}  # fingerprint -> as the first run calls it: the same base may lie in several folders
    for run in (run for arm in arms for run in arm.runs.values()):
        data = {f"questions of {task}": str(run.settings.data.get(task))[:8] for task in run.tasks}
        asked, made = {**run.settings.asked, **data}, _made(run)
        fingerprint = run.settings.metadata.get("fingerprint")
        if fingerprint:
            made["base"] = bases.setdefault(fingerprint, made["base"])
        if uncut:
            asked.pop(MAX_LENGTH, None)
        for field, value in {**asked, **made}.items():
            then, where = seen.setdefault(field, (value, run.path))
            if value != then and field not in allowed:
                fix = f"if that is meant, add --allow {field}"
                if field in asked:
                    fix = _how_to_ask_alike(field)
                faults.setdefault(field, f"{field}: {then} in {where}, {value} in {run.path}; {fix}")
    may = [field for field in seen if field not in asked]
    if unknown := [field for field in allowed if field not in may]:
        faults[""] = f"--allow {', '.join(unknown)}: must be one of {', '.join(may)}"
    if faults:
        raise UsageError(capped(list(faults.values())))


def _may_be_cut(runs: Sequence[Answers]) -> bool:
    """Whether a question or a text of these runs was cut, or nobody knows."""
    answers = [its for run in runs for its in run.tasks.values()]
    return any(any(its.cut) or len(its.cut) < len(its.ids) for its in answers)


def _how_to_ask_alike(field: str) -> str:
    if field == MAX_LENGTH:
        return "questions were cut there, so evaluate both with the same --max-length"
    if field.startswith("questions"):
        return "evaluate both in the same way, or choose other --tasks"
    return "evaluate both in the same way"


def _refuse_other_prompts(runs: Sequence[Answers], *, allowed: Sequence[str]) -> None:
    """Refuses logs of the same ids of which a hash says that something else was asked: the first, as other data have
    other prompts."""
    for name, run in itertools.product(HASHES, runs):
        unlike = []
        for task, its in run.tasks.items():
            columns = its.hashes.get(name, ()), runs[0].tasks[task].hashes.get(name, ())
            unlike += [f"{task} {id}" for id, one, other in zip(its.ids, *columns, strict=False) if one != other]
        if unlike and name not in allowed:
            where = f"{len(unlike):,} questions ({some(unlike)}) in {runs[0].path} and {run.path}"
            fix = f"if that is meant, add --allow {name}" if name == PROMPT else "log both with the same data"
            raise UsageError(f"{name}: not the same for {where}; {fix}")


def _note_versions(arms: Sequence[Arm]) -> None:
    """Says which versions, tokenizer and chat template are not those of all runs that have recorded them."""
    runs = [run for arm in arms for run in arm.runs.values()]
    for key in dict.fromkeys(key for run in runs for key in run.settings.made_with):
        places: dict[str, Path] = {}  # value -> the first run that has it
        for run in runs:
            if key in run.settings.made_with:
                places.setdefault(run.settings.made_with[key], run.path)
        if len(places) > 1:
            note(f"{_unlike(key.replace('_', ' '), places)}; scores may differ for that reason")


def _unlike(name: str, places: Mapping[str, Path]) -> str:
    """What differs and where, in words; a hash says nothing to a reader."""
    if all(re.fullmatch("[0-9a-f]{16,}", value) for value in places):
        return f"another {name} in " + some([str(path) for path in places.values()], separator=" than in ", most=2)
    return f"{name} was " + some([f"{value} in {path}" for value, path in places.items()])


def _made(run: Answers) -> dict[str, str]:
    """Field -> value, of base, rows and steps: all rows of the source, and those that a seed has chosen among them."""
    fields = dict(run.settings.model)
    if run.recipe:
        fields |= {f"data.{key}": str(value) for key, value in run.recipe["data"].items() if key != "source"}
        fields["training.global_batch_size"] = str(run.recipe["training"].get("global_batch_size"))
        fields |= {key: str(run.facts.get(key)) for key in ("trained_rows", "steps")}
        fields[f"rows.{run.seed}"] = str(run.facts.get("data", {}).get("sha256"))[:8]
        if run.source_hash:
            fields["rows"] = run.source_hash[:8]
    return fields
