"""An evaluation from questions to results: cut questions into blocks, score those without a prediction, keep the
predictions, and summarise them. Where a model comes from and where results belong is in
`moslora.evaluation.evaluate_target`."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from moslora.runs.conditions import Conditions, Endpoint, Leaks, TaskRecord, Weights
from moslora.runs.predictions import Prediction
from moslora.runs.results import Results, summarise
from moslora.tasks import Example
from moslora.tasks.clusters import Clusters, known_clusters
from moslora.version import __version__

DRIFT_SAMPLE = (4, 8)
"""Minimum and maximum number of a task's questions that are scored again one by one, to measure the noise of batch
shapes. Between both numbers it is one question in 32."""


@dataclass(frozen=True)
class ScoredTask:
    """A task of an evaluation.

    Attributes:
        name: name of the task.
        questions: all questions of the task, also under a limit.
        scorer: encodes the questions and reads the outputs.
        blocks: questions that are computed together.
        encoded: id -> question, of questions that were encoded before.
    """

    name: str
    questions: Sequence[Example]
    scorer: Scorer[Any]
    blocks: tuple[Block, ...]
    encoded: Mapping[str, EncodedQuestion] = field(default_factory=dict)

    def encode(self, example: Example) -> EncodedQuestion:
        """Encode a question; arguments and errors as in `Scorer.encode`."""
        return self.encoded.get(example.id) or self.scorer.encode(example)

    @property
    def has_margins(self) -> bool:
        """Whether each answer is the best of several scores."""
        return self.scorer.protocol.scores_options and not self.questions[0].is_text

    @cached_property
    def wanted(self) -> list[Example]:
        """Questions whose predictions are kept."""
        return [example for block in self.blocks for example in block.wanted]


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Mapping[str, Sequence[Example]],
    request: Request,
    *,
    out: Path | None = None,
    leaks: Mapping[str, Leaks] | None = None,
) -> Results:
    """Score ``model`` on questions and texts. If there are several processes, they share the questions, and all return
    the same results.

    Args:
        model: a causal language model in evaluation mode, whole or sharded over the processes.
        tokenizer: the model's tokenizer.
        questions: task -> all its questions, in any order, also under a limit: in low precision they decide which
            questions share a batch (`moslora.evaluation.batches`).
        request: settings of the evaluation; its ``source`` is only recorded, as ``questions`` are given.
        out: results folder, in which an earlier evaluation of the same conditions is continued; ``None`` for none.
        leaks: task -> its questions that were among the training rows. For a task without an entry, leaks recorded in
            ``out`` stay, or else they are unknown.

    Returns:
        The results of the questions asked. The files in ``out`` may hold more, from earlier evaluations.

    Raises:
        UsageError: the protocol cannot score the questions, or the folder has other conditions.
        MosloraError: a module is in training mode.
    """
    with_questions = ModelWithQuestions.of(model, tokenizer, questions, request)
    return with_questions.prepared.answer(with_questions.model, with_questions.prepared.open_journal(out, leaks or {}))


@dataclass(frozen=True)
class PreparedQuestions:
    """Questions that are checked and cut into blocks, ready to be asked of a model any number of times.

    Attributes:
        conditions: conditions on which the predictions depend.
        encoder: encoder of the questions.
        tasks: tasks, each with its blocks and its scorer.
    """

    conditions: Conditions
    encoder: Encoder
    tasks: tuple[ScoredTask, ...]

    @classmethod
    def of(
        cls, questions: Mapping[str, Sequence[Example]], request: Request, encoder: Encoder, conditions: Conditions
    ) -> "PreparedQuestions":
        """Check questions and cut them into blocks; arguments and errors as in `evaluate`."""
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
            size = len(rows)  # for a server, which makes its own batches
            if isinstance(by, Weights):
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
        """Return a copy of the questions whose blocks follow their order, so that further questions at the end change
        no block but the last."""
        tasks = []
        for task in self.tasks:
            size = len(task.blocks[0].computed)
            cut = [tuple(task.questions[first : first + size]) for first in range(0, len(task.questions), size)]
            tasks.append(replace(task, blocks=tuple(Block(block, block) for block in cut)))
        return replace(self, tasks=tuple(tasks))

    def open_journal(self, out: Path | None, leaks: Mapping[str, Leaks]) -> Journal:
        """Open the journal in ``out`` and add the records of these tasks. Only the first process reads and writes
        ``out``; the others keep the same predictions in memory."""
        journal = Journal(out if rank_in_group() == 0 else None, self.conditions)
        journal.header, journal.predictions = all_gather((journal.header, journal.predictions))[0]
        journal.record({task.name: self._record(task, journal, leaks.get(task.name)) for task in self.tasks})
        return journal

    def encoded(self) -> list[EncodedQuestion]:
        """Encode the wanted questions, task after task."""
        return [task.encode(example) for task in self.tasks for example in task.wanted]

    def missing(self, journal: Journal) -> list[Pairs]:
        """Encode the wanted questions that have no prediction."""
        missing = missing_in(self.tasks, journal)
        if not missing:
            return []
        return [question.pairs for question in self.encoded() if question.example.id in missing]

    def answer(self, model: Model, journal: Journal) -> Results:
        """Ask a model the questions that are missing in the journal, and return the results of all wanted questions.

        Raises:
            MosloraError: a server answers no question.
        """
        predictions = self.complete(model, journal)
        if model.alone is not None:
            drifts = measure_drifts([task for task in self.tasks if task.has_margins], model.alone, journal)
            records = journal.header.tasks
            largest = {name: max(drifts[name], records[name].drift or 0.0) for name in drifts}
            journal.record({name: replace(records[name], drift=drift) for name, drift in largest.items()})
        journal.finish()
        return summarise(self.conditions, predictions, journal.header.tasks)

    def complete(self, model: Model, journal: Journal, *, silently: bool = False) -> tuple[Prediction, ...]:
        """Ask a model the questions that are missing in the journal, and return the predictions of all wanted
        questions, task after task.

        Raises:
            MosloraError: a server answers no question.
        """
        score_missing(self.tasks, model, journal, silently=silently)
        predictions = tuple(journal.predictions[example.id] for task in self.tasks for example in task.wanted)
        if all(prediction.refused for prediction in predictions):
            raise MosloraError(f"no question was answered: {predictions[0].refused}")
        return predictions

    def ask(self, model: Model) -> tuple[Prediction, ...]:
        """Score a model as it is now, silently, and keep nothing. The processes share the questions, and all return the
        same predictions."""
        return self.complete(model, Journal(None, self.conditions), silently=True)

    def _record(self, task: ScoredTask, journal: Journal, leaks: Leaks | None) -> TaskRecord:
        """Record of a task before it is asked: its leaks, the number of questions that count as asked, and the clusters
        of the questions asked so far.

        If an earlier evaluation asked more questions, its number stays, unless the questions that are wanted or have
        answers are the first ones in the order of `order_key`. Otherwise the answers may be no random sample, because a
        server may answer short questions first.
        """
        earlier = journal.header.tasks.get(task.name, TaskRecord())
        ordered = sorted([example.id for example in task.questions], key=order_key)
        answered = {example.id for example in task.wanted} | (journal.predictions.keys() & set(ordered))
        count = len(task.wanted)
        first = self.conditions.skipped.get(task.name, 0)
        if answered != set(ordered[first : first + len(answered)]):
            count = max(count, earlier.asked or 0)
        clusters = {id: first for id, first in self.clusters[task.name].items() if id in answered}
        return replace(earlier, leaks=leaks or earlier.leaks, asked=count, clusters=clusters)

    @cached_property
    def clusters(self) -> dict[str, Clusters]:
        """Clusters of each task's questions. The published test sets have stored clusters, found by the set's hash."""
        clusters = {}
        for task in self.tasks:
            stored = known_clusters().get(self.conditions.data[task.name])
            clusters[task.name] = find_clusters(task.questions) if stored is None else stored
        return clusters

    @property
    def wanted_count(self) -> int:
        """Number of wanted questions."""
        return sum(len(task.wanted) for task in self.tasks)


@dataclass(frozen=True)
class ModelWithQuestions:
    """A model in memory, with questions that it is asked each time its weights have changed."""

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
        """Prepare questions for a model in memory; arguments and errors as in `evaluate`."""
        local = Local(model, tokenizer, request.batch_tokens or batch_budget(model.device))
        encoder = make_encoder(model.config, tokenizer, request)
        answered_by = Weights(
            dtype=str(output_weight(model).dtype).removeprefix("torch."),
            device=model.device.type,
            batch_tokens=local.batch_tokens,
            block_size=block_size(model.device.type, writes=PROTOCOLS[request.protocol].writes),
            quantization="int8" if getattr(model, "is_loaded_in_8bit", False) else None,
        )
        quantized = getattr(model.config, "quantization_config", None) is not None  # also if the model is sharded
        versions = packages(*adapters_in(model).packages, quantized=quantized)
        conditions = conditions_of(request, questions, encoder, answered_by, versions)
        return cls(local, PreparedQuestions.of(questions, request, encoder, conditions))

    def ask(self) -> tuple[Prediction, ...]:
        """Score the model as it is now; all processes return the same predictions."""
        return self.prepared.ask(self.model)


def conditions_of(
    request: Request,
    questions: Mapping[str, Sequence[Example]],
    encoder: Encoder,
    answered_by: Weights | Endpoint,
    versions: Mapping[str, str],
) -> Conditions:
    """Return the conditions of an evaluation; ``versions`` has the version of each package that computes."""
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
"""A task with questions of it that are asked together."""


def score_missing(tasks: Sequence[ScoredTask], model: Model, journal: Journal, *, silently: bool = False) -> None:
    """Ask the questions without a prediction, keep their predictions, and show progress.

    A block of a local model is always computed as a whole, because in low precision shapes decide its results.

    Raises:
        Unavailable: the server does not answer; its answers so far are kept.
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
            raise Unavailable(
                f"{fault}; {len(journal.predictions):,} answers are kept, and the same command goes on; --at-once 1"
                " sends one prompt at a time, which some servers need"
            ) from None


