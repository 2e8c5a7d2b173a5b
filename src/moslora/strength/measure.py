"""Measurement of a strength curve. The model is loaded once, and its adapter's weights are set in place."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from moslora.adapters import SharedInputLayers, describe_batch, named_adapters, task_names
from moslora.adapters.start import leave_residual
from moslora.base.adapted import adapter_state
from moslora.base.engines import engine_of
from moslora.base.failures import or_out_of_memory
from moslora.base.load import read_base
from moslora.console import note
from moslora.convert.strength import at_strength
from moslora.data.encode import Encoded, Encoder, encode_examples
from moslora.data.overlap import DIGEST_BYTES, digest
from moslora.data.prepared import RunRows
from moslora.data.sources import load_examples, load_training
from moslora.data.steps import collate, default_micro_batch_tokens, group_by_length, label_count
from moslora.errors import UsageError
from moslora.evaluation.evaluator import ModelWithQuestions
from moslora.evaluation.loading import load_model, tokenizer_of
from moslora.evaluation.request import Request
from moslora.evaluation.target import open_target
from moslora.processes.group import take_gpu
from moslora.progress import Line
from moslora.prompts.formats import make_format
from moslora.prompts.protocols import PROTOCOLS
from moslora.recipe import Recipe, resolve_tasks
from moslora.runs.adapter_folder import AdapterFolder
from moslora.runs.answers import TaskAnswers, by_task, order_key
from moslora.runs.manifest import WEIGHTS
from moslora.runs.outcomes import log_probability, log_probability_summed, nats_per_byte, right
from moslora.strength.curve import STRENGTHS, Curve, Measure, write_curve
from moslora.tasks import INSTRUCTION, Example
from moslora.training.questions import examples_by_task

TEXTS = 32
"""Number of texts of each set that are measured, the first in the fixed order."""

OUTCOMES = {
    "log p": log_probability,
    "summed log p": log_probability_summed,
    "accuracy": right,
    "nats per byte": nats_per_byte,
}
"""Title -> outcome. The last is of texts, the others of questions with options."""


def measure_strength(
    adapter: Path, *, rows: str | None = None, texts: str = "passages", trust_remote_code: bool = False
) -> Curve:
    """Measure an adapter at `STRENGTHS`, and keep the curve in the folder of its run.

    Args:
        adapter: adapter folder of a result or a checkpoint.
        rows: file of rows that it was not trained on (`data.source`); ``None`` for the validation rows of its run.
        texts: set of texts, or a file that declares one (`resolve_tasks`).
        trust_remote_code: whether the base's own Python code may run.

    Raises:
        UsageError: the adapter has no strength, or rows or texts are missing or changed since the training.
    """
    take_gpu()
    target = open_target(str(adapter), trust_remote_code=trust_remote_code, strategy="ddp")
    folder = target.adapter
    assert folder is not None
    at_strength(folder, {}, 1.0)  # refuses what has no strength
    tokenizer = tokenizer_of(target)
    encoder = Encoder(tokenizer, max_length=folder.recipe.data.max_length)
    held_out = _named_rows(folder, encoder, rows) if rows else _validation_rows(folder, encoder)
    questions = [] if PROTOCOLS[folder.recipe.evaluation.protocol].writes else held_out.questions
    examples = examples_by_task([example for example in questions if not example.is_open_ended])
    examples |= _texts(folder.recipe, texts)
    model = load_model(target)
    adjustable = Adjustable(model, folder)
    request = Request.of(folder.recipe).model_copy(update={"limit": None, "skip": 0})
    prepared = ModelWithQuestions.of(model, tokenizer, examples, request)
    losses: list[list[float]] = []
    answers: list[Mapping[str, TaskAnswers]] = []
    with (
        or_out_of_memory("out of GPU memory while strengths are measured; set a smaller evaluation.batch_tokens"),
        Line(len(STRENGTHS), "strength 0") as line,
    ):
        for count, strength in enumerate(STRENGTHS):
            line.show(count, f"strength {strength:g}")
            adjustable.set(strength)
            losses.append(row_losses(model, held_out.rows))
            answers.append(by_task(prepared.ask()))
    labels = [label_count([row]) for row in held_out.rows]
    loss = Measure("loss", np.array(losses), np.array(labels, float))
    curve = Curve(folder.manifest["sha256"][WEIGHTS], loss, _measures(answers))
    if folder.run.result.resolve() == adapter.resolve():
        write_curve(folder.run, curve)
    return curve


class Adjustable:
    """Model whose adapter's strength is set in place.

    Args:
        model: model with the adapter of ``folder``, at any strength.
        folder: adapter folder with the trained weights.
    """

    def __init__(self, model: PreTrainedModel, folder: AdapterFolder) -> None:
        self._folder = folder
        self._trained = folder.weights()
        self._live = adapter_state(model)
        started = {name: layer for name, layer in named_adapters(model) if layer.start_a is not None}
        self._started = [*started.values()]
        self._whole: list[nn.Parameter] = []  # the base's weights before such a start was subtracted
        if started:
            base = read_base(folder.recipe.model, device=model.device)
            self._whole = [base.get_submodule(name).get_parameter("weight") for name in started]

    @torch.no_grad()
    def set(self, strength: float) -> None:
        """Set the strength of the adapter; 0 is the base."""
        for key, weight in at_strength(self._folder, self._trained, strength).items():
            self._live[key].copy_(weight)
        for layer, whole in zip(self._started, self._whole, strict=True):
            layer.base.weight = whole
            leave_residual(layer)


@torch.inference_mode()
def row_losses(model: PreTrainedModel, rows: Sequence[Encoded]) -> list[float]:
    """Σ −log p of the labels of each row, in nats, without dropout, one number for each of ``rows``."""
    engine = engine_of(model)
    tokens = default_micro_batch_tokens(on_gpu=model.device.type != "cpu")
    names = task_names(model)
    losses = [0.0] * len(rows)
    with SharedInputLayers(model).folded(model.dtype):
        for places in group_by_length([len(row.input_ids) for row in rows], tokens=tokens, pads=engine.pads):
            together = [rows[place] for place in places]
            batch = collate(together, device=model.device, tasks=names, build_batch=engine.build_batch)
            describe_batch(model, tokens=batch.real, tasks=batch.tasks)
            log_p = engine.log_p(batch, batch.predicted_from, batch.labels.tolist())
            of_rows = log_p.double().cpu().split([label_count([row]) for row in together])
            for place, of_row in zip(places, of_rows, strict=True):
                losses[place] = -float(of_row.sum())
    return losses


@dataclass(frozen=True)
class HeldOut:
    """Rows that an adapter was not trained on.

    Attributes:
        rows: all of them, as tokens.
        questions: those that belong to a task, as questions.
    """

    rows: Sequence[Encoded]
    questions: Sequence[Example]


def _validation_rows(folder: AdapterFolder, encoder: Encoder) -> HeldOut:
    """Validation rows of the adapter's run."""
    recipe = folder.recipe
    named = "name rows that it was not trained on: --rows FILE"
    if not recipe.data.holds_out or "trained_rows" not in folder.manifest:
        raise UsageError(f"{folder.path}: its run has no validation rows; {named}")
    data = RunRows.of(recipe, encoder).prepare()
    if data.sha256 != folder.manifest["data"]["sha256"]:
        raise UsageError(f"{folder.path}: the rows of its run have changed since training; {named}")
    return HeldOut(data.validation, data.questions)


