"""Combinations of fields that cannot work, each a rule with its reason."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

from moslora.tasks import COMMONSENSE
from moslora.tasks.names import GROUP, unknown_names

from .sections import AdapterSection, DataSection, EvaluationSection, ModelSection, TrackingSection, TrainingSection

PROTOCOLS = {
    "label": ("rank", "generate"),
    "llm-adapters": ("rank", "generate"),
    "cloze": ("cloze",),
    "cloze-passage": ("cloze",),
    "chat": ("rank", "generate"),
}
"""Data format -> the protocols that can read its answers: a label is ranked or generated, text is scored."""

GATES = ("token-gate", "gate-inside", "task-gate")
"""Mixers that are not one matrix."""

INVERTIBLE = ("identity", "hadamard", "kronecker", "dense")
"""Mixers that are invertible at the start."""

WELL_CONDITIONED = ("orthogonal", "identity")
"""Starts of a dense mixer whose inverse is no larger than the mixer."""

AT_ZERO = ("zeros", "near-zero")
"""Starts of a dense mixer from which ΔW is zero, or as good as zero, whatever B is."""


class Conflict(NamedTuple):
    """Fields that do not go together."""

    paths: tuple[str, ...]
    """Dotted keys of all fields involved; the first is the best one to change."""

    message: str
    """What is wrong; how to fix it."""


def conflicts(
    model: ModelSection,
    adapter: AdapterSection,
    data: DataSection,
    training: TrainingSection,
    evaluation: EvaluationSection,
    tracking: TrackingSection,
    own: Collection[str],
) -> Iterator[Conflict]:
    """All combinations of a recipe's sections that cannot work; ``own`` are the names of its own tasks."""
    yield from _model(model, training)
    yield from _mixer(adapter)
    yield from _composition(adapter)
    yield from _training(training, adapter)
    yield from _tasks(data, evaluation, own)
    yield from _data(data, adapter)
    protocols = PROTOCOLS[data.format]
    if evaluation.protocol not in protocols:
        yield Conflict(
            ("evaluation.protocol", "data.format"),
            f"protocol {evaluation.protocol} cannot read the answers of format {data.format}; "
            f"set evaluation.protocol: {' or '.join(protocols)}, or change data.format",
        )
    if evaluation.beams > 1 and evaluation.protocol != "generate":
        yield Conflict(
            ("evaluation.beams", "evaluation.protocol"),
            f"protocol {evaluation.protocol} generates nothing; set beams: 1, or protocol: generate",
        )
    if tracking.wandb_mode is not None and tracking.wandb_project is None:
        yield Conflict(("tracking.wandb_mode", "tracking.wandb_project"), "wandb_mode needs wandb_project; set both")


def _model(model: ModelSection, training: TrainingSection) -> Iterator[Conflict]:
    if training.strategy == "fsdp" and model.quantization == "int8":
        yield Conflict(
            ("training.strategy", "model.quantization"),
            "bitsandbytes' int8 layers lose their scales when they are sharded; set model.quantization: nf4 or null, or"
            " training.strategy: ddp",
        )
    if model.quantization != "nf4" and not model.double_quantization:
        yield Conflict(
            ("model.double_quantization", "model.quantization"),
            "double_quantization is an option of nf4; remove it, or set model.quantization: nf4",
        )


def _mixer(adapter: AdapterSection) -> Iterator[Conflict]:
    mixer, rank = adapter.mixer, adapter.rank
    if adapter.rank_out not in (None, rank) and (mixer.kind != "dense" or mixer.train == "folded"):
        field, what = ("train", "folded") if mixer.kind == "dense" else ("kind", mixer.kind)
        yield Conflict(
            ("adapter.rank_out", "adapter.rank", f"adapter.mixer.{field}"),
            f"{what} mixers are square; remove rank_out, or set it to rank = {rank}",
        )
    for field in ("blocks", "experts"):
        if rank % (count := getattr(mixer, field, 1)):
            yield Conflict(
                (f"adapter.mixer.{field}", "adapter.rank"), f"rank = {rank} is not divisible by {field} = {count}"
            )
    if mixer.kind == "token-gate" and mixer.top_k is not None and not 2 <= mixer.top_k < mixer.experts:
        # With top_k = 1 the renormalised weight is always 1, and the router gets no gradient.
        yield Conflict(
            ("adapter.mixer.top_k", "adapter.mixer.experts"),
            f"top_k must be at least 2 and less than experts = {mixer.experts}, or null for all experts",
        )
    if mixer.kind == "dense" and mixer.init in AT_ZERO and mixer.train != "learned":
        # Frozen, B·0·A stays zero, and A and B get no gradient. Folded, A would start at zero and B at random: LoRA
        # with its factors exchanged, which is not a control for any mixer.
        yield Conflict(
            ("adapter.mixer.init", "adapter.mixer.train"),
            f"a {mixer.train} mixer of zeros learns nothing; set another init, or train: learned",
        )


