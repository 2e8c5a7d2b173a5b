"""What a model is asked: the blocks that have no predictions yet, and a sample to measure the drift."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from moslora.console import say
from moslora.evaluation.batches import Block
from moslora.evaluation.journal import Journal
from moslora.evaluation.model import Model
from moslora.evaluation.scorer import Scorer
from moslora.evaluation.server import Unavailable
from moslora.processes.group import all_gather, group_size, rank_in_group
from moslora.progress import Line
from moslora.runs.predictions import Prediction
from moslora.tasks import Example

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