def _named_rows(folder: AdapterFolder, encoder: Encoder, file: str) -> HeldOut:
    """Rows in ``file`` that are not known to be training rows of the adapter's run."""
    recipe = folder.recipe
    of_own: dict[str, Any] = {"hub": None, "wheel": None, "splits": {"train": file, "test": file}}
    tasks = [replace(task, **of_own) if task.own else task for task in recipe.training_tasks]
    examples = load_training(tasks, source=file)
    contents = folder.run.contents.read_bytes() if folder.run.contents.is_file() else b""
    trained = {contents[start : start + DIGEST_BYTES] for start in range(0, len(contents), DIGEST_BYTES)}
    unseen = [example for example in examples if digest(example) not in trained]
    if not unseen:
        raise UsageError(f"--rows {shlex.quote(file)}: no row that this run was not trained on")
    if len(unseen) < len(examples):
        note(f"{len(examples) - len(unseen):,} of the {len(examples):,} rows of {file} are training rows, and left out")
    format = make_format(recipe.data.format, encoder.tokenizer)
    encoded = encode_examples(unseen, format, encoder, loss_on=recipe.data.loss_on)
    return HeldOut(encoded, [example for example in unseen if example.task != INSTRUCTION])


def _texts(recipe: Recipe, named: str) -> dict[str, list[Example]]:
    """The first `TEXTS` texts, in the fixed order, of each set in ``named``."""
    texts = {}
    for task in resolve_tasks(named, recipe.own_tasks):
        if not task.is_text:
            raise UsageError(f"--texts {named}: {task.name} is a set of questions, not of texts")
        every = load_examples(task, "test", source=recipe.questions.source)
        texts[task.name] = sorted(every, key=lambda text: order_key(text.id))[:TEXTS]
    return texts


def _measures(by_strength: Sequence[Mapping[str, TaskAnswers]]) -> tuple[Measure, ...]:
    """Measures of the answers at each strength: over the questions of all tasks together, and over all texts."""
    measures: list[Measure] = []
    for title, outcome in OUTCOMES.items():
        of_texts = outcome is nats_per_byte
        values = []
        for answers in by_strength:
            of_rows = [outcome(of_task) for of_task in answers.values() if of_task.are_texts == of_texts]
            values.append(np.concatenate([[], *of_rows]))
        measure = Measure(title, np.array(values), np.ones(len(values[0])))
        is_duplicate = any(np.array_equal(measure.values, other.values) for other in measures)  # without characters
        if len(values[0]) and not is_duplicate:
            measures.append(measure)
    return tuple(measures)
