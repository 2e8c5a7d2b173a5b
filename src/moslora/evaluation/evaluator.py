"""One evaluation from questions to results: cut into blocks, score what is missing, keep, summarise."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.base.adapted import adapters_in
from moslora.base.identity import packages
from moslora.base.own_engine import output_weight
from moslora.console import say
from moslora.data.clusters import find_clusters
from moslora.data.encode import Encoder, encoding
from moslora.data.sources import data_hash
from moslora.errors import MosloraError, UsageError, capped
from moslora.evaluation.batches import Block, batch_budget, block_size, blocks
from moslora.evaluation.journal import Journal
from moslora.evaluation.model import Local, Model, Pairs
from moslora.evaluation.request import Request
from moslora.evaluation.scorers import WRITING, EncodedQuestion, Scorer, make_encoder, make_scorer
from moslora.evaluation.server import Unavailable
from moslora.processes.group import all_gather, group_size, rank_in_group
from moslora.progress import Line
from moslora.prompts.protocols import PROTOCOLS
from moslora.runs.answers import order_key
from moslora.runs.conditions import Conditions, Leaks, LocalModel, ServedModel, TaskRecord
from moslora.runs.predictions import Prediction
from moslora.runs.results import Results, summarise
from moslora.tasks import Example
from moslora.tasks.clusters import Clusters, known_clusters
from moslora.version import __version__

DRIFT_SAMPLE = (4, 8)
"""Minimum and maximum number of questions per task, one in 32 between them, that are scored again alone, to measure the
noise of batch shapes."""


@dataclass(frozen=True)
class ScoredTask:
    """A task of an evaluation: its questions, what asks them, and the blocks that are asked."""

    name: str
    questions: Sequence[Example]  # all, also under a limit
    scorer: Scorer[Any]
    blocks: tuple[Block, ...]

    @property
    def has_margins(self) -> bool:
        """Whether each answer is the best of several scores."""
        return self.scorer.protocol.scores_options and not self.questions[0].is_text

    @cached_property
    def wanted(self) -> list[Example]:
        """The questions that count."""
        return [example for block in self.blocks for example in block.wanted]

    @cached_property
    def computed(self) -> list[Example]:
        """The questions that go through the model."""
        return [example for block in self.blocks for example in block.computed]


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Mapping[str, Sequence[Example]],
    request: Request,
    *,
    out: Path | None = None,
    leaks: Mapping[str, Leaks] | None = None,
) -> Results:
    """Scores ``model``, whole or sharded, on questions and texts, shared out among the processes. All return the same
    results.

    Args:
        questions: task -> all its questions, in any order, also under a limit: in low precision they decide which
            share a batch (`moslora.evaluation.batches`).
        request: how they are asked; its source is not read here.
        out: results folder, where an earlier evaluation of the same conditions is continued; ``None`` for none.
        leaks: questions that its training gave away, by task; a task that is missing is unknown.

    Returns:
        The results of the questions asked; those in ``out`` are of earlier evaluations as well.

    Raises:
        UsageError: questions that the protocol cannot score, or a folder of other conditions.
        MosloraError: a module in training mode.
    """
    asked = ModelWithQuestions.of(model, tokenizer, questions, request)
    return asked.prepared.answer(asked.model, asked.prepared.open_journal(out, leaks or {}))


@dataclass(frozen=True)
class PreparedQuestions:
    """Questions that were checked and cut into blocks, to be asked of a model as often as it is wanted.

    Attributes:
        conditions: on which the predictions depend.
        encoder: of the questions.
        tasks: each with its blocks, and with its own scorer.
    """

    conditions: Conditions
    encoder: Encoder
    tasks: tuple[ScoredTask, ...]

    @classmethod
    def of(
        cls, questions: Mapping[str, Sequence[Example]], request: Request, encoder: Encoder, conditions: Conditions
    ) -> "PreparedQuestions":
        """Arguments and errors as in `evaluate`."""
        empty = [task for task, rows in questions.items() if not rows]
        if empty:
            raise UsageError(f"{', '.join(empty)}: no questions, as the source's split is empty; choose other --tasks")
        by = conditions.answered_by
        tasks = []
        for name, rows in questions.items():
            skip = request.skipped(name)
            if skip >= len(rows):
                raise UsageError(f"evaluation.skip: leaves none of the {len(rows)} questions of {name}")
            scorer = make_scorer(rows[0], encoder, request)
            size = len(rows)  # of a server, whose batches are its own
            if isinstance(by, LocalModel):
                size = block_size(by.device, writes=scorer.protocol.writes)
            cut = blocks(rows, limit=request.limit, skip=skip, exact=by.is_exact, size=size)
            tasks.append(ScoredTask(name, rows, scorer, tuple(cut)))
        _refuse_unusable(tasks)
        return cls(conditions, encoder, tuple(tasks))

    def only(self, ids: Collection[str]) -> "PreparedQuestions":
        """Return a copy that asks only the questions with these ids."""
        tasks = []
        for task in self.tasks:
            wanted = tuple(example for example in task.wanted if example.id in ids)
            tasks.append(replace(task, blocks=(Block(wanted, wanted),)))
        return replace(self, tasks=tuple(tasks))

    def in_order(self) -> "PreparedQuestions":
        """Return a copy whose blocks follow the order of the questions, so that more questions behind them change no
        block but the last."""
        tasks = []
        for task in self.tasks:
            size = len(task.blocks[0].computed)
            cut = [tuple(task.questions[first : first + size]) for first in range(0, len(task.questions), size)]
            tasks.append(replace(task, blocks=tuple(Block(block, block) for block in cut)))
        return replace(self, tasks=tuple(tasks))

    def open_journal(self, out: Path | None, leaks: Mapping[str, Leaks]) -> Journal:
        """The journal in ``out``, with the records of these tasks. The first process writes it; the others keep what it
        has read in memory."""
        journal = Journal(out if rank_in_group() == 0 else None, self.conditions)
        journal.header, journal.predictions = all_gather((journal.header, journal.predictions))[0]
        journal.record({task.name: self._record(task, journal, leaks.get(task.name)) for task in self.tasks})
        return journal

    def encoded(self) -> list[EncodedQuestion]:
        """The wanted questions as tokens, task after task."""
        return [task.scorer.encode(example) for task in self.tasks for example in task.wanted]

    def missing(self, journal: Journal) -> list[Pairs]:
        """The wanted questions without a prediction."""
        missing = missing_in(self.tasks, journal)
        if not missing:
            return []
        return [question.pairs for question in self.encoded() if question.example.id in missing]

    def answer(self, model: Model, journal: Journal) -> Results:
        """Ask a model what is missing in the journal, and return the results of all wanted questions.

        Raises:
            MosloraError: a server answers no question.
        """
        predictions = self.complete(model, journal)
        if model.alone is not None:
            drifts = measure_drifts([task for task in self.tasks if task.has_margins], model.alone, journal)
            known = journal.header.tasks
            largest = {name: max(drifts[name], known[name].drift or 0.0) for name in drifts}  # also of more questions
            journal.record({name: replace(known[name], drift=drift) for name, drift in largest.items()})
        journal.finish()
        return summarise(self.conditions, predictions, journal.header.tasks)

    def complete(self, model: Model, journal: Journal) -> tuple[Prediction, ...]:
        """Ask a model what is missing in the journal, and return the predictions of all wanted questions.

        Raises:
            MosloraError: a server answers no question.
        """
        score_missing(self.tasks, model, journal)
        predictions = self.predictions(journal)
        if all(prediction.refused for prediction in predictions):
            raise MosloraError(f"no question was answered: {predictions[0].refused}")
        return predictions

    def ask(self, model: Model) -> tuple[Prediction, ...]:
        """Score the model as it is now, silently, and keep nothing. The processes share the questions, and all return
        the same predictions."""
        journal = Journal(None, self.conditions)
        score_missing(self.tasks, model, journal, silently=True)
        return self.predictions(journal)

    def predictions(self, journal: Journal) -> tuple[Prediction, ...]:
        """Those of the wanted questions, task after task."""
        return tuple(journal.predictions[example.id] for task in self.tasks for example in task.wanted)

    def _record(self, task: ScoredTask, journal: Journal, leaks: Leaks | None) -> TaskRecord:
        """What is known of a task before it is asked: its leaks, how many questions count as asked, and the clusters of
        those that are asked now or have been.

        Where a larger evaluation was interrupted, and what it has answered is not the beginning of the fixed order, its
        number stays: a server may answer short questions first, which are no random sample.
        """
        then = journal.header.tasks.get(task.name, TaskRecord())
        ordered = sorted([example.id for example in task.questions], key=order_key)
        answered = {example.id for example in task.wanted} | (journal.predictions.keys() & set(ordered))
        count = len(task.wanted)
        first = self.conditions.skipped.get(task.name, 0)
        if answered != set(ordered[first : first + len(answered)]):
            count = max(count, then.asked or 0)
        clusters = {id: first for id, first in self.clusters[task.name].items() if id in answered}
        return replace(then, leaks=leaks or then.leaks, asked=count, clusters=clusters)

    @cached_property
    def clusters(self) -> dict[str, Clusters]:
        """Those of each task's questions: of a test set they are known by its hash, of others their texts tell."""
        clusters = {}
        for task in self.tasks:
            known = known_clusters().get(self.conditions.data[task.name])
            clusters[task.name] = find_clusters(task.questions) if known is None else known
        return clusters

    @property
    def wanted_count(self) -> int:
        """Number of questions that are wanted."""
        return sum(len(task.wanted) for task in self.tasks)


