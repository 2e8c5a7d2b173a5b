"""The section `adapter`: A, M and B on each chosen layer, or a method of PEFT."""

from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Discriminator, Field, Tag

from moslora.adapter_options import TARGETS, AdapterOptions
from moslora.mixer_options import DenseOptions, MixerOptions
from moslora.strict import Filled, Modules

from .changes import Changes
from .fields import Section


class AdapterSection(AdapterOptions, Section):
    """The adapter on each chosen linear layer, ΔW = s · B · M · A."""

    changes = Changes.TRAINED

    mixer: Annotated[MixerOptions, Changes.TRAINED] = Field(default=DenseOptions(), discriminator="kind")
    """M, the only part that differs between methods."""

    continue_from: Annotated[Filled | None, Changes.START] = None
    """Weights to start with: a run, a checkpoint, an adapter folder, or a LoRA in PEFT's format; null to start as
    `start` says. The rest of this section must be as it was there, except `dropout` and `trains`."""

    equation: ClassVar[str] = "ΔW = s · B · M · A"
    needs_peft: ClassVar[bool] = False

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
    needs_peft: ClassVar[bool] = True
    gated_by_task: ClassVar[bool] = False
    is_balanced: ClassVar[bool] = False
    mixer: ClassVar[None] = None

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
