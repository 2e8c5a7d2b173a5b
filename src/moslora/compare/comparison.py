"""Arms against each other, if they can be compared: contrasts named beforehand, everything else exploratory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moslora.compare.arms import SEEDS, Arm, all_runs, load_arms, pairs, unpaired_runs
from moslora.compare.comparable import note_what_differs, refuse_mixed, refuse_other_prompts
from moslora.compare.compared_run import ComparedRun, evaluations_of
from moslora.compare.contrast import Contrast, contrast_of
from moslora.compare.gains import shared_base
from moslora.compare.index import ExperimentIndex, read_index
from moslora.compare.margin import Margin, read_margin
from moslora.console import note
from moslora.errors import UsageError, counted, some
from moslora.runs.evaluation import questions_in_common
from moslora.runs.outcomes import DEFAULTS, OUTCOMES, Outcome, measure
from moslora.tasks import COMMONSENSE, GROUP, split_names, unknown_names

OF_TEXTS = "nats_per_byte"
"""The outcome of texts."""


@dataclass(frozen=True)
class Comparison:
    """Contrasts of arms, on the questions that all of their runs answered.

    Attributes:
        arms: of the contrasts, and others.
        named: those of the contrasts named beforehand that have runs, or the only contrast there is.
        exploratory: if no more than one was named, every other arm against the first.
        count: contrasts that were named, with runs or without.
        left_out: lines that say which questions and runs were left out.
        own_margin: the largest difference that does not matter, if one was named; ``None`` for the outcome's.
        least_shared: of all runs and tasks, the smallest share of the answered questions that all runs answered.
    """

    arms: tuple[Arm, ...]
    named: tuple[Contrast, ...]
    exploratory: tuple[Contrast, ...]
    count: int
    left_out: tuple[str, ...] = ()
    own_margin: Margin | None = None
    least_shared: float = 1.0

    @property
    def main(self) -> Contrast | None:
        """The one contrast that was named; ``None`` if several were."""
        return self.named[0] if self.named and self.count == 1 else None

    @property
    def outcome(self) -> Outcome:
        """What is compared."""
        return (self.named or self.exploratory)[0].outcome

    @property
    def margin(self) -> Margin:
        """The largest difference that does not matter."""
        return self.own_margin or Margin(self.outcome.margin)

    def within(self, margin: Margin | None) -> "Comparison":
        """The same with this margin; with its own for ``None``.

        Raises:
            UsageError: the margin is a share of the gain over a base whose answers are not there.
        """
        margin = margin or self.own_margin
        if margin and margin.of_gain and not all(contrast.base for contrast in self.named):
            raise UsageError(
                f"--margin {margin}: a share of the gain over the base, whose {self.outcome.name} is not there for"
                " these questions; evaluate it (moslora eval RUN --base), or give a number"
            )
        return replace(self, own_margin=margin)

    def refuse_few(self, *, questions: int, share: float) -> None:
        """Refuses fewer ``questions`` than these, and runs that answered less than this ``share`` of each other's.

        Raises:
            UsageError: there are fewer, with what was left out.
        """
        there = min(contrast.questions() for contrast in (*self.named, *self.exploratory))
        if there < questions:
            raise UsageError(f"compared on {counted(there, 'question')}, and --min-questions requires {questions:,}")
        if self.least_shared < share:
            raise UsageError(
                f"{some(self.left_out)}; only {100 * self.least_shared:.1f} % of one side's questions have answers on"
                f" all sides, and {100 * share:g} % are required; complete them, or set --min-share"
            )

    def with_direction(self, direction: int) -> "Comparison":
        """The same, where more is better (1) or less is (-1), of an outcome that does not say.

        Raises:
            UsageError: it says.
        """
        if self.outcome.direction:
            raise UsageError(f"--better: which {self.outcome.name} is better is known; leave it out")
        outcome = replace(self.outcome, direction=direction)
        named, exploratory = (
            tuple(replace(contrast, outcome=outcome) for contrast in contrasts)
            for contrasts in (self.named, self.exploratory)
        )
        return replace(self, named=named, exploratory=exploratory)


def compare_paths(
    paths: Sequence[Path],
    *,
    contrasts: Sequence[tuple[str, str]] = (),
    outcome: str | None = None,
    evaluation: str | None = None,
    tasks: str | None = None,
    allowed: Sequence[str] = (),
    cluster: str | None = None,
) -> Comparison:
    """`compare_arms` for the arms that `load_arms` finds, by default with an experiment's own contrasts and outcome."""
    arms = load_arms(paths, evaluation=evaluation, cluster=cluster)
    index = read_index(paths[0]) if len(paths) == 1 else None
    if index is not None:
        outcome = outcome or index.outcome
        if not contrasts:
            return compare_planned(arms, index, outcome=outcome, tasks=tasks, allowed=allowed)
    return compare_arms(arms, contrasts=contrasts, outcome=outcome, tasks=tasks, allowed=allowed)


