"""What the answers of a server, of the run, its base and its checkpoints show together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moslora.choices import DType
from moslora.evaluation.evaluate_server import Asked
from moslora.runs.evaluation import Evaluation
from moslora.runs.settings import TaskRecord
from moslora.verify.fit import Answered, centered
from moslora.verify.verdict import Evidence, TextEvidence, tolerance

Said = int | str
"""The option that a question is answered with, or the text where it names none."""


@dataclass(frozen=True)
class Known:
    """What is known of the answers to the questions of a verification.

    Attributes:
        run: the run's own answers.
        base: those of its base; ``None`` if it has not answered all.
        others: name of a checkpoint -> its answers, where it has answered all.
    """

    run: Evaluation
    base: Evaluation | None
    others: Mapping[str, Evaluation]


def scores_by_id(evaluation: Evaluation) -> dict[str, tuple[float, ...]]:
    """The log-probabilities of each question's options."""
    found: dict[str, tuple[float, ...]] = {}
    for answers in evaluation.tasks.values():
        found.update(zip(answers.ids, answers.scores, strict=bool(answers.scores)))
    return found


def evidence(questions: Sequence[Asked], server: Evaluation, known: Known, *, dtype: DType) -> Evidence:
    """The evidence in the log-probabilities that the server has told, of these questions."""
    told = scores_by_id(server)
    asked = [question for question in questions if question.id in told]

    def answered(evaluation: Evaluation) -> Answered:
        scores = scores_by_id(evaluation)
        return centered([scores[question.id] for question in asked])

    margins = []  # how far rounding moves each option, by the drift that the evaluation has recorded of its task
    for question in asked:
        task = question.example.task
        answers = known.run.tasks[task]
        divisors: Sequence[int] = (1,) * len(question.pairs)
        if answers.characters:
            divisors = answers.characters[answers.ids.index(question.id)]
        drift = known.run.records.get(task, TaskRecord()).drift or 0.0
        margins += [drift * divisor for divisor in divisors]
    tokens = [[len(answer) for _, answer in question.pairs] for question in asked]
    means = np.array([np.mean(of_question) for of_question in tokens])
    return Evidence(
        server=answered(server),
        run=answered(known.run),
        base=answered(known.base) if known.base else None,
        others={name: answered(other) for name, other in known.others.items()},
        lengths=[question.tokens for question in asked],
        scales=np.sqrt(means / means.mean()).tolist(),
        tolerance=tolerance(
            margins=margins,
            tokens=[count for of_question in tokens for count in of_question],
            dtypes=[known.run.settings.dtype, dtype],
        ),
        dtype=dtype,
    )


def alike(one: Evaluation, other: Evaluation) -> set[str]:
    """The questions of ``one`` that both answer with the same option, or with the same text where it names none. Of
    such texts one may be longer than the other: a run's text ends where its answer is decided."""
    said = _said_by_id(other)
    found = set()
    for id, ours in _said_by_id(one).items():
        theirs = said[id]
        if isinstance(ours, str) and isinstance(theirs, str) and ours and theirs:
            is_same = ours.startswith(theirs) or theirs.startswith(ours)
        else:
            is_same = ours == theirs
        if is_same:
            found.add(id)
    return found


def _said_by_id(evaluation: Evaluation) -> dict[str, Said]:
    found: dict[str, Said] = {}
    for answers in evaluation.tasks.values():
        texts = answers.texts or (None,) * len(answers.ids)  # none where options are scored
        for id, option, text in zip(answers.ids, answers.chosen, texts, strict=True):
            found[id] = (text or "").strip() if option is None else option
    return found


def text_evidence(server: Evaluation, known: Known) -> TextEvidence:
    """How often a server that writes answers as the run, and as its base."""
    answered = {id for answers in server.tasks.values() for id in answers.ids}
    like_run = alike(server, known.run)
    if known.base is None:
        return TextEvidence(len(answered), len(like_run))
    like_base = alike(server, known.base)
    differing = answered - alike(known.run, known.base)
    return TextEvidence(
        len(answered), len(like_run), len(differing), len(differing & like_run), len(differing & like_base)
    )