@dataclass(frozen=True)
class ModelWithQuestions:
    """A model in memory, and questions that it is asked as often as its weights change."""

    model: Local
    prepared: PreparedQuestions

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: Mapping[str, Sequence[Example]],
        request: Request,
    ) -> "ModelWithQuestions":
        """Arguments and errors as in `evaluate`."""
        local = Local(model, tokenizer, request.batch_tokens or batch_budget(model.device))
        encoder = make_encoder(model.config, tokenizer, request)
        answered_by = LocalModel(
            dtype=str(output_weight(model).dtype).removeprefix("torch."),
            device=model.device.type,
            batch_tokens=local.batch_tokens,
            block_size=block_size(model.device.type, writes=PROTOCOLS[request.protocol].writes),
            quantization="int8" if getattr(model, "is_loaded_in_8bit", False) else None,
        )
        quantized = getattr(model.config, "quantization_config", None) is not None  # also where it is shared out
        versions = packages(*adapters_in(model).packages, quantized=quantized)
        conditions = conditions_of(request, questions, encoder, answered_by, versions)
        return cls(local, PreparedQuestions.of(questions, request, encoder, conditions))

    def ask(self) -> tuple[Prediction, ...]:
        """Score the model as it is now. All processes return the same predictions."""
        return self.prepared.ask(self.model)


