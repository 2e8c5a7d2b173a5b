"""The section `adapter`: A, M and B on each chosen layer, or a method of PEFT."""

from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Discriminator, Field, Tag

from moslora.adapter_options import TARGETS, AdapterOptions
from moslora.mixer_options import Conflicts, DenseOptions, MixerOptions
from moslora.schema import Filled, Modules

from .changes import Changes
from .fields import Section
from .sections import ModelSection, TrainingSection


class AdapterSection(AdapterOptions, Section):
    """The adapter on each chosen linear layer, ΔW = s · B · M · A."""

    changes = Changes.TRAINED

    mixer: Annotated[MixerOptions, Changes.TRAINED] = Field(default=DenseOptions(), discriminator="kind")
    """M, the only part that differs between methods."""

    continue_from: Annotated[Filled | None, Changes.START] = None
    """Weights to start with: a run, a checkpoint, an adapter folder, or a LoRA in PEFT's format; null to start as
    `start` says. The rest of this section must be as it was there, except `dropout` and `trains`."""

    equation: ClassVar[str] = "ΔW = s · B · M · A"
    tags: ClassVar[tuple[str, ...]] = ("lora",)

    def summary(self) -> str:
        """The method in a few words."""
        ranks = f"rank {self.rank}"
        if self.rank_out not in (None, self.rank):
            ranks += f" to {self.rank_out}"
        divisor = f"√{self.rank}" if self.scaling == "rslora" else f"{self.rank}"
        parts = [f"mixer {self.mixer.kind}", ranks, f"s = {self.alpha:g}/{divisor}"]
        words = {"pissa": "PiSSA start", "svd": "SVD start", "b": "only B learns", "mixer": "only M learns"}
        parts += [words[value] for value in (self.start, self.trains) if value in words]
        if self.dora:
            parts.append("DoRA")
        return ", ".join(parts)

    @property
    def gated_by_task(self) -> bool:
        return self.mixer.kind == "task-gate"

    @property
    def is_balanced(self) -> bool:
        """Whether each micro-batch has a penalty over its own rows."""
        return self.mixer.is_balanced

    @property
    def linear_weights(self) -> tuple[str, ...]:
        """Ends of the names of the weights, one of each layer, in which the change of the base is linear; none if there
        are none. ``start_b``, what a start has taken out of the base (PiSSA), belongs to the change."""
        if self.dora:
            return ()
        return ".mixer.weight" if self.mixer.starts_at_zero else ".lora_b", ".start_b"

    def conflicts_in(self, training: TrainingSection, model: ModelSection) -> Conflicts:
        """Options that do not go together, nor with the rest of a recipe."""
        budget = training.rank_budget
        if budget and self.mixer.kind != "diagonal":
            keys = "training.rank_budget adapter.mixer.kind"
            yield keys, f"rank_budget needs a diagonal mixer, not {self.mixer.kind}; set rank_budget: null"
        elif budget and budget.target_rank > self.rank:
            keys = "training.rank_budget.target_rank adapter.rank"
            yield keys, f"target_rank must be at most adapter.rank = {self.rank}"
        for keys, message in self.conflicts(drawn=self.continue_from is None):
            yield " ".join(f"adapter.{key}" for key in keys.split()), message


LINEAR_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Starts of a LoRA of PEFT that leave the base's weights as they are."""


class PeftMethod(Section):
    """A method of PEFT, with the fields of its config class. They are checked before training, not here."""

    model_config = ConfigDict(extra="allow")

    peft_type: Filled
    """PEFT's name of the method, such as `MISS`."""


class PeftSection(Section):
    """A method of PEFT instead of A, M and B: docs/peft.md. Needs peft."""

    changes = Changes.TRAINED

    target_modules: Modules = TARGETS
    """Linear layers to adapt, named as above."""

    peft: Annotated[PeftMethod, Changes.TRAINED]
    """The method. It replaces `adapter.mixer` of an extended recipe, and is replaced by it."""

    continue_from: Annotated[Filled | None, Changes.START] = None
    """Weights to start with: a run of this method, or a folder that PEFT wrote. The method's fields must be as they
    were, except those of dropout."""

    equation: ClassVar[str] = "a method of another library"
    tags: ClassVar[tuple[str, ...]] = ()
    gated_by_task: ClassVar[bool] = False
    is_balanced: ClassVar[bool] = False
    mixer: ClassVar[None] = None

    @property
    def linear_weights(self) -> tuple[str, ...]:
        """As those of `AdapterSection`."""
        fields = self.peft.model_dump()
        is_lora = fields["peft_type"] == "LORA" and not fields.get("use_dora")
        if is_lora and fields.get("init_lora_weights", True) in LINEAR_STARTS:
            return ".lora_B.weight", ".lora_B.bias", ".lora_embedding_B"
        return ()

    def conflicts_in(self, training: TrainingSection, model: ModelSection) -> Conflicts:
        """What does not go with a method of PEFT in a recipe."""
        for field, usual in (("lora_plus_ratio", 1), ("mixer_rate_ratio", 1), ("rank_budget", None)):
            if getattr(training, field) != usual:
                yield (
                    f"training.{field} adapter.peft.peft_type",
                    f"applies only to moslora's own adapters, not to a method of PEFT; remove {field}",
                )
        if model.quantization == "int8":
            keys = "model.quantization adapter.peft.peft_type"
            yield keys, "several of PEFT's methods fail over 8 bits; set quantization: nf4 or null"

    def summary(self) -> str:
        """The method in a few words."""
        fields = self.peft.model_dump(exclude={"peft_type"})
        return ", ".join([f"PEFT {self.peft.peft_type}", *(f"{key} {value}" for key, value in fields.items())])


def _class_of(adapter: Any) -> str:
    if isinstance(adapter, PeftSection) or (isinstance(adapter, dict) and "peft" in adapter):
        return PeftSection.__name__
    return AdapterSection.__name__


Adapter = Annotated[
    Annotated[AdapterSection, Tag(AdapterSection.__name__)] | Annotated[PeftSection, Tag(PeftSection.__name__)],
    Discriminator(_class_of),
]
"""An adapter of ours, or a method of PEFT."""
