"""A server's replies as answers: an evaluation like the run's, and the evidence of a verdict."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from moslora.choices import DType
from moslora.evaluation.generate import read_text
from moslora.runs.evaluation import Evaluation
from moslora.runs.predictions import Prediction
from moslora.verify.fit import Answered
from moslora.verify.questions import AskedQuestions, Question
from moslora.verify.replies import Reply
from moslora.verify.verdict import Evidence, TextEvidence, tolerance


def server_answers(asked: AskedQuestions, replies: Mapping[str, Reply]) -> Evaluation:
    """The answers in these replies; without those that were refused, or told in part only."""
    predictions = []
    for question in asked.questions:
        reply = replies.get(question.id)
        if reply is None:
            continue
        found = _prediction(question, reply, asked)
        if found is not None:
            predictions.append(found)
    return Evaluation.of(Path(), asked.run.settings, predictions)


def _prediction(question: Question, reply: Reply, asked: AskedQuestions) -> Prediction | None:
    example = question.example
    scores = reply.known_scores
    if scores is not None:
        return Prediction.of(example, scores, characters=question.characters, truncated=question.truncated)
    if reply.text is None:
        return None
    if question.answers:
        named = _begun_option(question, reply.text, asked)
        return Prediction(example.id, example.task, example.gold, named, text=reply.text)
    return read_text(example, reply.text, truncated=question.truncated)


def _begun_option(question: Question, text: str, asked: AskedQuestions) -> int | None:
    """The option that a text begins with, the longest of several; ``None`` if it begins with none."""
    decode = asked.asking.tokenizer.decode
    begun: dict[int, int] = {}
    for position, answer in enumerate(question.answers):
        own = str(decode(list(answer))).strip()
        if text.strip().startswith(own):
            begun[position] = len(own)
    return max(begun, key=begun.__getitem__, default=None)


def scores_by_id(evaluation: Evaluation) -> dict[str, tuple[float, ...]]:
    """The log-probabilities of each question's options."""
    found: dict[str, tuple[float, ...]] = {}
    for answers in evaluation.tasks.values():
        found.update(zip(answers.ids, answers.scores, strict=bool(answers.scores)))
    return found


def evidence_of(asked: AskedQuestions, replies: Mapping[str, Reply], *, dtype: DType) -> Evidence | None:
    """The evidence in the log-probabilities that the server tells; ``None`` if it tells none."""
    own = scores_by_id(asked.run)
    told: dict[str, tuple[int, ...]] = {}  # id -> positions of options, at least two, as only differences count
    known = []
    for question in asked.questions:
        reply = replies.get(question.id)
        if reply is not None and len(reply.told) > 1 and own.get(question.id):
            told[question.id] = reply.told
            known.append(question)
    if not known:
        return None

    def answered(scores: Mapping[str, Sequence[float | None]]) -> Answered:
        rows = []
        for id, places in told.items():
            rows.append([scores[id][place] for place in places])
        return Answered.of(rows)

    base = None
    if asked.base is not None:
        base = answered(scores_by_id(asked.base))
    return Evidence(
        server=answered({id: replies[id].scores for id in told}),
        run=answered(own),
        base=base,
        others={name: answered(scores_by_id(other)) for name, other in asked.others.items()},
        lengths=[question.length for question in known],
        scales=_scales(known),
        tolerance=_tolerance(asked, known, dtype=dtype),
        dtype=dtype,
    )


def _scales(questions: Sequence[Question]) -> list[float]:
    """√(a question's scored tokens / those of all questions), both means over options."""
    means = []
    for question in questions:
        lengths = [len(answer) for answer in question.answers]
        means.append(statistics.fmean(lengths))
    of_all = statistics.fmean(means)
    return [math.sqrt(mean / of_all) for mean in means]


def _tolerance(asked: AskedQuestions, questions: Sequence[Question], *, dtype: DType) -> float:
    """What rounding explains, by the drift that the evaluation has recorded of each task."""
    margins: list[float] = []
    tokens: list[int] = []
    for question in questions:
        record = asked.run.records.get(question.example.task)
        drift = 0.0
        if record is not None and record.drift is not None:
            drift = record.drift
        divisors = question.characters or (1,) * len(question.answers)
        margins += [drift * divisor for divisor in divisors]
        tokens += [len(answer) for answer in question.answers]
    own: DType = "float32"
    if asked.run.settings.dtype in ("float16", "bfloat16"):
        own = asked.run.settings.dtype  # type: ignore[assignment]
    return tolerance(margins=margins, tokens=tokens, dtypes=[own, dtype])


def chosen_by_id(evaluation: Evaluation) -> dict[str, int | None]:
    """The option that each question is answered with."""
    found: dict[str, int | None] = {}
    for answers in evaluation.tasks.values():
        found.update(zip(answers.ids, answers.chosen, strict=True))
    return found


def _said_by_id(evaluation: Evaluation) -> dict[str, int | str | None]:
    """The option that each question is answered with; the text where it names none, and there is one."""
    said: dict[str, int | str | None] = {}
    said.update(chosen_by_id(evaluation))
    for answers in evaluation.tasks.values():
        for id, text in zip(answers.ids, answers.texts, strict=False):  # no texts where options are scored
            if said[id] is None and text is not None:
                said[id] = text.strip()
    return said


def _same(one: int | str | None, other: int | str | None) -> bool:
    """Whether two models say the same; a text that names no option may be longer than the other."""
    if isinstance(one, str) and isinstance(other, str):
        return begins_alike(one, other)
    return one == other


def begins_alike(one: str, other: str) -> bool:
    """Whether one text is the beginning of the other: a run's text ends where its answer is decided."""
    if not one or not other:
        return one == other
    return one.startswith(other) or other.startswith(one)


def text_evidence(asked: AskedQuestions, server: Evaluation) -> TextEvidence:
    """How often a server that tells texts alone answers as the run, and as its base."""
    found = _said_by_id(server)
    run = _said_by_id(asked.run)
    like_run = sum(_same(found[id], run[id]) for id in found)
    named = sum(position is not None for position in chosen_by_id(server).values())
    if not asked.questions[0].answers:  # of `generate`, whose recorded texts may name no option either
        named = len(found)
    counts = TextEvidence(len(found), named, like_run)
    if asked.base is None:
        return counts
    base = _said_by_id(asked.base)
    differing = [id for id in found if not _same(run[id], base[id])]
    return replace(
        counts,
        differing=len(differing),
        differing_like_run=sum(_same(found[id], run[id]) for id in differing),
        differing_like_base=sum(_same(found[id], base[id]) for id in differing),
    )
