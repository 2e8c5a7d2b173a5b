"""Combinations of fields that cannot work, each a rule with its reason."""

from collections.abc import Iterator
from dataclasses import dataclass

from moslora.tasks import COMMONSENSE

from .sections import (
    AdapterSection,
    DataSection,
    EvaluationSection,
    ModelSection,
    TrackingSection,
    TrainingSection,
)

PROTOCOLS = {
    "label": ("rank", "generate"),
    "llm-adapters": ("rank", "generate"),
    "cloze": ("cloze",),
    "cloze-passage": ("cloze",),
}
"""Data format -> the protocols that can read its answers: a label is ranked or generated, text is scored."""


GATES = ("token-gate", "gate-inside", "task-gate")
"""Mixers that are no one matrix."""

INVERTIBLE = ("identity", "hadamard", "kronecker", "dense")
"""Mixers that start with an inverse."""

WELL_CONDITIONED = ("orthogonal", "identity")
"""Starts of a dense mixer whose inverse is no larger than itself."""


@dataclass(frozen=True)
class Conflict:
    """Fields that do not go together.

    Attributes:
        paths: dotted key paths of all fields involved, the one to mend by preference first.
        message: what is wrong; the mend.
        beginning: nothing fails, but no training should begin so. What was trained before there was the rule is still
            opened, whose recipe nobody can mend: it is under its hash.
    """

    paths: tuple[str, ...]
    message: str
    beginning: bool = False


def conflicts(
    *,
    model: ModelSection,
    adapter: AdapterSection,
    data: DataSection,
    training: TrainingSection,
    evaluation: EvaluationSection,
    tracking: TrackingSection,
) -> Iterator[Conflict]:
    """All combinations that cannot work."""
    yield from _model(model)
    yield from _mixer(adapter)
    yield from _composition(adapter)
    yield from _budget(adapter, training)
    yield from _data(data)
    yield from _tasks(adapter, data)
    yield from _training(training)
    yield from _evaluation(evaluation, data)
    yield from _tracking(tracking)


def _model(model: ModelSection) -> Iterator[Conflict]:
    if model.quantization != "nf4":
        for field in ("double_quantization", "quantization_storage"):
            if getattr(model, field) != ModelSection.model_fields[field].default:
                yield Conflict(
                    (f"model.{field}", "model.quantization"),
                    f"is an option of nf4; leave {field} out, or set model.quantization: nf4",
                )


def _mixer(adapter: AdapterSection) -> Iterator[Conflict]:
    mixer, rank, rank_out = adapter.mixer, adapter.rank, adapter.rank_out
    rectangular = rank_out is not None and rank_out != rank
    square = mixer.train == "folded" if mixer.kind == "dense" else True
    if square and rectangular:
        field, what = ("train", "folded") if mixer.kind == "dense" else ("kind", mixer.kind)
        yield Conflict(
            ("adapter.rank_out", "adapter.rank", f"adapter.mixer.{field}"),
            f"a mixer that is {what} is square; leave rank_out out, or make it equal to rank = {rank}",
        )
    for field in ("blocks", "experts"):
        if rank % (count := getattr(mixer, field, 1)):
            yield Conflict(
                (f"adapter.mixer.{field}", "adapter.rank"),
                f"rank = {rank} does not divide into {count} equal {field}; choose a divisor of the rank",
            )
    if mixer.kind == "hadamard" and mixer.blocks & (mixer.blocks - 1):
        yield Conflict(
            ("adapter.mixer.blocks",), f"a Hadamard matrix of {mixer.blocks} is not built here; take a power of two"
        )
    if mixer.kind == "token-gate" and mixer.top_k is not None and not 2 <= mixer.top_k < mixer.experts:
        yield Conflict(
            ("adapter.mixer.top_k", "adapter.mixer.experts"),
            # One expert's weight, scaled to sum to one, is 1 whatever the router says.
            f"no router learns to choose {mixer.top_k} of {mixer.experts} experts; take two or more, or null for all",
        )
    if mixer.kind == "dense" and mixer.init == "zeros" and mixer.train != "learned":
        # Frozen, B·0·A stays zero and passes no gradient to A and B. Folded, A would start at zero beside a
        # drawn B: LoRA with its factors exchanged, which is no control for any mixer.
        yield Conflict(
            ("adapter.mixer.init", "adapter.mixer.train"),
            f"a mixer of zeros that is {mixer.train} passes nothing on; take another init, or train: learned",
        )


def _composition(adapter: AdapterSection) -> Iterator[Conflict]:
    mixer = adapter.mixer
    if adapter.dora and mixer.kind in GATES:
        yield Conflict(
            ("adapter.dora", "adapter.mixer.kind"),
            f"DoRA normalises by one ΔW, and {mixer.kind} has another for every token or task; set dora: false",
        )
    if adapter.start == "pissa":
        if mixer.kind not in INVERTIBLE or adapter.rank_out not in (None, adapter.rank):
            yield Conflict(
                ("adapter.start", "adapter.mixer.kind"),
                "a PiSSA start divides by M, which must be square and have an inverse; "
                f"take one of {', '.join(INVERTIBLE)}, or start: lora",
            )
        elif mixer.kind == "dense" and mixer.init not in WELL_CONDITIONED:
            # A random matrix has small singular values, so that its inverse is large and B · M · A a difference of
            # large numbers: in bfloat16 no longer the part that has left the base.
            yield Conflict(
                ("adapter.start", "adapter.mixer.init"),
                f"a PiSSA start divides by M, and one from {mixer.init} has no inverse or one that rounding would "
                f"spoil; set adapter.mixer.init: {' or '.join(WELL_CONDITIONED)}, or start: lora",
                beginning=True,
            )


def _budget(adapter: AdapterSection, training: TrainingSection) -> Iterator[Conflict]:
    budget = training.rank_budget
    if budget is None:
        return
    if adapter.mixer.kind != "diagonal":
        yield Conflict(
            ("training.rank_budget", "adapter.mixer.kind"),
            f"a budget drops entries of a diagonal mixer, and this one is {adapter.mixer.kind}; set it to null",
        )
    elif budget.target_rank > adapter.rank:
        yield Conflict(
            ("training.rank_budget.target_rank", "adapter.rank"),
            f"more than the rank at the start, {adapter.rank}; take that or less",
        )
    if budget.warmup_share + budget.final_share >= 1:
        yield Conflict(
            ("training.rank_budget.final_share", "training.rank_budget.warmup_share"),
            "warm-up and final phase fill the whole run; together they must be less than 1",
        )


def _data(data: DataSection) -> Iterator[Conflict]:
    if isinstance(data.rows, dict):
        # One of a task that is not trained on has no effect: the caps of a recipe stay where data.tasks is narrowed.
        for task in (task for task in data.rows if task not in COMMONSENSE):
            yield Conflict((f"data.rows.{task}",), f"no such task; there are {', '.join(COMMONSENSE)}")
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


def _tasks(adapter: AdapterSection, data: DataSection) -> Iterator[Conflict]:
    if adapter.mixer.kind == "task-gate" and data.source == "commonsense_170k":
        # Half of the sets share a template, so that their rows would all train the embedding for rows of no set.
        yield Conflict(
            ("data.source", "adapter.mixer.kind"),
            "a task gate learns an embedding for each task, and the rows of commonsense_170k do not name theirs "
            "(those of siqa, arc_easy, arc_challenge and obqa look alike); set data.source: hub",
            beginning=True,
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
