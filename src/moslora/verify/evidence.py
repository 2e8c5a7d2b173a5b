"""Evidence on what a server computes: its answers beside those of the run, of its base and of its checkpoints."""

from collections.abc import Mapping, Sequence
from typing import Any

from moslora.choices import DType
from moslora.evaluation.scorers import EncodedQuestion
from moslora.runs.conditions import TaskRecord
from moslora.runs.evaluation import Evaluation
from moslora.verify.fit import Centered, centered
from moslora.verify.verdict import Evidence, TextEvidence, tolerance


def by_id(evaluation: Evaluation, column: str) -> dict[str, Any]:
    """A column of `moslora.runs.answers.TaskAnswers` by question, for the tasks that have this column."""
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
    """Return the evidence in a server's log-probabilities for ``questions``, which ``run``, its base and its
    ``checkpoints`` (by name) have all answered."""
    served = by_id(server, "scores")
    compared = [question for question in questions if question.example.id in served]

    def centered_scores(evaluation: Evaluation) -> Centered:
        scores = by_id(evaluation, "scores")
        return centered([scores[question.example.id] for question in compared])

    characters = by_id(run, "characters")
    margins = []
    for question in compared:
        drift = run.records.get(question.example.task, TaskRecord()).drift or 0.0
        margins += [drift * divisor for divisor in characters.get(question.example.id, (1,) * len(question.texts))]
    assert run.weights is not None, "a server is compared with a local model"
    return Evidence(
        server=centered_scores(server),
        run=centered_scores(run),
        base=centered_scores(run.base) if run.base else None,
        checkpoints={name: centered_scores(other) for name, other in checkpoints.items()},
        lengths=[question.tokens for question in compared],
        tolerance=tolerance(
            margins=margins,
            tokens=[len(answer) for question in compared for _, answer in question.pairs],
            dtypes=[run.weights.dtype, dtype],
        ),
        dtype=dtype,
    )


def same_answers(one: Evaluation, other: Evaluation) -> set[str]:
    """Ids of the questions that both answer alike: with the same option, or, where a text names no option, with texts
    of which one begins with the other, since a run's text ends where its answer is decided."""
    first, second = _answers(one), _answers(other)
    return {id for id, answer in first.items() if _is_same(answer, second[id])}


def _answers(evaluation: Evaluation) -> dict[str, Any]:
    """The chosen option of each question, or the text where it names none."""
    texts = by_id(evaluation, "text")
    return {id: texts[id].strip() if option is None else option for id, option in by_id(evaluation, "chosen").items()}


def _is_same(answer: Any, other: Any) -> bool:
    if answer and other and isinstance(answer, str) and isinstance(other, str):
        return answer.startswith(other) or other.startswith(answer)
    return bool(answer == other)


def text_evidence(server: Evaluation, run: Evaluation) -> TextEvidence:
    """Count how often a server that returns no log-probabilities answers as the run, and as its base."""
    answered = set(by_id(server, "chosen"))
    like_run = same_answers(server, run)
    if run.base is None:
        return TextEvidence(len(answered), len(like_run))
    like_base = same_answers(server, run.base)
    differing = answered - same_answers(run, run.base)
    return TextEvidence(
        len(answered), len(like_run), len(differing), len(differing & like_run), len(differing & like_base)
    )
