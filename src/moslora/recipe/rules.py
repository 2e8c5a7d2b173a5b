"""Combinations of fields that cannot work, each a rule with its reason."""

from collections.abc import Iterator
from dataclasses import dataclass

from moslora.tasks import COMMONSENSE

from .sections import AdapterSection, DataSection, EvaluationSection, TrackingSection, TrainingSection

PROTOCOLS = {
    "label": ("rank", "generate"),
    "llm-adapters": ("rank", "generate"),
    "cloze": ("cloze",),
    "cloze-passage": ("cloze",),
}
"""Data format -> the protocols that can read its answers: a label is ranked or generated, text is scored."""


@dataclass(frozen=True)
class Conflict:
    """Fields that do not go together.

    Attributes:
        paths: dotted key paths of all fields involved, the one to mend by preference first.
        message: what is wrong; the mend.
    """

    paths: tuple[str, ...]
    message: str


def conflicts(
    *,
    adapter: AdapterSection,
    data: DataSection,
    training: TrainingSection,
    evaluation: EvaluationSection,
    tracking: TrackingSection,
) -> Iterator[Conflict]:
    """All combinations that cannot work."""
    yield from _adapter(adapter)
    yield from _data(data)
    yield from _training(training)
    yield from _evaluation(evaluation, data)
    yield from _tracking(tracking)


def _adapter(adapter: AdapterSection) -> Iterator[Conflict]:
    mixer, rank, rank_out = adapter.mixer, adapter.rank, adapter.rank_out
    rectangular = rank_out is not None and rank_out != rank
    square = mixer.train == "folded" if mixer.kind == "dense" else True
    if square and rectangular:
        field, what = ("train", "folded") if mixer.kind == "dense" else ("kind", mixer.kind)
        yield Conflict(
            ("adapter.rank_out", "adapter.rank", f"adapter.mixer.{field}"),
            f"a mixer that is {what} is square; leave rank_out out, or make it equal to rank = {rank}",
        )
    if mixer.kind == "butterfly" and rank % mixer.blocks:
        yield Conflict(
            ("adapter.mixer.blocks", "adapter.rank"),
            f"rank = {rank} does not divide into {mixer.blocks} equal blocks; choose a divisor of the rank",
        )
    if mixer.kind == "dense" and mixer.init == "zeros" and mixer.train != "learned":
        # Frozen, B·0·A stays zero and passes no gradient to A and B. Folded, A would start at zero beside a
        # drawn B: LoRA with its factors exchanged, which is no control for any mixer.
        yield Conflict(
            ("adapter.mixer.init", "adapter.mixer.train"),
            f"a mixer of zeros that is {mixer.train} passes nothing on; take another init, or train: learned",
        )


def _data(data: DataSection) -> Iterator[Conflict]:
    if isinstance(data.rows, dict):
        for task in (task for task in data.rows if task not in data.tasks):
            yield Conflict(
                (f"data.rows.{task}", "data.tasks"),
                f"{task} is not trained on; data.tasks has {', '.join(data.tasks)}",
            )
    if data.source == "commonsense_170k":
        if set(data.tasks) != set(COMMONSENSE):
            yield Conflict(
                ("data.tasks", "data.source"),
                "commonsense_170k is the mix of all eight tasks; set tasks: commonsense, or source: hub",
            )
        if data.rows is not None:
            yield Conflict(
                ("data.rows", "data.source"),
                "a cap is per task, and the rows of commonsense_170k do not name theirs; "
                "leave rows out and shorten the run by epochs or max_steps, or set source: hub",
            )
        if data.format not in ("label", "llm-adapters"):
            yield Conflict(
                ("data.format", "data.source"),
                "the rows of commonsense_170k are instructions answered by a label; "
                "set format: label or llm-adapters, or source: hub",
            )


def _training(training: TrainingSection) -> Iterator[Conflict]:
    if training.epochs is None and training.max_steps is None:
        yield Conflict(("training.epochs", "training.max_steps"), "the run would never end; give epochs or max_steps")


def _evaluation(evaluation: EvaluationSection, data: DataSection) -> Iterator[Conflict]:
    protocols = PROTOCOLS[data.format]
    if evaluation.protocol not in protocols:
        yield Conflict(
            ("evaluation.protocol", "data.format"),
            f"protocol {evaluation.protocol} cannot read the answers of format {data.format}; "
            f"set evaluation.protocol: {' or '.join(protocols)}, or another data.format",
        )
    if evaluation.beams > 1 and evaluation.protocol != "generate":
        yield Conflict(
            ("evaluation.beams", "evaluation.protocol"),
            f"protocol {evaluation.protocol} generates nothing; leave beams at 1, or set protocol: generate",
        )


def _tracking(tracking: TrackingSection) -> Iterator[Conflict]:
    if tracking.wandb_mode is not None and tracking.wandb_project is None:
        yield Conflict(
            ("tracking.wandb_mode", "tracking.wandb_project"),
            "wandb needs a project; set tracking.wandb_project",
        )
