"""The recipe as a whole: its sections, its differences from another recipe, and the JSON schema of its files."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from moslora.tasks import BUILT_IN, QuestionSource, Task

from .adapter import Adapter, AdapterSection
from .changes import Arms, Changes, changes_at, marked_fields
from .fields import Section
from .rules import conflicts
from .sections import DataSection, EvaluationSection, ModelSection, TrackingSection, TrainingSection
from .tasks import TaskName, TaskSection
from .yaml_text import render, render_inline

OF_ACCURACY = (
    "training.validation_questions",
    "evaluation.protocol",
    "evaluation.beams",
    "evaluation.max_length",
)
"""Keys of the fields that decide the accuracy on the validation questions."""


class Recipe(Section):
    """One run: its base model, adapter, data, training and evaluation."""

    name: Annotated[str, Changes.RUN, Arms.ALL] = Field(pattern=r"^\w[\w.-]*$")
    """Name of the run and its folder; by default the recipe file's."""

    seed: Annotated[int, Changes.DRAW, Arms.ALL] = Field(default=0, ge=0, lt=2**32)
    """Seed of the adapter's start, the choice and order of rows, and dropout."""

    model: Annotated[ModelSection, Arms.ALL]

    adapter: Adapter = AdapterSection()
    """The adapter, ΔW = s · B · M · A, or a method of PEFT."""

    data: DataSection = DataSection()
    training: TrainingSection = TrainingSection()
    evaluation: Annotated[EvaluationSection, Arms.ALL] = EvaluationSection()
    tracking: Annotated[TrackingSection, Arms.ALL] = TrackingSection()

    tasks: dict[TaskName, TaskSection] = Field(default={})
    """Your own tasks, by name."""

    @property
    def own_tasks(self) -> dict[str, Task]:
        """Tasks that the section `tasks` declares, by name."""
        return {name: replace(section.task(name), bad_rows=self.data.bad_rows) for name, section in self.tasks.items()}

    @property
    def training_tasks(self) -> tuple[Task, ...]:
        """Tasks whose rows are trained on."""
        return self._entries(self.data.tasks)

    @property
    def replayed(self) -> tuple[Task, ...]:
        """Task whose texts are replayed in training, or none."""
        return self._entries((self.data.replay.texts,)) if self.data.replay else ()

    @property
    def questions(self) -> QuestionSource:
        """Tasks to evaluate, by default those trained on, and the source of their test rows.

        The source is by default that of the training rows, or the hub if that is `commonsense_170k`.
        """
        tasks = self._entries(self.evaluation.tasks or self.data.tasks)
        source = self.evaluation.source or self.data.source
        if source == "commonsense_170k":  # has only training rows
            source = "hub"
        return QuestionSource(tasks, source)

    def _entries(self, names: tuple[str, ...]) -> tuple[Task, ...]:
        tasks = {**BUILT_IN, **self.own_tasks}
        return tuple(tasks[name] for name in names)

    def changed_by(self, key: str) -> Changes:
        """Return the aspect of a run of this recipe that another value at a dotted key changes, such as what is
        trained.

        The size of the micro-batches changes what is trained only with a gate's `balance`, a penalty over the rows of
        one micro-batch. Settings of the validations change what is trained if the validations decide the result.
        """
        if key == "training.micro_batch_tokens" and self.adapter.is_balanced:
            return Changes.TRAINED
        if key == "training.validate_every" and self.training.is_selected:
            return Changes.TRAINED
        if key in OF_ACCURACY and self.training.is_selected_by_accuracy:
            return Changes.TRAINED
        return changes_at(type(self), key)

    def values_changing(self, *changing: Changes) -> dict[str, Any]:
        """Map dotted keys to values, for the fields that affect one of the aspects ``changing``."""
        every = flat(self.model_dump(mode="json"))
        return {key: value for key, value in every.items() if self.changed_by(key) in changing}

    def differences(self, since: "Recipe", *changing: Changes) -> list[str]:
        """List `key was …, is …` for every field that affects one of the aspects ``changing`` and differs from
        ``since``."""
        changed = changed_keys(since.model_dump(mode="json"), self.model_dump(mode="json"))
        return [text for key, text in changed.items() if self.changed_by(key) in changing]

    def to_yaml(self) -> str:
        """Write the recipe with every field, in declared order. `load_recipe` reads it back equal."""
        return render(self.model_dump(mode="json"))

    @model_validator(mode="after")
    def _possible(self) -> Self:
        sections = self.model, self.adapter, self.data, self.training, self.evaluation, self.tracking
        faults = [*conflicts(*sections, own_tasks=self.tasks)]
        if faults:
            text = "\n".join(f"{keys.split()[0]}: {message}" for keys, message in faults)
            raise PydanticCustomError("conflict", "{text}", {"text": text, "conflicts": faults})
        return self


def fields_that_change(*changing: Changes) -> list[str]:
    """List the dotted keys of the fields that affect one of the aspects ``changing``; `*` stands for a task's name."""
    return [key for key, mark in marked_fields(Recipe, Changes) if mark in changing]


def changed_keys(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Map every dotted key whose value differs between ``then`` and ``now`` to `key was …, is …`."""
    before = flat(then)
    after = flat(now)
    changed = {}
    for key in dict.fromkeys((*after, *before)):
        was = before.get(key)
        value = after.get(key)
        if was != value:
            changed[key] = f"{key} was {render_inline(was)}, is {render_inline(value)}"
    return changed


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings into one with dotted keys."""
    flattened: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flattened |= flat(value, f"{prefix}{key}.")
        else:
            flattened[f"{prefix}{key}"] = value
    return flattened


def recipe_schema() -> dict[str, Any]:
    """Build the JSON schema of one recipe *file*: the fields of `Recipe` with their documentation, and `extends`.

    Unlike in a resolved recipe, no field is required: any value may come from an extended file or a default. A mixer
    may lack its `kind`, and is checked against all kinds.
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
