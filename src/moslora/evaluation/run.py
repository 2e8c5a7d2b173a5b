"""One evaluation from questions to results: order, score block by block, keep, summarise."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.data.encode import Encoder
from moslora.data.sources import data_hash
from moslora.errors import MosloraError, UsageError
from moslora.evaluation.batches import BLOCK_SIZE, Block, blocks
from moslora.evaluation.cloze import Cloze
from moslora.evaluation.generate import Generate
from moslora.evaluation.journal import Journal
from moslora.evaluation.predictions import Prediction
from moslora.evaluation.rank import Rank
from moslora.evaluation.results import Results, Settings, summarise
from moslora.evaluation.without_leaks import Leaks
from moslora.model import context_length, name_task, output_weight
from moslora.prompts import FORMATS
from moslora.tasks import Example

MAX_LENGTH = "evaluation.max_length"
"""What cuts a question, in a recipe: `data.max_length` is of the training rows alone."""

DRIFT_SAMPLE = 8
"""Questions of each task that are scored once more alone, to see how far the shapes move a margin."""

Progress = Callable[[str, int, int], None]
"""Called after every block with the task, its questions done, and its questions wanted."""


class Scorer(Protocol):
    """A protocol of evaluation: how questions become predictions."""

    @property
    def primary(self) -> str:
        """The metric that counts: a key of `moslora.evaluation.predictions.METRICS`."""

    @property
    def batch_size(self) -> int:
        """Sequences per forward pass."""

    def encode(self, example: Example) -> object:
        """The question as tokens; fails if the protocol cannot score it."""

    def score(self, examples: Sequence[Example], *, alone: bool = False) -> list[Prediction]:
        """Predictions in the order of ``examples``, which make up a block: their order and number decide the
        batches. ``alone``: every sequence by itself, without padding."""


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Mapping[str, Sequence[Example]],
    *,
    protocol: str,
    format: str,
    out: Path | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    beams: int = 1,
    max_length: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    leaks: Leaks | None = None,
    progress: Progress | None = None,
) -> Results:
    """Scores ``model`` on multiple-choice questions.

    Args:
        model: a causal language model in evaluation mode, on its device.
        tokenizer: its tokenizer.
        examples: task -> all its questions, in any order. All of them also under a limit: in low precision
            they decide who shares a batch (`moslora.evaluation.batches`).
        protocol: ``rank``, ``cloze`` or ``generate``.
        format: a key of `moslora.prompts.FORMATS`.
        out: results folder, where an interrupted evaluation of the same settings is continued. ``None``
            leaves nothing on disk.
        limit: questions per task, the first in canonical order; ``None`` for all.
        batch_size: sequences per forward pass (cloze: a sequence is one option).
        beams: of generate, where 1 is greedy; no other protocol reads it.
        max_length: longest sequence in tokens; a longer prompt loses its beginning. ``None`` for the model's context.
        metadata: tells this model from others, and no time of day; JSON values. Kept with the results, and a
            folder made under other metadata is refused.
        leaks: questions that training gave away, without which the results are given as well. No part of the
            settings, as no prediction depends on it. ``None`` where they are not known.
        progress: called after every block.

    Raises:
        UsageError: an unknown protocol or format, no task, a limit below 1, or a folder of other settings.
        MosloraError: a module in training mode, or tasks without questions that the protocol can score.
    """
    refuse_training_mode(model)
    encoder = question_encoder(model, tokenizer, max_length=max_length)
    scorer = make_scorer(protocol, model=model, encoder=encoder, format=format, batch_size=batch_size, beams=beams)
    _refuse_unusable(examples, limit=limit, scorer=scorer)
    dtype = output_weight(model).dtype
    settings = Settings(
        protocol=protocol,
        format=format,
        primary=scorer.primary,
        dtype=str(dtype).removeprefix("torch."),
        batch_size=scorer.batch_size,
        block_size=BLOCK_SIZE,
        beams=beams if protocol == "generate" else None,
        max_length=encoder.max_length,
        data={task: data_hash(questions) for task, questions in examples.items()},
        metadata=metadata or {},
    )
    batched = protocol != "generate"
    # LLM.int8() takes columns with an outlier out of a whole batch: a question's scores depend on its neighbours.
    exact = not batched or (dtype in (torch.float32, torch.float64) and not getattr(model, "is_loaded_in_8bit", False))
    plan = {task: list(blocks(questions, limit=limit, exact=exact)) for task, questions in examples.items()}
    journal = Journal(out, settings)
    with torch.inference_mode():
        for task, task_blocks in plan.items():
            name_task(model, task)
            _score_task(task, task_blocks, scorer=scorer, journal=journal, progress=progress)
        predictions = [journal.predictions[e.id] for part in plan.values() for b in part for e in b.wanted]
        drifts = None
        if batched:
            drifts = {}
            for task, part in plan.items():
                name_task(model, task)
                drifts[task] = _drift(scorer, part, journal)
    results = summarise(settings, predictions, limit=limit, drifts=drifts, leaks=leaks)
    journal.finish(results)
    return results


def question_encoder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None) -> Encoder:
    """For questions of at most ``max_length`` tokens; ``None`` for the model's context."""
    return Encoder(tokenizer, max_length=max_length or context_length(model), key=MAX_LENGTH)


