"""The recipe as a whole: its sections and the rules between them; differences between two recipes; the schema."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from moslora.tasks import BUILT_IN, Questions, Task

from .adapter import Adapter, AdapterSection
from .fields import Section
from .rules import conflicts, tracking_conflicts
from .sections import DataSection, EvaluationSection, ModelSection, TrackingSection, TrainingSection
from .tasks import TaskName, TaskSection
from .yaml_text import render, render_inline

FREE = (
    "data.source",
    "evaluation.",
    "tracking.",
    "model.gradient_checkpointing",
    "model.trust_remote_code",
    "training.strategy",
    "training.log_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.validate_every",
)
"""Beginnings of the keys that change no step of a training: output, memory, and the source of the rows (the rows are
compared themselves). They may change when a run is resumed, and make no other arm of a comparison."""


class Recipe(Section):
    """One run: its base model, adapter, data, training and evaluation."""

    name: str = Field(pattern=r"^\w[\w.-]*$")
    """Name of the run and of its folder; by default the name of the recipe file."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seeds the adapter's initialisation, the choice and order of the rows, and dropout."""

    model: ModelSection

    adapter: Adapter = AdapterSection()
    """The adapter on each chosen layer: ΔW = s · B · M · A, or a method of PEFT."""

    data: DataSection = DataSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    tracking: TrackingSection = TrackingSection()

    tasks: dict[TaskName, TaskSection] = Field(default={})
    """Tasks of your own, by name: multiple-choice questions, or texts, beside the built-in sets."""

    @property
    def own_tasks(self) -> dict[str, Task]:
        """The entries of `tasks`."""
        return {name: section.task(name) for name, section in self.tasks.items()}

    @property
    def training_tasks(self) -> tuple[Task, ...]:
        """The entries of `data.tasks`."""
        return self._entries(self.data.tasks)

    @property
    def questions(self) -> Questions:
        """The test rows; by default of the tasks and the source of the training rows."""
        source = self.evaluation.source or self.data.source
        tasks = self._entries(self.evaluation.tasks or self.data.tasks)
        return Questions(tasks, "hub" if source == "commonsense_170k" else source)  # that has only training rows

    def _entries(self, names: tuple[str, ...]) -> tuple[Task, ...]:
        known = {**BUILT_IN, **self.own_tasks}
        return tuple(known[name] for name in names)

    def adapter_options(self) -> dict[str, Any]:
        """The arguments of `moslora.adapters.inject`: a task gate has an embedding for each of `data.tasks`."""
        options = self.adapter.model_dump()
        if self.adapter.gated_by_task:
            options["mixer"]["tasks"] = self.data.tasks
        return options

    @property
    def free(self) -> tuple[str, ...]:
        """:data:`FREE`, `files`, and the size of the micro-batches, except with a gate's balance: each takes that over
        its own rows."""
        if getattr(self.adapter.mixer, "balance", 0):
            return (*FREE, *self.files)
        return (*FREE, *self.files, "training.micro_batch_tokens")

    @property
    def files(self) -> tuple[str, ...]:
        """Keys of the files of its own tasks, or of their splits on the hub."""
        return tuple(f"tasks.{name}.{split}" for name in self.tasks for split in ("train", "test", "texts"))

    def values(self, *, but: tuple[str, ...] = ()) -> dict[str, Any]:
        """The values by dotted key, but for keys that begin with one of ``but``."""
        return {key: value for key, value in flat(self.model_dump(mode="json")).items() if not key.startswith(but)}

    def changes(self, since: "Recipe", *, free: tuple[str, ...] = ()) -> list[str]:
        """`key was …, is …` for every dotted key with another value, but for keys that begin with one of ``free``."""
        return changed_keys(since.model_dump(mode="json"), self.model_dump(mode="json"), free=free)

    def to_yaml(self) -> str:
        """The recipe with every field, in declared order. `load_recipe` reads it back equal."""
        return render(self.model_dump(mode="json"))

    @model_validator(mode="after")
    def _possible(self) -> Self:
        sections = self.model, self.adapter, self.data, self.training, self.evaluation
        found = [*conflicts(*sections, own_tasks=self.tasks), *tracking_conflicts(self.tracking)]
        if found:
            text = "\n".join(f"{keys.split()[0]}: {message}" for keys, message in found)
            raise PydanticCustomError("conflict", "{text}", {"text": text, "conflicts": found})
        return self


def changed_keys(then: Mapping[str, Any], now: Mapping[str, Any], *, free: tuple[str, ...] = ()) -> list[str]:
    """`key was …, is …` for every dotted key whose value differs, but for keys that begin with one of ``free``."""
    before, after = flat(then), flat(now)
    return [
        f"{key} was {render_inline(before.get(key))}, is {render_inline(after.get(key))}"
        for key in dict.fromkeys((*after, *before))
        if not key.startswith(free) and before.get(key) != after.get(key)
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of one recipe *file*: the fields of `Recipe` with their documentation, and `extends`.

    Nothing is required, unlike in a resolved recipe: any value may come from an extended file or a default. So a mixer
    may lack its `kind`, and is only checked against all kinds.
    """
    schema = Recipe.model_json_schema()
    for model in [schema, *schema["$defs"].values()]:
        model.pop("required", None)
        for field in model.get("properties", {}).values():
            field.pop("discriminator", None)
            if "oneOf" in field:
                field["anyOf"] = field.pop("oneOf")
            if "const" in field:
                field["description"] = "The kind of mixer."
            if "description" in field:
                field["description"] = " ".join(field["description"].split())
    extends = {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        "description": "Recipes that this file extends: a path relative to it, a built-in recipe, or a list of these.",
    }
    schema["properties"] = {"extends": extends, **schema["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "moslora recipe"}