def _composition(adapter: AdapterSection) -> Iterator[Conflict]:
    mixer = adapter.mixer
    if adapter.dora and mixer.kind in GATES:
        yield Conflict(
            ("adapter.dora", "adapter.mixer.kind"),
            f"DoRA needs one ΔW, and {mixer.kind} has one per token or task; set dora: false",
        )
    m_at_zero = mixer.kind == "dense" and mixer.init in AT_ZERO
    if adapter.trains == "b" and (m_at_zero or mixer.kind in ("diagonal", *GATES)):
        # M would keep its start: zero, or a gate that never learned anything.
        yield Conflict(
            ("adapter.trains", "adapter.mixer.kind", "adapter.mixer.init"),
            "with B alone M keeps its start, which here is zero or a random gate; set adapter.mixer.kind: identity,"
            " or trains: all",
        )
    if adapter.trains == "mixer" and adapter.start == "pissa":
        yield Conflict(
            ("adapter.start", "adapter.trains"),
            "PiSSA takes its part out of the base for A and B to train it; with M alone set start: svd, or trains: all",
        )
        return
    for field, value, usual in (("trains", "mixer", "all"), ("start", "svd", "lora")):
        if getattr(adapter, field) == value and not m_at_zero:
            yield Conflict(
                (f"adapter.{field}", "adapter.mixer.kind", "adapter.mixer.init"),
                "B is then not zero, so M has to start at zero or near it; set adapter.mixer to"
                f" {{kind: dense, init: near-zero}}, as in methods/lora-xs, or {field}: {usual}",
            )
    if adapter.start != "pissa":
        return
    if mixer.kind not in INVERTIBLE or adapter.rank_out not in (None, adapter.rank):
        yield Conflict(
            ("adapter.start", "adapter.mixer.kind"),
            "a PiSSA start needs a square, invertible M; "
            f"set the mixer's kind to one of {', '.join(INVERTIBLE)}, or start: lora",
        )
    elif mixer.kind == "dense" and mixer.init not in WELL_CONDITIONED:
        # A random matrix has small singular values: its inverse is large, and B · M · A a difference of large numbers,
        # which in bfloat16 is no longer the part removed from the base.
        yield Conflict(
            ("adapter.start", "adapter.mixer.init"),
            f"a PiSSA start inverts M, and M from {mixer.init} is badly conditioned; "
            f"set adapter.mixer.init: {' or '.join(WELL_CONDITIONED)}, or start: lora",
        )


def _training(training: TrainingSection, adapter: AdapterSection) -> Iterator[Conflict]:
    if training.epochs is None and training.max_steps is None:
        yield Conflict(("training.epochs", "training.max_steps"), "the run would never end; set epochs or max_steps")
    if training.lora_plus_ratio != 1 and adapter.trains != "all":
        yield Conflict(
            ("training.lora_plus_ratio", "adapter.trains"),
            f"a ratio of the rates of B and A, and with trains: {adapter.trains} A does not learn; set it to 1",
        )
    if (budget := training.rank_budget) is None:
        return
    if adapter.mixer.kind != "diagonal":
        yield Conflict(
            ("training.rank_budget", "adapter.mixer.kind"),
            f"rank_budget needs a diagonal mixer, not {adapter.mixer.kind}; set rank_budget: null",
        )
    elif budget.target_rank > adapter.rank:
        yield Conflict(
            ("training.rank_budget.target_rank", "adapter.rank"),
            f"target_rank must be at most adapter.rank = {adapter.rank}",
        )


def _tasks(data: DataSection, evaluation: EvaluationSection, own: Collection[str]) -> Iterator[Conflict]:
    known = (*COMMONSENSE, *own)
    for path, names in (("data.tasks", data.tasks), ("evaluation.tasks", evaluation.tasks or ())):
        if faults := unknown_names(names, (*known, GROUP)):
            yield Conflict((path,), "; ".join(faults))
    # A limit for a task that is not in data.tasks has no effect, so that data.tasks can be narrowed by itself.
    for task in data.rows if isinstance(data.rows, dict) else ():
        if task not in known:
            yield Conflict((f"data.rows.{task}",), f"unknown task; must be one of {', '.join(known)}")


def _data(data: DataSection, adapter: AdapterSection) -> Iterator[Conflict]:
    if data.source != "commonsense_170k":
        return
    gated = adapter.mixer.kind == "task-gate"  # half of the sets share a template, so their rows would have no task
    for paths, wrong, text in (
        (("data.tasks",), set(data.tasks) != set(COMMONSENSE), "mixes all eight tasks; set tasks: commonsense"),
        (("data.rows",), data.rows is not None, "does not name the tasks that rows would limit; set rows: null"),
        (
            ("data.format",),
            data.format not in ("label", "llm-adapters"),
            "has only labels as answers; set format: label",
        ),
        (
            ("data.source", "adapter.mixer.kind"),
            gated,
            "does not name the tasks that a task gate needs; set another mixer",
        ),
    ):
        if wrong:
            yield Conflict((*paths, "data.source"), f"commonsense_170k {text}, or data.source: hub")