def conditions_of(
    request: Request,
    questions: Mapping[str, Sequence[Example]],
    encoder: Encoder,
    answered_by: LocalModel | ServedModel,
    versions: Mapping[str, str],
) -> Conditions:
    """Return the conditions under which ``questions`` are asked; ``versions`` are those of packages that compute."""
    writes = PROTOCOLS[request.protocol].writes
    return Conditions(
        protocol=request.protocol,
        format=request.format,
        max_length=encoder.max_length,
        data={task: data_hash(rows) for task, rows in questions.items()},
        skipped={task: request.skipped(task) for task in questions if request.skipped(task)},
        answered_by=answered_by,
        source=request.source,
        beams=request.beams if writes else None,
        writing={**WRITING, "num_beams": request.beams} if writes else None,
        encoding=encoding(encoder, request.format),
        versions={"moslora": __version__, **versions},  # no hash of the code, which would change with every commit
    )


Work = tuple[ScoredTask, Sequence[Example]]
"""Questions of a task that are asked together."""


def score_missing(tasks: Sequence[ScoredTask], model: Model, journal: Journal, *, silently: bool = False) -> None:
    """Add the missing predictions of all blocks, in rounds in which each process has at most one, and show progress.

    A model whose shapes decide its results computes whole blocks, also one begun before a kill.

    Raises:
        Unavailable: a server does not answer; what it has answered is kept.
    """
    missing = missing_in(tasks, journal)
    work: list[Work] = []
    for task in tasks:
        for block in task.blocks:
            if any(example.id in missing for example in block.wanted):
                work.append((task, [each for each in block.computed if model.alone or each.id in missing]))
    began = time.monotonic()
    with Line(0 if silently else len(missing), f"0/{len(missing):,}") as line:
        try:
            for task, of_round in rounds(work, model):
                for predictions in of_round:
                    journal.keep([prediction for prediction in predictions if prediction.id in missing])
                    count = len(missing & journal.predictions.keys())
                    a_second = count / (time.monotonic() - began)
                    done = f"{task.name} {count:,}/{len(missing):,}"
                    line.show(count, done, f"{a_second:.1f} questions/s")
                if line.disable and not silently:
                    say(f"  {done} questions, about {(len(missing) - count) / a_second / 60:.1f} min left")
        except Unavailable as fault:
            wanted = [example.id for task in tasks for example in task.wanted]
            kept = len(journal.predictions.keys() & set(wanted))
            raise Unavailable(
                f"{fault}; {kept} of {len(wanted)} questions answered and kept: the same command goes on; --at-once 1"
                " asks for one prompt at a time, which some servers need"
            ) from None


