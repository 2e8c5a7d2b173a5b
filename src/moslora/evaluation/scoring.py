"""What goes through the model: the blocks that have no predictions yet, and a sample to measure the drift."""

import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from moslora.base.sharded import join_uneven_passes
from moslora.console import say
from moslora.evaluation.batches import Block
from moslora.evaluation.journal import Journal
from moslora.evaluation.scorer import Scorer
from moslora.processes.group import all_gather, group_size, rank_in_group
from moslora.progress import Line
from moslora.runs.predictions import Prediction
from moslora.tasks import Example

DRIFT_SAMPLE = (4, 8)
"""Minimum and maximum number of questions per task, one in 32 between them, that are scored again alone, to measure the
noise of batch shapes."""


@dataclass(frozen=True)
class ScoredTask:
    """A task of an evaluation: its questions, what scores them, and the blocks that are scored."""

    name: str
    questions: Sequence[Example]  # all, also under a limit
    scorer: Scorer[Any, Any]
    blocks: tuple[Block, ...]

    @property
    def has_margins(self) -> bool:
        """Whether each answer is the best of several scores."""
        first = self.questions[0]
        if first.is_text or first.is_open_ended:
            return False
        return self.scorer.protocol.scores_options

    @cached_property
    def wanted(self) -> list[Example]:
        """The questions that count."""
        examples: list[Example] = []
        for block in self.blocks:
            examples += block.wanted
        return examples

    @cached_property
    def computed(self) -> list[Example]:
        """The questions that go through the model."""
        examples: list[Example] = []
        for block in self.blocks:
            examples += block.computed
        return examples


@dataclass(frozen=True)
class ScoredBlock:
    """A block with what scores it."""

    scorer: Scorer[Any, Any]
    block: Block
    work: int  # characters that the model reads


def score_missing(tasks: Sequence[ScoredTask], journal: Journal) -> None:
    """Adds the missing predictions of all blocks, and shows how far it is. A process computes whole blocks, as one
    alone would: also one begun before a kill, since its shapes belong to its results."""
    missing = missing_in(tasks, journal)
    rounds = _rounds(tasks, missing)
    began = time.monotonic()
    work = 0
    for together in rounds:
        work += sum(part.work for part in together)
    with Line(work, f"0/{len(missing):,}") as line:
        meter = Meter(line, began, questions=len(missing), work=work)
        for together in rounds:
            _score_together(together, missing, journal)
            meter.work_done += sum(part.work for part in together)
            done = len(missing & journal.predictions.keys())
            meter.show(together[0].block.wanted[0].task, done)


def score_silently(tasks: Sequence[ScoredTask], journal: Journal) -> None:
    """The same, and shows nothing."""
    missing = missing_in(tasks, journal)
    for together in _rounds(tasks, missing):
        _score_together(together, missing, journal)


def missing_in(tasks: Sequence[ScoredTask], journal: Journal) -> set[str]:
    """The ids of the wanted questions without a prediction."""
    missing: set[str] = set()
    for task in tasks:
        missing |= {example.id for example in task.wanted}
    return missing - journal.predictions.keys()


def _rounds(tasks: Sequence[ScoredTask], missing: AbstractSet[str]) -> list[list[ScoredBlock]]:
    """The unfinished blocks, cut into rounds in which each process has at most one."""
    unfinished = _unfinished(tasks, missing)
    processes = group_size()
    if processes > 1:  # blocks of about the same work together, so that no process waits long
        unfinished.sort(key=lambda part: -part.work)
    return [unfinished[first : first + processes] for first in range(0, len(unfinished), processes)]


def _unfinished(tasks: Sequence[ScoredTask], missing: AbstractSet[str]) -> list[ScoredBlock]:
    """The blocks with a question that is ``missing``."""
    found = []
    for task in tasks:
        for block in task.blocks:
            if any(example.id in missing for example in block.wanted):
                work = sum(task.scorer.work(example) for example in block.computed)
                found.append(ScoredBlock(task.scorer, block, work))
    return found


def _score_together(together: Sequence[ScoredBlock], missing: AbstractSet[str], journal: Journal) -> None:
    """Scores one block in each process, and adds the predictions of all to the journal of each."""
    rank = rank_in_group()
    own: list[Prediction] = []
    with join_uneven_passes(together[0].scorer.model):
        if rank < len(together):
            part = together[rank]
            scored = part.scorer.score(part.block.computed)
            own = [prediction for prediction in scored if prediction.id in missing]
            journal.append(own)  # before the others are waited for, of which one may be lost
    for other, predictions in enumerate(all_gather(own)):
        if other != rank:
            journal.append(predictions)


@dataclass
class Meter:
    """Shows how far an evaluation is: on the live line, or where there is none in lines."""

    line: Line
    began: float  # seconds of `time.monotonic`
    questions: int
    work: int  # of all blocks
    work_done: int = 0

    def show(self, task: str, done: int) -> None:
        """``done`` questions have a prediction, the last ones of ``task``."""
        seconds = time.monotonic() - self.began
        self.line.show(self.work_done, f"{task} {done:,}/{self.questions:,}", f"{done / seconds:.1f} questions/s")
        if not self.line.disable:
            return
        text = f"  {task}: {done:,}/{self.questions:,} questions"
        if done < self.questions:
            left = seconds / 60 * (self.work / self.work_done - 1)
            text += f", about {left:.1f} min left"
        say(text)


def measure_drifts(tasks: Sequence[ScoredTask], journal: Journal) -> dict[str, float]:
    """Each task's drift: the largest change of a margin between a question alone and in its batch, over a sample.

    Task by task, because the units differ: cloze divides by few characters here and by many there. With d_j the
    change of option j's deciding score, no margin of the question changed by more than max_j d_j − min_j d_j: a
    best option whose margin is larger stays the best. The tasks are shared out among the processes.
    """
    if not tasks:
        return {}
    own = tasks[rank_in_group() :: group_size()]
    drifts = {}
    with join_uneven_passes(tasks[0].scorer.model), Line(len(own), f"close calls 0/{len(own)}") as line:
        for number, task in enumerate(own, start=1):
            drifts[task.name] = _drift(task, journal)
            line.show(number, f"close calls {number}/{len(own)}")
    of_all: dict[str, float] = {}
    for found in all_gather(drifts):
        of_all |= found
    return of_all


def _drift(task: ScoredTask, journal: Journal) -> float:
    least, most = DRIFT_SAMPLE
    count = min(max(len(task.wanted) // 32, least), most)
    largest = 0.0
    for alone in task.scorer.score(task.blocks[0].wanted[:count], alone=True):
        batched = journal.predictions[alone.id].deciding_scores
        changes = [score - before for score, before in zip(alone.deciding_scores, batched, strict=True)]
        largest = max(largest, max(changes) - min(changes))
    return largest
