"""A user's question, scored as `moslora.evaluation.evaluator` scores those of the sets.

    probability_j = exp(s_j) / Σ_i exp(s_i)

s is the deciding score: the log-probability of an option's label (``choice``), or of its text, per character
(``cloze``).
So the most likely option is the one that ``moslora eval`` would count as the answer. A question without options is
answered in words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from moslora.base.failures import or_out_of_memory
from moslora.choices import FormatName
from moslora.evaluation.batches import batch_budget
from moslora.evaluation.loading import load_model, tokenizer_of
from moslora.evaluation.model import Local
from moslora.evaluation.question import BARE, as_example
from moslora.evaluation.scorers import make_encoder, make_scorer
from moslora.evaluation.target import Target
from moslora.prompts.protocols import PROTOCOLS, ProtocolName, readers
from moslora.runs.outcomes import log_softmax
from moslora.runs.predictions import Prediction
from moslora.tasks import INSTRUCTION


class Answer(NamedTuple):
    """An option, its probability among the options, and the log-probability (nats) of its label or text."""

    option: str
    probability: float
    log_probability: float


@dataclass(frozen=True)
class Answered:
    """The options, most likely first, and how they were scored; of an answer in words none."""

    options: tuple[Answer, ...]
    prediction: Prediction
    protocol: ProtocolName
    format: FormatName

    def __str__(self) -> str:
        how = f"protocol {self.protocol}" if self.options else "answer in words, greedy"
        said = f"{how}, format {self.format}, asked as {self.prediction.task}"
        if self.options:
            said += f"; probability: softmax of the log-probability of {PROTOCOLS[self.protocol].score}"
        if self.prediction.truncated:
            said += "; the question is longer than max_length, so its beginning was cut"
        return said


def ask(
    target: Target, *, question: str, options: Sequence[str] = (), task: str | None = None, **overrides: Any
) -> Answered:
    """Scores the options of one question, or lets it be answered in words (see :func:`as_example`), with the settings
    of ``target``, changed by ``overrides``, fields of its request: protocol and format."""
    example, names = as_example(question, options, task=task, own=target.own_tasks)
    request = target.request_with(overrides)
    is_bare = example.task == BARE.name
    changes: dict[str, Any] = {}
    if is_bare:  # the limit of the questions that are scored is not its own
        changes["max_length"] = None
    if not example.is_open_ended and request.format == "cloze-passage":  # the passage is missing here
        changes["format"] = "cloze"
    if not (example.is_open_ended or PROTOCOLS[request.protocol].scores_options):
        changes["protocol"] = next(reader.name for reader in readers(request.format) if reader.scores_options)
    request = request.model_copy(update=changes)
    if target.adapter:
        target.adapter.refuse_untrained(INSTRUCTION if is_bare else example.task)
    tokenizer = tokenizer_of(target)
    loaded = load_model(target)
    scorer = make_scorer(example, make_encoder(loaded.config, tokenizer, request), request)
    model = Local(loaded, tokenizer, request.batch_tokens or batch_budget(loaded.device))
    fix = "make it shorter, or use the CPU: CUDA_VISIBLE_DEVICES=''"
    with or_out_of_memory(f"out of GPU memory for this question; {fix}"):
        (prediction,) = scorer.score([example], model)
    answers = []
    if not example.is_open_ended:
        probabilities = [math.exp(log_p) for log_p in log_softmax(prediction.deciding_scores)]
        answers = [Answer(*parts) for parts in zip(names, probabilities, prediction.scores, strict=True)]
        answers.sort(key=lambda answer: -answer.probability)  # stable: the first of equals, as in eval
    return Answered(tuple(answers), prediction, request.protocol, request.format)
