"""Combinations of fields that cannot work, each a rule with its reason."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from moslora.tasks import COMMONSENSE

from .sections import AdapterSection, DataSection, ModelSection, TrainingSection

if TYPE_CHECKING:
    from .recipe import Recipe

PROTOCOLS = {
    "label": ("rank", "generate"),
    "llm-adapters": ("rank", "generate"),
    "cloze": ("cloze",),
    "cloze-passage": ("cloze",),
}
"""Data format -> the protocols that can read its answers: a label is ranked or generated, text is scored."""

GATES = ("token-gate", "gate-inside", "task-gate")
"""Mixers that are not one matrix."""

INVERTIBLE = ("identity", "hadamard", "kronecker", "dense")
"""Mixers that start with an inverse."""

WELL_CONDITIONED = ("orthogonal", "identity")
"""Starts of a dense mixer whose inverse is no larger than itself."""


class Conflict(NamedTuple):
    """Fields that do not go together."""

    paths: tuple[str, ...]
    """Dotted keys of all fields involved, first the one that is best changed."""

    message: str
    """What is wrong; how to fix it."""

    beginning: bool = False
    """Nothing fails, but no training should begin so. An adapter trained before there was the rule still opens."""


def conflicts(recipe: "Recipe") -> Iterator[Conflict]:
    """All combinations that cannot work."""
    yield from _model(recipe.model)
    yield from _mixer(recipe.adapter)
    yield from _composition(recipe.adapter)
    yield from _training(recipe.training, recipe.adapter)
    yield from _data(recipe.data, recipe.adapter)
    evaluation, protocols = recipe.evaluation, PROTOCOLS[recipe.data.format]
    if evaluation.protocol not in protocols:
        yield Conflict(
            ("evaluation.protocol", "data.format"),
            f"protocol {evaluation.protocol} cannot read the answers of format {recipe.data.format}; "
            f"set evaluation.protocol: {' or '.join(protocols)}, or change data.format",
        )
    if evaluation.beams > 1 and evaluation.protocol != "generate":
        yield Conflict(
            ("evaluation.beams", "evaluation.protocol"),
            f"protocol {evaluation.protocol} generates nothing; set beams: 1, or protocol: generate",
        )
    if recipe.tracking.wandb_mode is not None and recipe.tracking.wandb_project is None:
        yield Conflict(("tracking.wandb_mode", "tracking.wandb_project"), "needs a project; set tracking.wandb_project")


def _model(model: ModelSection) -> Iterator[Conflict]:
    for field in ("double_quantization", "quantization_storage"):
        if model.quantization != "nf4" and getattr(model, field) != ModelSection.model_fields[field].default:
            yield Conflict(
                (f"model.{field}", "model.quantization"),
                f"is an option of nf4; leave {field} out, or set model.quantization: nf4",
            )


def _mixer(adapter: AdapterSection) -> Iterator[Conflict]:
    mixer, rank = adapter.mixer, adapter.rank
    if adapter.rank_out not in (None, rank) and (mixer.kind != "dense" or mixer.train == "folded"):
        field, what = ("train", "folded") if mixer.kind == "dense" else ("kind", mixer.kind)
        yield Conflict(
            ("adapter.rank_out", "adapter.rank", f"adapter.mixer.{field}"),
            f"a mixer that is {what} is square; leave rank_out out, or set it to rank = {rank}",
        )
    for field in ("blocks", "experts"):
        if rank % (count := getattr(mixer, field, 1)):
            yield Conflict(
                (f"adapter.mixer.{field}", "adapter.rank"),
                f"rank = {rank} does not split into {count} equal {field}; choose a divisor of the rank",
            )
    if mixer.kind == "hadamard" and mixer.blocks & (mixer.blocks - 1):
        yield Conflict(("adapter.mixer.blocks",), "a Hadamard mixer needs a power of two; choose 2, 4, 8, …")
    if mixer.kind == "token-gate" and mixer.top_k is not None and not 2 <= mixer.top_k < mixer.experts:
        # One expert's weight, scaled to sum to one, is 1 whatever the router says.
        yield Conflict(
            ("adapter.mixer.top_k", "adapter.mixer.experts"),
            f"must be at least 2 and less than experts = {mixer.experts}; set it so, or to null for all experts",
        )
    if mixer.kind == "dense" and mixer.init == "zeros" and mixer.train != "learned":
        # Frozen, B·0·A stays zero and passes no gradient to A and B. Folded, A would start at zero beside a
        # drawn B: LoRA with its factors exchanged, which is no control for any mixer.
        yield Conflict(
            ("adapter.mixer.init", "adapter.mixer.train"),
            f"a mixer of zeros that is {mixer.train} learns nothing; set another init, or train: learned",
        )


def _composition(adapter: AdapterSection) -> Iterator[Conflict]:
    mixer = adapter.mixer
    if adapter.dora and mixer.kind in GATES:
        yield Conflict(
            ("adapter.dora", "adapter.mixer.kind"),
            f"DoRA normalises by one ΔW, and {mixer.kind} has one for every token or task; set dora: false",
        )
    if adapter.start != "pissa":
        return
    if mixer.kind not in INVERTIBLE or adapter.rank_out not in (None, adapter.rank):
        yield Conflict(
            ("adapter.start", "adapter.mixer.kind"),
            "a PiSSA start divides by M, which must be square and have an inverse; "
            f"set the mixer's kind to one of {', '.join(INVERTIBLE)}, or start: lora",
        )
    elif mixer.kind == "dense" and mixer.init not in WELL_CONDITIONED:
        # A random matrix has small singular values, so that its inverse is large and B · M · A a difference of
        # large numbers: in bfloat16 no longer the part that has left the base.
        yield Conflict(
            ("adapter.start", "adapter.mixer.init"),
            f"a PiSSA start divides by M, and rounding would spoil the inverse of one from {mixer.init}; "
            f"set adapter.mixer.init: {' or '.join(WELL_CONDITIONED)}, or start: lora",
            beginning=True,
        )


def _training(training: TrainingSection, adapter: AdapterSection) -> Iterator[Conflict]:
    if training.epochs is None and training.max_steps is None:
        yield Conflict(("training.epochs", "training.max_steps"), "the run would never end; set epochs or max_steps")
    budget = training.rank_budget
    if budget is None:
        return
    if adapter.mixer.kind != "diagonal":
        yield Conflict(
            ("training.rank_budget", "adapter.mixer.kind"),
            f"needs a diagonal mixer, and this one is {adapter.mixer.kind}; set rank_budget: null",
        )
    elif budget.target_rank > adapter.rank:
        yield Conflict(
            ("training.rank_budget.target_rank", "adapter.rank"), f"must be at most adapter.rank = {adapter.rank}"
        )
    if budget.warmup_share + budget.final_share >= 1:
        yield Conflict(
            ("training.rank_budget.final_share", "training.rank_budget.warmup_share"),
            "warmup_share and final_share must sum to less than 1",
        )


def _data(data: DataSection, adapter: AdapterSection) -> Iterator[Conflict]:
    # A cap of a task that is not trained on has no effect, so that the caps stay where data.tasks is narrowed.
    for task in data.rows if isinstance(data.rows, dict) else ():
        if task not in COMMONSENSE:
            yield Conflict((f"data.rows.{task}",), f"unknown task; must be one of {', '.join(COMMONSENSE)}")
    if data.source != "commonsense_170k":
        return
    if set(data.tasks) != set(COMMONSENSE):
        yield Conflict(
            ("data.tasks", "data.source"),
            "commonsense_170k is the mix of all eight tasks; set tasks: commonsense, or source: hub",
        )
    if data.rows is not None:
        yield Conflict(
            ("data.rows", "data.source"),
            "a cap is per task, and the rows of commonsense_170k do not name theirs; "
            "shorten the run by epochs or max_steps instead, or set source: hub",
        )
    if data.format not in ("label", "llm-adapters"):
        yield Conflict(
            ("data.format", "data.source"),
            "the rows of commonsense_170k are answered by a label; set format: label or llm-adapters, or source: hub",
        )
    if adapter.mixer.kind == "task-gate":
        # Half of the sets share a template, so that their rows would all train the embedding for rows of no set.
        yield Conflict(
            ("data.source", "adapter.mixer.kind"),
            "a task gate learns an embedding for each task, and the rows of commonsense_170k do not name theirs; "
            "set data.source: hub",
            beginning=True,
        )