def make_scorer(
    protocol: str, *, model: PreTrainedModel, encoder: Encoder, format: str, batch_size: int, beams: int
) -> Scorer:
    """The object behind a protocol's name.

    Raises:
        UsageError: an unknown protocol or format.
    """
    if format not in FORMATS:
        raise UsageError(f"format {format!r} is none of {', '.join(FORMATS)}")
    match protocol:
        case "rank":
            return Rank(model, encoder, FORMATS[format], batch_size)
        case "cloze":
            return Cloze(model, encoder, FORMATS[format], batch_size)
        case "generate":
            return Generate(model, encoder, FORMATS[format], beams)
    raise UsageError(f"protocol {protocol!r} is none of rank, cloze, generate")


def refuse_training_mode(model: nn.Module) -> None:
    """Dropout would put noise into every score, as it does in the official evaluation on CUDA.

    Raises:
        MosloraError: some module is in training mode.
    """
    training = [name or type(module).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise MosloraError(
            f"{len(training)} modules are in training mode, first {training[0]}: dropout would put noise into"
            " the scores; call model.eval() first"
        )


def _refuse_unusable(examples: Mapping[str, Sequence[Example]], *, limit: int | None, scorer: Scorer) -> None:
    """Tries one question of each task, so that a task that cannot be scored stops now, not in an hour."""
    if not examples:
        raise UsageError("no task is named, so there is nothing to evaluate")
    if limit is not None and limit < 1:
        raise UsageError(f"limit = {limit}: give at least 1 question per task, or no limit")
    faults = []
    for task, questions in examples.items():
        if not questions:
            faults.append(f"task {task}: no questions; check the data source")
        elif len({question.id for question in questions}) < len(questions):
            faults.append(f"task {task}: an id comes twice, so that predictions could not be told apart")
        else:
            try:
                scorer.encode(questions[0])
            except MosloraError as error:
                faults.append(str(error))
    if faults:
        raise UsageError("\n".join(dict.fromkeys(faults)))


def _score_task(
    task: str, task_blocks: Sequence[Block], *, scorer: Scorer, journal: Journal, progress: Progress | None
) -> None:
    total = sum(len(block.wanted) for block in task_blocks)
    done = 0
    for block in task_blocks:
        missing = {example.id for example in block.wanted} - journal.predictions.keys()
        if missing:  # a block begun before a kill is computed whole again: its shapes belong to its results
            journal.append([p for p in scorer.score(block.computed) if p.id in missing])
        done += len(block.wanted)
        if progress is not None:
            progress(task, done, total)


def _drift(scorer: Scorer, task_blocks: Sequence[Block], journal: Journal) -> float:
    """The largest change of a margin between a question alone and in its batch, over a sample of one task.

    Task by task, because the units differ: cloze divides by few characters here and by many there. With d_j the
    change of option j's deciding score, no margin of the question changed by more than max_j d_j − min_j d_j: a
    best option whose margin is larger stays the best.
    """
    drift = 0.0
    for alone in scorer.score(task_blocks[0].wanted[:DRIFT_SAMPLE], alone=True):
        batched = journal.predictions[alone.id].deciding_scores
        changes = [a - b for a, b in zip(alone.deciding_scores, batched, strict=True)]
        drift = max(drift, max(changes) - min(changes))
    return drift
