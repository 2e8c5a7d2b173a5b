"""What the answers of a server, of the run, its base and its checkpoints show together."""

from collections.abc import Mapping, Sequence
from typing import Any

from moslora.choices import DType
from moslora.evaluation.scorers import EncodedQuestion
from moslora.runs.conditions import TaskRecord
from moslora.runs.evaluation import Evaluation
from moslora.verify.fit import Centered, centered
from moslora.verify.verdict import Evidence, TextEvidence, tolerance


def by_id(evaluation: Evaluation, column: str) -> dict[str, Any]:
    """A column of `moslora.runs.answers.TaskAnswers` by question, of the tasks that have it."""
    values: dict[str, Any] = {}
    for answers in evaluation.tasks.values():
        values.update(zip(answers.ids, getattr(answers, column), strict=False))
    return values


def evidence(
    questions: Sequence[EncodedQuestion],
    server: Evaluation,
    run: Evaluation,
    *,
    checkpoints: Mapping[str, Evaluation],
    dtype: DType,
) -> Evidence:
    """The evidence in the log-probabilities that the server has told, of these questions; ``run``, its base and its
    ``checkpoints``, by name, have answered all of them."""
    told = by_id(server, "scores")
    asked = [question for question in questions if question.example.id in told]

    def answered(evaluation: Evaluation) -> Centered:
        scores = by_id(evaluation, "scores")
        return centered([scores[question.example.id] for question in asked])

    characters = by_id(run, "characters")
    margins = []  # how far rounding moves each option, by the drift that the evaluation has recorded of its task
    for question in asked:
        drift = run.records.get(question.example.task, TaskRecord()).drift or 0.0
        margins += [drift * divisor for divisor in characters.get(question.example.id, (1,) * len(question.texts))]
    assert run.weights is not None, "a server is compared with a model that answered here"
    return Evidence(
        server=answered(server),
        run=answered(run),
        base=answered(run.base) if run.base else None,
        checkpoints={name: answered(other) for name, other in checkpoints.items()},
        lengths=[question.tokens for question in asked],
        tolerance=tolerance(
            margins=margins,
            tokens=[len(answer) for question in asked for _, answer in question.pairs],
            dtypes=[run.weights.dtype, dtype],
        ),
        dtype=dtype,
    )


def alike(one: Evaluation, other: Evaluation) -> set[str]:
    """The questions of ``one`` that both answer with the same option, or with the same text where it names none. Of
    such texts one may be longer than the other: a run's text ends where its answer is decided."""

    def answers(evaluation: Evaluation) -> dict[str, Any]:
        texts = by_id(evaluation, "text")
        chosen = by_id(evaluation, "chosen")
        return {id: texts[id].strip() if option is None else option for id, option in chosen.items()}

    def same(answer: Any, another: Any) -> bool:
        if answer and another and isinstance(answer, str) and isinstance(another, str):
            return answer.startswith(another) or another.startswith(answer)
        return bool(answer == another)

    theirs = answers(other)
    return {id for id, answer in answers(one).items() if same(answer, theirs[id])}


def text_evidence(server: Evaluation, run: Evaluation) -> TextEvidence:
    """How often a server that writes answers as the run, and as its base."""
    answered = set(by_id(server, "chosen"))
    like_run = alike(server, run)
    if run.base is None:
        return TextEvidence(len(answered), len(like_run))
    like_base = alike(server, run.base)
    differing = answered - alike(run, run.base)
    return TextEvidence(
        len(answered), len(like_run), len(differing), len(differing & like_run), len(differing & like_base)
    )