def missing_in(tasks: Sequence[ScoredTask], journal: Journal) -> set[str]:
    """Ids of the wanted questions that have no prediction."""
    return {example.id for task in tasks for example in task.wanted} - journal.predictions.keys()


def rounds(work: Sequence[Work], model: Model) -> Iterator[tuple[ScoredTask, Iterable[list[Prediction]]]]:
    """Ask a model in rounds of one item of ``work`` per process. Yield for each round the task of its first item, and
    the predictions of all processes as they arrive.

    Each round is started before its predecessor is waited for, so that a GPU never waits for the host.
    """
    processes = group_size()
    rank = rank_in_group()
    started = []
    for first in range(0, len(work), processes):
        together = work[first : first + processes]
        task, examples = together[rank] if rank < len(together) else (together[0][0], [])
        started.append((together[0][0], task.scorer.start([*map(task.encode, examples)], model)))
        if len(started) > 1:
            of_round, predictions = started.pop(0)
            yield of_round, _from_all(predictions())
    for of_round, predictions in started:
        yield of_round, _from_all(predictions())


def _from_all(own: Iterable[list[Prediction]]) -> Iterator[list[Prediction]]:
    """Yield the predictions of this process first, since another process may be lost, and then those of the others."""
    kept = []
    for predictions in own:
        yield predictions
        kept += predictions
    for rank, predictions in enumerate(all_gather(kept)):
        if rank != rank_in_group():
            yield predictions


def measure_drifts(tasks: Sequence[ScoredTask], model: Model, journal: Journal) -> dict[str, float]:
    """Drift of each task: the largest change of a margin between a question alone and in its batch, over a sample.

    Each task has its own drift, because ``cloze`` divides scores by the number of characters. With d_j the change of
    option j's deciding score, no margin of the question changed by more than max_j d_j − min_j d_j: a best option with
    a larger margin stays the best. The processes share the tasks. ``model`` computes each question by itself.
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
    """Refuse tasks that cannot be scored before anything is computed.

    Encoded are: for each number of options, which decides the labels of ``choice``, the question with the longest text,
    which may leave no room for a prompt; and of each task the question with the shortest text, which may leave nothing
    to predict. If these can be encoded, all others most likely can.
    """
    faults: dict[str, None] = {}
    for task in tasks:
        computed = [example for block in task.blocks for example in block.computed]
        by_length = sorted(computed, key=lambda example: max(map(len, (example.question, *example.choices))))
        longest = {len(example.choices): example for example in by_length}
        try:
            for example in (*longest.values(), by_length[0]):
                task.scorer.encode(example)
        except MosloraError as error:
            faults[str(error)] = None
    if faults:
        raise UsageError(capped(faults))
