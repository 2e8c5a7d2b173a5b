"""What the answers of a server, of the run, its base and its checkpoints show together."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from moslora.choices import DType
from moslora.evaluation.evaluate_server import Asked
from moslora.runs.evaluation import Evaluation
from moslora.runs.settings import TaskRecord
from moslora.verify.fit import Answered
from moslora.verify.verdict import Evidence, TextEvidence, tolerance

Said = int | str | None
"""The option that a question is answered with; the text where it names none, and there is one."""


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
        return Answered.of([scores[question.id] for question in asked])

    base = None
    if known.base is not None:
        base = answered(known.base)
    lengths = [[len(answer) for _, answer in question.pairs] for question in asked]
    return Evidence(
        server=answered(server),
        run=answered(known.run),
        base=base,
        others={name: answered(other) for name, other in known.others.items()},
        lengths=[question.tokens for question in asked],
        scales=_scales(lengths),
        tolerance=tolerance(
            margins=list(_margins(asked, known.run)),
            tokens=[length for of_question in lengths for length in of_question],
            dtypes=[_rounded_as(known.run.settings.dtype), dtype],
        ),
        dtype=dtype,
    )


def _scales(lengths: Sequence[Sequence[int]]) -> list[float]:
    """√(a question's scored tokens / those of all questions), both means over options."""
    means = [statistics.fmean(of_question) for of_question in lengths]
    of_all = statistics.fmean(means)
    return [math.sqrt(mean / of_all) for mean in means]


def _margins(questions: Sequence[Asked], run: Evaluation) -> Iterator[float]:
    """How far rounding moves each option, by the drift that the evaluation has recorded of its task."""
    for question in questions:
        drift = run.records.get(question.example.task, TaskRecord()).drift or 0.0
        answers = run.tasks[question.example.task]
        divisors = (1,) * len(question.pairs)
        if answers.characters:
            divisors = answers.characters[answers.ids.index(question.id)]
        for divisor in divisors:
            yield drift * divisor


def _rounded_as(dtype: str) -> DType:
    if dtype in ("float16", "bfloat16"):
        return dtype  # type: ignore[return-value]
    return "float32"


def said_by_id(evaluation: Evaluation) -> dict[str, Said]:
    """What each question is answered with."""
    found: dict[str, Said] = {}
    for answers in evaluation.tasks.values():
        found.update(zip(answers.ids, answers.chosen, strict=True))
        for id, text in zip(answers.ids, answers.texts, strict=False):  # no texts where options are scored
            if found[id] is None and text is not None:
                found[id] = text.strip()
    return found


def same(one: Said, other: Said) -> bool:
    """Whether two models say the same. Of texts that name no option one may be longer than the other: a run's text ends
    where its answer is decided."""
    if isinstance(one, str) and isinstance(other, str) and one and other:
        return one.startswith(other) or other.startswith(one)
    return one == other


def text_evidence(server: Evaluation, known: Known) -> TextEvidence:
    """How often a server that writes answers as the run, and as its base."""
    found = said_by_id(server)
    run = said_by_id(known.run)
    like_run = sum(same(found[id], run[id]) for id in found)
    if known.base is None:
        return TextEvidence(len(found), like_run)
    base = said_by_id(known.base)
    differing = [id for id in found if not same(run[id], base[id])]
    return TextEvidence(
        len(found),
        like_run,
        differing=len(differing),
        differing_like_run=sum(same(found[id], run[id]) for id in differing),
        differing_like_base=sum(same(found[id], base[id]) for id in differing),
    )
