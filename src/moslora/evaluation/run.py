"""One evaluation from questions to results: order, score block by block, keep, summarise."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.base.engine import output_weight
from moslora.base.identity import packages
from moslora.base.sharded import join_uneven_passes
from moslora.console import say
from moslora.data.encode import encoding
from moslora.data.sources import data_hash
from moslora.errors import MosloraError, UsageError, capped
from moslora.evaluation.batches import Block, blocks, canonical_place
from moslora.evaluation.journal import Journal
from moslora.evaluation.results import Results, summarise
from moslora.evaluation.scorer import Request, Scorer
from moslora.evaluation.scorers import make_scorer
from moslora.evaluation.texts import Texts
from moslora.processes.group import all_gather, group_size, rank_in_group
from moslora.progress import Line
from moslora.runs.predictions import Prediction
from moslora.runs.settings import Leaks, Settings, TaskRecord
from moslora.tasks import Example
from moslora.version import __version__

DRIFT_SAMPLE = (4, 8)
"""Least and most questions of each task, one in 32 between, scored once more alone: do the shapes move a margin?"""


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Mapping[str, Sequence[Example]],
    request: Request,
    *,
    out: Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    leaks: Mapping[str, Leaks] | None = None,
) -> Results:
    """Scores ``model``, whole or sharded, on multiple-choice questions and texts, shared out among the processes. All
    return the same results.

    Args:
        questions: task -> all its questions, in any order, also under a limit: in low precision they decide which
            share a batch (`moslora.evaluation.batches`).
        request: how they are asked; its source is not read here.
        out: results folder, where an earlier evaluation of the same settings is continued; ``None`` for none.
        metadata: tells this model from others; JSON values. A folder made under other metadata is refused.
        leaks: questions that training gave away, by task; ``None`` where they are unknown.

    Returns:
        The results of the questions asked; those in ``out`` are of earlier evaluations as well.

    Raises:
        UsageError: questions that the protocol cannot score, or a folder of other settings.
        MosloraError: a module in training mode.
    """
    if training := [name or type(module).__name__ for name, module in model.named_modules() if module.training]:
        raise MosloraError(
            f"{len(training)} modules are in training mode, first {training[0]}: dropout would add noise to the scores;"
            " call model.eval() first"
        )
    refuse_empty(questions)
    scorer = make_scorer(model, tokenizer, request)
    texts = Texts(scorer.model, scorer.encoder, scorer.format, scorer.batch_tokens)
    scorers = {task: texts if rows[0].is_text else scorer for task, rows in questions.items()}
    settings = _settings(scorer, request, questions, metadata or {})
    # LLM.int8() takes columns with an outlier out of a whole batch: a question's scores depend on its neighbours.
    exact = settings.dtype in ("float32", "float64") and not getattr(model, "is_loaded_in_8bit", False)
    plan = {
        task: list(blocks(rows, limit=request.limit, exact=exact, size=scorers[task].block_size))
        for task, rows in questions.items()
    }
    _refuse_unusable(plan, scorers)
    task_blocks = [(scorers[task], block) for task, of_task in plan.items() for block in of_task]
    journal = Journal(out if rank_in_group() == 0 else None, settings)
    journal.head, journal.predictions = all_gather((journal.head, journal.predictions))[0]
    wanted = {task: [example for block in of_task for example in block.wanted] for task, of_task in plan.items()}
    asked = {task: _asked(journal, questions[task], of_task) for task, of_task in wanted.items()}
    journal.record({task: TaskRecord(leaks=(leaks or {}).get(task), asked=asked[task]) for task in questions})
    _score(task_blocks, journal)
    if scorer.protocol.scores_options:  # else there are no margins, and texts have none
        plan = {task: its for task, its in plan.items() if scorers[task] is scorer}
        journal.record({task: TaskRecord(drift=drift) for task, drift in _drifts(plan, scorer, journal).items()})
    journal.finish()
    answers = [journal.predictions[example.id] for _, block in task_blocks for example in block.wanted]
    return summarise(settings, answers, journal.head.tasks)


def _settings(
    scorer: Scorer[Any, Any], request: Request, questions: Mapping[str, Sequence[Example]], metadata: Mapping[str, Any]
) -> Settings:
    model: Any = scorer.model
    quantized = getattr(model.config, "quantization_config", None) is not None  # also where it is shared out
    return Settings(
        protocol=request.protocol,
        format=request.format,
        primary=scorer.protocol.primary,
        dtype=str(output_weight(scorer.model).dtype).removeprefix("torch."),
        batch_tokens=scorer.batch_tokens,
        block_size=scorer.block_size,
        beams=request.beams if scorer.protocol.writes else None,
        writing=scorer.writing,
        max_length=scorer.encoder.max_length,
        data={task: data_hash(rows) for task, rows in questions.items()},
        metadata=metadata,
        made_with={  # no hash of the code, which would change with every commit
            "moslora": __version__,
            **packages(quantized=quantized, peft=hasattr(model, "peft_config")),
            **encoding(scorer.encoder.tokenizer, request.format),
        },
    )


def refuse_empty(questions: Mapping[str, Sequence[Example]]) -> None:
    """Refuses tasks of which the source has no question."""
    if empty := [task for task, rows in questions.items() if not rows]:
        raise UsageError(f"{', '.join(empty)}: no question to ask, the source's split is empty; choose other --tasks")


def _refuse_unusable(plan: Mapping[str, Sequence[Block]], scorers: Mapping[str, Scorer[Any, Any]]) -> None:
    """Tries those questions that decide about all others, so that what cannot be scored stops now, not in an hour."""
    faults = []
    for task, of_task in plan.items():
        scorer, asked = scorers[task], [example for block in of_task for example in block.computed]
        for example in scorer.to_try(asked):
            try:
                scorer.encode(example)
            except MosloraError as error:
                faults.append(str(error))
    if faults:
        raise UsageError(capped(list(dict.fromkeys(faults))))


def _asked(journal: Journal, questions: Sequence[Example], wanted: Sequence[Example]) -> int:
    """The number of a task's questions that count as asked: those that are ``wanted`` now.

    Where a larger evaluation was interrupted, and what it has answered is not the beginning of the canonical order, its
    number stays: several processes begin with the longest questions, which are no random sample.
    """
    before = journal.head.tasks.get(questions[0].task, TaskRecord()).asked
    if before is None or before <= len(wanted):
        return len(wanted)
    there = {example.id for example in wanted}
    there |= {example.id for example in questions if example.id in journal.predictions}
    ordered = sorted((example.id for example in questions), key=canonical_place)
    return len(wanted) if there == {*ordered[: len(there)]} else before


def _score(task_blocks: Sequence[tuple[Scorer[Any, Any], Block]], journal: Journal) -> None:
    """Adds the missing predictions of all blocks. A process computes whole blocks, as one alone would: also one begun
    before a kill, since its shapes belong to its results."""
    rank = rank_in_group()
    processes = group_size()
    missing = {example.id for _, block in task_blocks for example in block.wanted} - journal.predictions.keys()
    asked = [(scorer, block) for scorer, block in task_blocks if missing & {example.id for example in block.wanted}]
    unfinished = [(sum(map(scorer.work, block.computed)), scorer, block) for scorer, block in asked]
    if processes > 1:  # blocks of about the same work together, so that no process waits long
        unfinished.sort(key=lambda each: -each[0])
    began, worked, total, of = time.monotonic(), 0, sum(work for work, *_ in unfinished), f"{len(missing):,}"
    with Line(total, f"0/{of}") as line:
        for first in range(0, len(unfinished), processes):
            together, own = unfinished[first : first + processes], list[Prediction]()
            with join_uneven_passes(together[0][1].model):
                for _, scorer, block in together[rank : rank + 1]:
                    own = [prediction for prediction in scorer.score(block.computed) if prediction.id in missing]
                    journal.append(own)  # before the others are waited for, of which one may be lost
            for other, predictions in enumerate(all_gather(own)):
                if other != rank:
                    journal.append(predictions)
            worked += sum(work for work, *_ in together)
            task, done = together[0][2].wanted[0].task, len(missing & journal.predictions.keys())
            seconds = time.monotonic() - began
            line.show(worked, f"{task} {done:,}/{of}", f"{done / seconds:.1f} questions/s")
            rest = f", about {seconds / 60 * (total / worked - 1):.1f} min left" if done < len(missing) else ""
            if line.disable:
                say(f"  {task}: {done:,}/{of} questions{rest}")


def _drifts(plan: Mapping[str, Sequence[Block]], scorer: Scorer[Any, Any], journal: Journal) -> dict[str, float]:
    """Each task's drift: the largest change of a margin between a question alone and in its batch, over a sample.

    Task by task, because the units differ: cloze divides by few characters here and by many there. With d_j the
    change of option j's deciding score, no margin of the question changed by more than max_j d_j − min_j d_j: a
    best option whose margin is larger stays the best. The tasks are shared out among the processes.
    """
    rank = rank_in_group()
    processes = group_size()
    own = dict.fromkeys(list(plan)[rank::processes], 0.0)
    with join_uneven_passes(scorer.model), Line(len(own), f"close calls 0/{len(own)}") as line:
        for number, task in enumerate(own, start=1):
            count = min(max(sum(len(block.wanted) for block in plan[task]) // 32, DRIFT_SAMPLE[0]), DRIFT_SAMPLE[1])
            for alone in scorer.score(plan[task][0].wanted[:count], alone=True):
                batched = journal.predictions[alone.id].deciding_scores
                changes = [a - b for a, b in zip(alone.deciding_scores, batched, strict=True)]
                own[task] = max(own[task], max(changes) - min(changes))
            line.show(number, f"close calls {number}/{len(own)}")
    return {task: drift for each in all_gather(own) for task, drift in each.items()}