def missing_in(tasks: Sequence[ScoredTask], journal: Journal) -> set[str]:
    """The ids of the wanted questions without a prediction."""
    return {example.id for task in tasks for example in task.wanted} - journal.predictions.keys()


def rounds(work: Sequence[Work], model: Model) -> Iterator[tuple[ScoredTask, Iterable[list[Prediction]]]]:
    """Ask a model in rounds, in which each process has at most one part of the ``work``: the first task of each round,
    and the predictions of all processes as they come.

    A round is started before the one before it is waited for, so that a GPU never waits for the host.
    """
    processes = group_size()
    rank = rank_in_group()
    before = None
    for first in range(0, len(work), processes):
        together = work[first : first + processes]
        task, examples = together[rank] if rank < len(together) else (together[0][0], [])
        started = together[0][0], task.scorer.start(examples, model)
        if before is not None:
            yield before[0], _of_all(before[1]())
        before = started
    if before is not None:
        yield before[0], _of_all(before[1]())


def _of_all(own: Iterable[list[Prediction]]) -> Iterator[list[Prediction]]:
    """The predictions of this process, before the others are waited for, of which one may be lost; then theirs."""
    kept = []
    for predictions in own:
        yield predictions
        kept += predictions
    for rank, predictions in enumerate(all_gather(kept)):
        if rank != rank_in_group():
            yield predictions


def measure_drifts(tasks: Sequence[ScoredTask], model: Model, journal: Journal) -> dict[str, float]:
    """Each task's drift: the largest change of a margin between a question alone and in its batch, over a sample.

    Task by task, because the units differ: cloze divides by few characters here and by many there. With d_j the
    change of option j's deciding score, no margin of the question changed by more than max_j d_j − min_j d_j: a
    best option whose margin is larger stays the best. The tasks are shared out among the processes. ``model`` computes
    each question by itself.
    """
    least, most = DRIFT_SAMPLE
    work: list[Work] = []
    for task in tasks:
        count = min(max(len(task.wanted) // 32, least), most)
        work.append((task, task.blocks[0].wanted[:count]))
    drifts = {task.name: 0.0 for task in tasks}
    for _, of_round in rounds(work, model):
        for alone in (prediction for predictions in of_round for prediction in predictions):
            batched = journal.predictions[alone.id].deciding_scores
            changes = [score - before for score, before in zip(alone.deciding_scores, batched, strict=True)]
            drifts[alone.task] = max(drifts[alone.task], max(changes) - min(changes))
    return drifts


def _refuse_unusable(tasks: Sequence[ScoredTask]) -> None:
    """Tries those questions that decide about all others, so that what cannot be scored stops now, not in an hour."""
    faults: dict[str, None] = {}
    for task in tasks:
        try:
            for example in task.scorer.to_try(task.computed):
                task.scorer.encode(example)
        except MosloraError as error:
            faults[str(error)] = None
    if faults:
        raise UsageError(capped(faults))
