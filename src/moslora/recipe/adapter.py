"""Section `adapter` of a recipe: A, M and B on each chosen layer, or a method of PEFT."""

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
    """Weights to start with: a run, checkpoint, adapter folder, or LoRA in PEFT's format; null for `start`. The other
    fields of this section must be the same there, except `dropout` and `trains`."""

    equation: ClassVar[str] = "ΔW = s · B · M · A"
    tags: ClassVar[tuple[str, ...]] = ("lora",)

    def summary(self) -> str:
        """Describe the method in a few words."""
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
        """Whether M depends on the row's task."""
        return self.mixer.kind == "task-gate"

    @property
    def is_balanced(self) -> bool:
        """Whether each micro-batch adds a penalty over its own rows."""
        return self.mixer.is_balanced

    @property
    def linear_weights(self) -> tuple[str, ...]:
        """Endings of the names of the weights in which ΔW is linear, one per layer; empty if it is linear in none.

        With PiSSA, ``start_b`` is among them: the part that was taken out of the base counts as ΔW.
        """
        if self.dora:
            return ()
        return ".mixer.weight" if self.mixer.starts_at_zero else ".lora_b", ".start_b"

    def conflicts_in(self, training: TrainingSection, model: ModelSection) -> Conflicts:
        """List the options that cannot go together, or with the rest of the recipe."""
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
"""Initialisations of PEFT's LoRA that do not change the base's weights."""


class PeftMethod(Section):
    """A method of PEFT, with the fields of its config class, which are checked before training."""

    model_config = ConfigDict(extra="allow")

    peft_type: Filled
    """PEFT's name of the method, such as `MISS`."""


class PeftSection(Section):
    """A method of PEFT instead of A, M and B (docs/peft.md). Needs peft."""

    changes = Changes.TRAINED

    target_modules: Modules = TARGETS
    """Linear layers to adapt, named as above."""

    peft: Annotated[PeftMethod, Changes.TRAINED]
    """The method. In `extends`, it and `adapter.mixer` replace each other."""

    continue_from: Annotated[Filled | None, Changes.START] = None
    """Weights to start with: a run of this method, or a folder of PEFT. The method's fields must be the same there,
    except dropout."""

    equation: ClassVar[str] = "a method of another library"
    tags: ClassVar[tuple[str, ...]] = ()
    gated_by_task: ClassVar[bool] = False
    is_balanced: ClassVar[bool] = False
    mixer: ClassVar[None] = None

    @property
    def linear_weights(self) -> tuple[str, ...]:
        """Endings of the names of weights, one per layer, whose scaling by C scales the change of the base by C."""
        fields = self.peft.model_dump()
        is_lora = fields["peft_type"] == "LORA" and not fields.get("use_dora")
        if is_lora and fields.get("init_lora_weights", True) in LINEAR_STARTS:
            return ".lora_B.weight", ".lora_B.bias", ".lora_embedding_B"
        return ()

    def conflicts_in(self, training: TrainingSection, model: ModelSection) -> Conflicts:
        """List the fields of the recipe that cannot go with a method of PEFT."""
        for field, usual in (("lora_plus_ratio", 1), ("mixer_rate_ratio", 1), ("rank_budget", None)):
            if getattr(training, field) != usual:
                yield (
                    f"training.{field} adapter.peft.peft_type",
                    f"applies only to moslora's own adapters, not to a method of PEFT; remove {field}",
                )
        if model.quantization == "int8":
            keys = "model.quantization adapter.peft.peft_type"
            yield keys, "several methods of PEFT fail with int8; set quantization: nf4 or null"

    def summary(self) -> str:
        """Describe the method in a few words."""
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
"""Section `adapter`: moslora's own adapter, or a method of PEFT."""