def compare_planned(
    arms: Sequence[Arm], index: ExperimentIndex, *, outcome: str, tasks: str | None = None, allowed: Sequence[str] = ()
) -> Comparison:
    """`compare_arms` for an experiment's own contrasts; those without runs yet count in their number, too."""
    planned = index.named
    by_name = {arm.name: arm for arm in arms}
    there = [pair for pair in planned if by_name.keys() >= {*pair}]
    with_runs = [pair for pair in there if SEEDS in allowed or pairs(*(by_name[name] for name in pair))]
    comparison = compare_arms(arms, contrasts=with_runs or planned, outcome=outcome, tasks=tasks, allowed=allowed)
    margin = read_margin(index.margin) if index.margin else None
    # A number is one of its own outcome, a share of any that a base has.
    if margin and outcome != index.outcome and (OUTCOMES[outcome].of_runs or not margin.of_gain):
        margin = None
    exploratory = comparison.exploratory if len(planned) == 1 else ()
    return replace(comparison, count=len(planned), own_margin=margin, exploratory=exploratory)


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
        allowed: fields that may differ; see `refuse_mixed`. With `SEEDS` among them, runs are not paired by seed.
    """
    own_seeds = SEEDS in allowed
    arms = _restricted(arms, tasks, outcome)
    refuse_mixed(arms, allowed=allowed)
    runs = all_runs(arms)
    shared, left_out = questions_in_common(evaluations_of(runs))
    if not (shared or _is_of_runs(outcome)):
        asked = {run.path: next((ids for answers in run.tasks.values() for ids in answers.ids), "none") for run in runs}
        paths = some((f"{path} (such as {id})" for path, id in asked.items()), separator=" and ")
        fix = "evaluate them on the same questions (--tasks, --limit, evaluation.skip), and write their ids alike"
        raise UsageError(f"{paths}: no question in common; {fix}")
    shares = [
        len(shared.get(task, ())) / len(answers.ids)
        for run in runs
        for task, answers in run.tasks.items()
        if answers.ids
    ]
    arms = [arm.each(lambda run: run.only(shared)) for arm in arms]
    runs = all_runs(arms)
    note_what_differs(arms)
    refuse_other_prompts(runs, allowed=allowed)
    compared = OUTCOMES[outcome] if outcome and _is_of_runs(outcome) else _outcome(runs, outcome)
    by_name = {arm.name: arm for arm in arms}
    unknown = set().union(*contrasts) - by_name.keys()
    if unknown:
        raise UsageError(f"contrast: no arm {', '.join(sorted(unknown))}; must be two among {', '.join(by_name)}")
    trained = [arm for arm in arms if arm.trained]
    base = None
    if len(trained) > 1:  # one alone is held against its base itself
        base = shared_base(evaluations_of(all_runs(trained)))

    def made(names: Sequence[tuple[str, str]]) -> tuple[Contrast, ...]:
        both = [(by_name[one], by_name[other]) for one, other in names]
        return tuple(contrast_of(*pair, outcome=compared, base=base, own_seeds=own_seeds) for pair in both)

    against_first = [(arms[0].name, arm.name) for arm in arms[1:]]
    named = list(dict.fromkeys(contrasts))
    exploratory = []
    if not named and len(against_first) == 1:
        named = against_first
    elif len(named) <= 1 and len(against_first) > 1:
        in_pairs = [(one, other) for one, other in against_first if own_seeds or pairs(by_name[one], by_name[other])]
        exploratory = in_pairs or against_first
    lines = [left_out] if left_out else []
    for one, other in [*named, *exploratory] if not own_seeds else ():
        alone = unpaired_runs(by_name[one], by_name[other])
        if alone:
            lines.append(f"{one} and {other}: left out without a run of the same seed: {some(alone, most=8)}")
    least_shared = min(shares, default=1.0)
    return Comparison(tuple(arms), made(named), made(exploratory), len(named), tuple(lines), least_shared=least_shared)


def _restricted(arms: Sequence[Arm], tasks: str | None, outcome: str | None) -> list[Arm]:
    """The arms with these tasks alone, names separated by commas, or with all: with texts if the outcome is one of
    texts, or there is nothing else; otherwise with questions. For an outcome of runs, which each must have, they are
    without answers."""
    tables = {task: answers for run in all_runs(arms) for task, answers in run.tasks.items()}
    group = [task for task in COMMONSENSE if task in tables]
    names = split_names(tasks or "", group=group or [GROUP]) or list(tables)
    faults = unknown_names(names, list(tables))
    if faults:
        raise UsageError("\n".join(faults))
    if _is_of_runs(outcome):
        return [arm.each(_with_loss_alone) for arm in arms]
    texts = [name for name in names if OF_TEXTS in tables[name].outcomes]
    kept = [name for name in names if name not in texts]
    if not kept or (texts and outcome == OF_TEXTS):
        kept = texts
    elif texts:
        note(f"texts are left out: {some(texts)}; --outcome {OF_TEXTS} compares them")
    return [arm.each(lambda run: run.restricted_to(kept)) for arm in arms]


def _is_of_runs(outcome: str | None) -> bool:
    """Whether a run has one such number, and questions have none."""
    known = OUTCOMES.get(outcome or "")
    return known is not None and known.of_runs


def _with_loss_alone(run: ComparedRun) -> ComparedRun:
    """The run without its answers, which must have a validation loss."""
    if run.validation_loss is None:
        raise UsageError(
            f"{run.path}: no validation_loss, which only a trained run with data.validation_rows has, in its"
            " metrics.jsonl"
        )
    return run.only({})


def _outcome(runs: Sequence[ComparedRun], chosen: str | None) -> Outcome:
    """The ``chosen`` outcome, or the first of `DEFAULTS` that all runs have of all tasks, or the only one they have."""
    tables = [answers for run in runs for answers in run.tasks.values()]
    shared = [name for name in tables[0].outcomes if all(table.outcomes.get(name) for table in tables)]
    usual = shared if len(shared) == 1 else [name for name in DEFAULTS if name in shared]
    name = chosen or next(iter(usual), "NAME")
    if name not in shared:
        known = f"must be one of {', '.join(shared)}" if shared else "none is known"
        raise UsageError(f"--outcome {name}: {known} for all of these tasks; choose others with --tasks")
    return measure(name, {value for table in tables for value in table.outcomes[name]})
