"""Predict answers of rows without answers, and label the rows with them.

Answers are kept in ``predictions/`` of the run, or of ``runs/``, in a folder for each set of conditions, under the hash
of the question. Therefore a question that was answered before, in this file or another one, is not asked again, and a
killed command continues.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from moslora.base.shapes import read_config
from moslora.choices import BadRows
from moslora.data.unanswered import Columns, Row, RowFile
from moslora.errors import MosloraError, by_row, counted, some
from moslora.evaluation.evaluate_target import LocalSource, ServerSource, asking
from moslora.evaluation.evaluator import PreparedQuestions
from moslora.evaluation.loading import tokenizer_of
from moslora.evaluation.scorers import EncodedQuestion, Scorer, make_encoder, make_scorer
from moslora.evaluation.server import Server
from moslora.evaluation.target import Target
from moslora.runs.conditions import AFFECTS_PREDICTIONS, Conditions
from moslora.runs.outcomes import log_softmax
from moslora.runs.predictions import Prediction, argmax
from moslora.tasks import Example, Task

KEPT_TOKENS = 10_000_000
"""Number of tokens that are kept in memory between the check of the rows and the model, about 360 MB."""


def predict(
    target: Target,
    task: Task,
    file: RowFile,
    *,
    bad_rows: BadRows = "stop",
    server: Server | None = None,
    at_once: int = 8,
    **overrides: Any,
) -> tuple[RowFile, dict[str, Prediction]]:
    """Ask a model or a server the rows of a file; ``task`` describes them, and other arguments are as in
    `evaluate_target`.

    Returns:
        The file, in which rows that cannot be encoded are bad rows; and id -> prediction.

    Raises:
        UsageError: there are bad rows and ``bad_rows`` is "stop"; or as in `evaluate_target`.
    """
    source = ServerSource(server, at_once) if server else LocalSource(target)
    request = target.request_with(overrides).model_copy(update={"limit": None, "skip": 0})
    encoder = make_encoder(read_config(target.model), tokenizer_of(target), request)
    first = next(iter(file.questions.values()))
    file, encoded = _encodable(file, make_scorer(first, encoder, request))
    file.refuse_bad_rows(bad_rows)
    questions = {task.name: [*file.questions.values()]}
    conditions = source.conditions(request, questions, encoder)
    any_rows = replace(conditions, data={task.name: ""})
    prepared = PreparedQuestions.of(questions, request, encoder, any_rows).in_order()
    prepared = replace(prepared, tasks=(replace(prepared.tasks[0], encoded=encoded),))
    folder = _folder(target.results_folder(request, None, ending=source.ending), any_rows)
    with asking(target, conditions, request, folder):
        predictions = prepared.complete(*source.open(prepared, lambda: prepared.open_journal(folder, {})))
    return file, {prediction.id: prediction for prediction in predictions}


def _encodable(file: RowFile, scorer: Scorer[Any]) -> tuple[RowFile, dict[str, EncodedQuestion]]:
    """Return the file, in which rows that the protocol cannot score are marked as bad rows; and the questions as
    tokens, as many as `KEPT_TOKENS` allows."""
    faults: dict[str, MosloraError] = {}
    encoded: dict[str, EncodedQuestion] = {}
    tokens = 0
    for id, question in file.questions.items():
        try:
            as_tokens = scorer.encode(question)
            tokens += as_tokens.tokens * len(as_tokens.texts)
            if tokens <= KEPT_TOKENS:
                encoded[id] = as_tokens
        except MosloraError as error:
            faults[id] = MosloraError(str(error).removeprefix(f"{id}: "))
    rows = []
    for row in file.rows:
        fault = isinstance(row.question, Example) and faults.get(row.question.id)
        rows.append(replace(row, question=fault) if fault else row)
    return replace(file, rows=tuple(rows)), encoded


def _folder(evaluation: Path, conditions: Conditions) -> Path:
    """Folder of answers under these conditions, for a model whose evaluations are in the folder ``evaluation``."""
    facts = json.dumps(conditions.facts(*AFFECTS_PREDICTIONS), sort_keys=True)
    digest = hashlib.sha256(facts.encode()).hexdigest()[:8]
    return evaluation.parent.with_name("predictions") / f"{evaluation.name}-{digest}"


def columns_of(file: RowFile, predictions: Mapping[str, Prediction]) -> list[Columns]:
    """Columns of answers for each row of the file."""
    return [_columns(row, predictions) for row in file.rows]


def _columns(row: Row, predictions: Mapping[str, Prediction]) -> Columns:
    """Columns to add to a row for its answer; empty if it has no answer."""
    question = row.question
    if isinstance(question, Exception) or predictions[question.id].refused:
        return {}
    prediction = predictions[question.id]
    if question.is_open_ended:
        return {"prediction": prediction.answer, "written": prediction.text}
    if not prediction.scores:
        named = prediction.prediction
        return {"prediction": None if named is None else question.choices[named], "written": prediction.text}
    probabilities: dict[str, float] = {}
    for option, log_p in zip(question.choices, log_softmax(prediction.scores), strict=True):
        probabilities[option] = probabilities.get(option, 0) + math.exp(log_p)  # two options may be equal
    rounded = {option: round(probability, 6) for option, probability in probabilities.items()}
    chosen = question.choices[argmax(prediction.deciding_scores)]
    return {"prediction": chosen, "probability": rounded[chosen], "probabilities": rounded}


def remarks(file: RowFile, predictions: Mapping[str, Prediction]) -> list[str]:
    """Lines on the number of rows with a prediction, and on the reasons why others have none."""
    of_rows = [predictions[row.question.id] for row in file.rows if isinstance(row.question, Example)]
    answered = [prediction for prediction in of_rows if not prediction.refused]
    distinct = len({prediction.id for prediction in answered})
    lines = [f"{len(answered):,} of {counted(len(file.rows), 'row')} with a prediction, {distinct:,} different"]
    if file.faults:
        lines.append(by_row(file.faults))
    refusals = {prediction.refused: None for prediction in of_rows if prediction.refused}
    if refusals:
        lines.append(f"{counted(len(of_rows) - len(answered), 'row')} not answered by the server: {some(refusals)}")
    truncated = sum(prediction.truncated for prediction in answered)
    if truncated:
        lines.append(f"{counted(truncated, 'row')} too long for evaluation.max_length: asked without the beginning")
    return lines
