"""The recipe as a whole: its sections, and the rules between them."""

from typing import Any, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from moslora.tasks import TASKS, Questions, Task

from .fields import Section
from .rules import conflicts
from .sections import AdapterSection, DataSection, EvaluationSection, ModelSection, TrackingSection, TrainingSection
from .tasks import TaskName, TaskSection
from .yaml_text import render


class Recipe(Section):
    """One run: its base model, adapter, data, training and evaluation."""

    name: str = Field(pattern=r"^\w[\w.-]*$")
    """Name of the run and of its folder; by default the name of the recipe file."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seeds the adapter's initialisation, the choice and order of the rows, and dropout."""

    model: ModelSection
    adapter: AdapterSection = AdapterSection()
    data: DataSection = DataSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    tracking: TrackingSection = TrackingSection()

    tasks: dict[TaskName, TaskSection] = Field(default={})
    """Tasks of your own, by name: multiple-choice questions beside the eight sets."""

    @property
    def own_tasks(self) -> dict[str, Task]:
        """The entries of `tasks`."""
        return {name: section.task(name) for name, section in self.tasks.items()}

    @property
    def training_tasks(self) -> tuple[Task, ...]:
        """The entries of `data.tasks`."""
        return self._entries(self.data.tasks)

    @property
    def evaluation_tasks(self) -> tuple[Task, ...]:
        """The entries of `evaluation.tasks`; by default those of the training rows."""
        return self._entries(self.evaluation.tasks or self.data.tasks)

    def _entries(self, names: tuple[str, ...]) -> tuple[Task, ...]:
        known = {**TASKS, **self.own_tasks}
        return tuple(known[name] for name in names)

    @property
    def evaluation_source(self) -> str:
        """The source of the test questions; for commonsense_170k, which has only training rows, the hub."""
        if self.evaluation.source is not None:
            return self.evaluation.source
        return "hub" if self.data.source == "commonsense_170k" else self.data.source

    @property
    def questions(self) -> Questions:
        """The test rows that it names."""
        return Questions(self.evaluation_tasks, self.evaluation_source)

    def adapter_options(self) -> dict[str, Any]:
        """The arguments of `moslora.adapters.inject`: a task gate has an embedding for each of `data.tasks`."""
        options = self.adapter.model_dump()
        if self.adapter.mixer.kind == "task-gate":
            options["mixer"]["tasks"] = self.data.tasks
        return options

    def to_yaml(self) -> str:
        """The recipe with every field, in declared order. `load_recipe` reads it back equal."""
        return render(self.model_dump(mode="json"))

    @model_validator(mode="after")
    def _possible(self) -> Self:
        sections = self.model, self.adapter, self.data, self.training, self.evaluation, self.tracking
        if found := list(conflicts(*sections, self.tasks)):
            text = "\n".join(f"{rule.paths[0]}: {rule.message}" for rule in found)
            raise PydanticCustomError("conflict", "{text}", {"text": text, "conflicts": found})
        return self
