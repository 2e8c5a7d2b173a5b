"""What goes through the model: the blocks that have no predictions yet, and a sample to measure the drift."""

import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
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


TaskBlock = tuple[ScoredTask, Block]
"""A block with its task."""


def score_missing(tasks: Sequence[ScoredTask], journal: Journal, *, silently: bool = False) -> None:
    """Adds the missing predictions of all blocks, in rounds in which each process has at most one, and shows how far it
    is. A process computes whole blocks, as one alone would: also one begun before a kill, since its shapes belong to
    its results."""
    missing = missing_in(tasks, journal)
    unfinished = []
    for task in tasks:
        for block in task.blocks:
            if any(example.id in missing for example in block.wanted):
                unfinished.append((task, block))
    processes = group_size()
    rounds = [unfinished[first : first + processes] for first in range(0, len(unfinished), processes)]
    began = time.monotonic()
    with Line(0 if silently else len(missing), f"0/{len(missing):,}") as line:
        for together, following in pairwise([*rounds, []]):
            _score_together(together, following, missing, journal)
            count = len(missing & journal.predictions.keys())
            a_second = count / (time.monotonic() - began)
            task, _ = together[0]
            done = f"{task.name} {count:,}/{len(missing):,}"
            line.show(count, done, f"{a_second:.1f} questions/s")
            if line.disable and not silently:
                say(f"  {done} questions, about {(len(missing) - count) / a_second / 60:.1f} min left")


def missing_in(tasks: Sequence[ScoredTask], journal: Journal) -> set[str]:
    """The ids of the wanted questions without a prediction."""
    return {example.id for task in tasks for example in task.wanted} - journal.predictions.keys()


def _score_together(
    together: Sequence[TaskBlock], following: Sequence[TaskBlock], missing: AbstractSet[str], journal: Journal
) -> None:
    """Scores one block in each process, and adds the predictions of all to the journal of each. Those ``following`` are
    encoded meanwhile."""
    rank = rank_in_group()
    own: list[Prediction] = []
    with join_uneven_passes(together[0][0].scorer.model):
        if rank < len(together):
            task, block = together[rank]
            upcoming: Sequence[Example] = ()
            if rank < len(following) and following[rank][0].scorer is task.scorer:
                upcoming = following[rank][1].computed
            scored = task.scorer.score(block.computed, following=upcoming)
            own = [prediction for prediction in scored if prediction.id in missing]
            journal.keep(own)  # before the others are waited for, of which one may be lost
    for other, predictions in enumerate(all_gather(own)):
        if other != rank:
            journal.keep(predictions)


def measure_drifts(tasks: Sequence[ScoredTask], journal: Journal) -> dict[str, float]:
    """Each task's drift: the largest change of a margin between a question alone and in its batch, over a sample.

    Task by task, because the units differ: cloze divides by few characters here and by many there. With d_j the
    change of option j's deciding score, no margin of the question changed by more than max_j d_j − min_j d_j: a
    best option whose margin is larger stays the best. The tasks are shared out among the processes.
    """
    if not tasks:
        return {}
    with join_uneven_passes(tasks[0].scorer.model):
        drifts = {task.name: _drift(task, journal) for task in tasks[rank_in_group() :: group_size()]}
    return {name: drift for of_process in all_gather(drifts) for name, drift in of_process.items()}


def _drift(task: ScoredTask, journal: Journal) -> float:
    least, most = DRIFT_SAMPLE
    count = min(max(len(task.wanted) // 32, least), most)
    largest = 0.0
    for alone in task.scorer.score(task.blocks[0].wanted[:count], alone=True):
        batched = journal.predictions[alone.id].deciding_scores
        changes = [score - before for score, before in zip(alone.deciding_scores, batched, strict=True)]
        largest = max(largest, max(changes) - min(changes))
    return largest
