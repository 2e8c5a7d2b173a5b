"""Combinations of fields that cannot work, each a rule with its reason."""

import re
from collections.abc import Mapping

from moslora.mixer_options import Conflicts
from moslora.prompts.protocols import PROTOCOLS, joined_names, readers, writers
from moslora.tasks import BUILT_IN, COMMONSENSE, GROUP, PASSAGES, unknown_names

from .adapter import Adapter
from .sections import DataSection, EvaluationSection, ModelSection, TrackingSection, TrainingSection
from .tasks import TaskSection


def conflicts(
    model: ModelSection,
    adapter: Adapter,
    data: DataSection,
    training: TrainingSection,
    evaluation: EvaluationSection,
    tracking: TrackingSection,
    own_tasks: Mapping[str, TaskSection],
) -> Conflicts:
    """List the combinations of fields in a recipe that cannot work."""
    yield from _training(training, model, data)
    yield from adapter.conflicts_in(training, model)
    yield from _tasks(data, evaluation, own_tasks)
    for name, task in own_tasks.items():
        yield from _own_task(name, task, trained=name in data.tasks)
    if data.source == "commonsense_170k":
        yield from _mixture(data, adapter)
    yield from _evaluation(data, evaluation, own_tasks)
    # An empty list of trackers in the file is intended.
    if "project" in tracking.model_fields_set and "to" not in tracking.model_fields_set:
        fix = "set tracking.to too, such as tracking.to=[wandb], or remove tracking.project"
        yield "tracking.project tracking.to", f"no tracker is set; {fix}"


def _training(training: TrainingSection, model: ModelSection, data: DataSection) -> Conflicts:
    if training.strategy == "fsdp" and not model.can_be_sharded:
        keys = "training.strategy model.quantization"
        yield keys, "fsdp loses the scales of int8 layers; set quantization: nf4 or null, or strategy: ddp"
    if training.samples:
        if training.strategy == "fsdp":
            yield "training.samples training.strategy", "fsdp cannot write samples; set samples: 0, or strategy: ddp"
        if data.loss_on == "all":
            fix = "set samples: 0, or loss_on: response"
            yield "training.samples data.loss_on", f"loss_on: all marks no answers to compare samples with; {fix}"
    if training.epochs is None and training.max_steps is None:
        yield "training.epochs training.max_steps", "nothing ends the run; set epochs or max_steps"
    if training.is_selected and not data.holds_out:
        keys = "training.result training.patience data.validation_rows"
        fix = "set data.validation_rows, such as 120, or result: last and patience: null"
        yield keys, f"result: best and patience need validation rows; {fix}"
    elif training.is_selected_by_accuracy and training.validation_questions == 0:
        keys = "training.best_by training.validation_questions"
        yield keys, "best_by: accuracy needs validation questions; set validation_questions: 100, or best_by: loss"


def _tasks(data: DataSection, evaluation: EvaluationSection, own_tasks: Mapping[str, TaskSection]) -> Conflicts:
    task_names = (*BUILT_IN, *own_tasks)
    # A limit for a task that is not in data.tasks has no effect, so that data.tasks can be narrowed by itself.
    unknown = {
        "data.tasks": unknown_names(data.tasks, (*task_names, GROUP)),
        "evaluation.tasks": unknown_names(evaluation.tasks or (), (*task_names, GROUP)),
    }
    for key, numbers in {"data.rows": data.rows, "evaluation.skip": evaluation.skip}.items():
        if isinstance(numbers, dict):
            unknown[key] = unknown_names(numbers, task_names)
    for key, names in unknown.items():
        if names:
            yield key, "; ".join(names)
    texts = [PASSAGES.name, *(name for name, task in own_tasks.items() if task.texts)]
    trained_texts = [name for name in data.tasks if name in texts]
    if trained_texts:
        fix = "use them in evaluation.tasks, or in data.replay.texts"
        yield "data.tasks", f"{', '.join(trained_texts)}: texts cannot be training rows; {fix}"
    replayed = data.replay.texts if data.replay else None
    if replayed and replayed not in texts:
        yield "data.replay.texts", f"must be a task with texts: {', '.join(texts)}, or one that you add to tasks"
    elif replayed and replayed in (evaluation.tasks or ()):
        keys = "data.replay.texts evaluation.tasks"
        yield keys, f"{replayed} cannot be both trained on and measured; replay or measure other texts"


def _own_task(name: str, task: TaskSection, *, trained: bool) -> Conflicts:
    if task.texts:
        return
    if not task.train and (trained or not task.test):
        yield f"tasks.{name}.train", "is missing; set it, or only test for a task that is not trained on"
    if task.hub and task.wheel:
        yield f"tasks.{name}.wheel tasks.{name}.hub", "the rows cannot be in two places; remove wheel or hub"
    if (task.match is None) == (task.options is None):
        fix = "for answers in words set options: null and match, such as exact; otherwise options and match: null"
        keys = f"tasks.{name}.match tasks.{name}.options"
        yield keys, f"either options or match must be set; {fix}"


def _mixture(data: DataSection, adapter: Adapter) -> Conflicts:
    """Refuse a part of LLM-Adapters' mix. Its rows do not name their task, and half of the sets share a template."""
    whole = set(data.tasks) == set(COMMONSENSE) and data.rows is None
    if not whole or data.format not in ("label", "llm-adapters") or adapter.gated_by_task:
        needs = "tasks: commonsense, rows: null, format: label or llm-adapters, and no task gate; or set source: hub"
        keys = "data.tasks data.rows data.format data.source adapter.mixer.kind"
        yield keys, f"source commonsense_170k mixes all eight tasks and does not name them, so it needs {needs}"


def _evaluation(data: DataSection, evaluation: EvaluationSection, own_tasks: Mapping[str, TaskSection]) -> Conflicts:
    protocol = PROTOCOLS[evaluation.protocol]
    # A file of rows without a task needs no protocol, as no questions are asked.
    has_questions = evaluation.tasks or evaluation.source or set(data.tasks) & {*own_tasks}
    if data.format not in protocol.formats and (has_questions or not re.search("[./]", data.source)):
        keys = "evaluation.protocol data.format"
        fix = f"set evaluation.protocol: {joined_names(readers(data.format))}, or change data.format"
        yield keys, f"{protocol.name} cannot read the answers of format {data.format}; {fix}"
    if evaluation.beams > 1 and not protocol.writes:
        keys = "evaluation.beams evaluation.protocol"
        fix = f"set beams: 1, or protocol: {joined_names(writers())}"
        yield keys, f"protocol {protocol.name} generates nothing; {fix}"
