"""Ask a model one question as `moslora.evaluation.evaluator` would, or talk with it.

    probability_j = exp(log p_j) / Σ_i exp(log p_i)

log p_j is the log-probability of an option's label (``choice``), or of its text (``cloze``). The options are in the
order of the deciding score, which ``cloze`` divides by an option's characters; the first one is the answer that
``moslora eval`` would count. A question without options is answered in words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from jinja2 import TemplateError

from moslora.base.failures import or_out_of_memory
from moslora.choices import FormatName
from moslora.console import note_once
from moslora.errors import UsageError
from moslora.evaluation.batches import batch_budget
from moslora.evaluation.loading import load_model, tokenizer_of
from moslora.evaluation.model import Local
from moslora.evaluation.request import Request
from moslora.evaluation.scorers import Scorer, make_encoder, make_scorer
from moslora.evaluation.target import Target
from moslora.evaluation.typed_question import BARE, as_conversation, as_example
from moslora.prompts.protocols import PROTOCOLS, ProtocolName, readers
from moslora.runs.outcomes import log_softmax
from moslora.runs.predictions import Prediction
from moslora.tasks import INSTRUCTION, Example, OpenEnded, Turn


@dataclass(frozen=True, kw_only=True)
class InWords:
    """Settings of answers in words.

    Attributes:
        system: system message before the question; empty for none.
        max_tokens: largest number of tokens of an answer; ``None`` for the task's.
        temperature: temperature of the softmax from which tokens are drawn; 0 for the likeliest tokens.
    """

    system: str = ""
    max_tokens: int | None = None
    temperature: float = 0.0

    @property
    def first_turns(self) -> list[Turn]:
        """Turns before the first question: the system message, if there is one."""
        return [Turn("system", self.system)] if self.system else []

    def limited(self, example: Example) -> Example:
        """``example`` with `max_tokens` as the largest number of tokens of its answer."""
        words = example.wording
        if self.max_tokens is None or not isinstance(words, OpenEnded):
            return example
        return replace(example, wording=replace(words, max_new_tokens=self.max_tokens))


class Answer(NamedTuple):
    """An option with its probability among the options, the deciding score, and the log-probability (nats) of its label
    or text."""

    option: str
    probability: float
    score: float
    log_probability: float


@dataclass(frozen=True)
class Answered:
    """An answered question: the options, the best score first (none for an answer in words), and how they were
    scored."""

    options: tuple[Answer, ...]
    prediction: Prediction
    protocol: ProtocolName
    format: FormatName

    def __str__(self) -> str:
        how = f"protocol {self.protocol}" if self.options else "answer in words"
        heading = f"{how}, format {self.format}, asked as {self.prediction.task}"
        if self.options:
            score = PROTOCOLS[self.protocol].score
            heading += f"; probability: among these options; score, which decides: log-probability of {score}"
        if self.prediction.truncated:
            heading += "; the question is longer than max_length, so its beginning was cut"
        return heading


def ask(
    target: Target,
    *,
    question: str,
    options: Sequence[str] = (),
    task: str | None = None,
    in_words: InWords | None = None,
    **overrides: Any,
) -> Answered:
    """Score the options of one question, or let the model answer it in words.

    Args:
        target: the model.
        question, options, task: as in `as_example`.
        in_words: settings of an answer in words.
        overrides: protocol and format in place of the model's own settings.
    """
    in_words = in_words or InWords()
    example, names = as_example(question, options, task=task, own=target.own_tasks)
    if in_words != InWords() and not example.is_open_ended:
        raise UsageError(
            "--system, --max-tokens and --temperature are for answers in words; omit them, or every --option"
        )
    if example.task == BARE.name and has_turns(target, overrides.get("format")):
        overrides["format"] = "chat"
        example = as_conversation([*in_words.first_turns, Turn("user", example.question)])
    elif in_words.system:
        raise UsageError("--system: only a chat has a place for it; add --format chat, without --task")
    scorer, model, request = _load(target, example, overrides, temperature=in_words.temperature)
    prediction = _score(scorer, in_words.limited(example), model)
    answers = []
    if not example.is_open_ended:
        probabilities = [math.exp(log_p) for log_p in log_softmax(prediction.scores)]
        columns = names, probabilities, prediction.deciding_scores, prediction.scores
        answers = [Answer(*parts) for parts in zip(*columns, strict=True)]
        answers.sort(key=lambda answer: -answer.score)  # stable: the first of equals, as in eval
    return Answered(tuple(answers), prediction, request.protocol, request.format)


@dataclass
class Chat:
    """A conversation: each question is answered after all turns before it.

    Attributes:
        scorer: scorer of answers in words.
        model: model that writes the answers.
        in_words: settings of the answers.
        turns: turns so far.
    """

    scorer: Scorer[Any]
    model: Local
    in_words: InWords
    turns: list[Turn]

    @classmethod
    def of(cls, target: Target, in_words: InWords, **overrides: Any) -> "Chat":
        """Start a conversation with a model; ``overrides`` as in `ask`."""
        turns = in_words.first_turns
        example = as_conversation([*turns, Turn("user", "question")])
        overrides["format"] = "chat"
        scorer, model, _ = _load(target, example, overrides, temperature=in_words.temperature)
        return cls(scorer, model, in_words, turns)

    def answer(self, question: str) -> str:
        """Answer a question. If the turns exceed the model's context, the first questions are dropped."""
        self.turns.append(Turn("user", question))
        first = len(self.in_words.first_turns)
        example = self.in_words.limited(as_conversation(self.turns))
        while self.scorer.encode(example).truncated and len(self.turns) > first + 1:
            del self.turns[first : first + 2]
            note_once("the conversation is longer than the model's context; its first questions are left out")
            example = self.in_words.limited(as_conversation(self.turns))
        text = (_score(self.scorer, example, self.model).text or "").strip()
        self.turns.append(Turn("assistant", text))
        return text


def has_turns(target: Target, format: FormatName | None) -> bool:
    """Whether questions without a task are asked in the chat template: if ``format``, or else the recipe's format, is
    chat. Without ``format`` and recipe, they are if the model has a chat template."""
    if format is None and target.recipe is None:
        return bool(tokenizer_of(target).chat_template)
    return (format or target.request.format) == "chat"


def _load(
    target: Target, example: Example, overrides: dict[str, Any], *, temperature: float
) -> tuple[Scorer[Any], Local, Request]:
    """Load the model, with the scorer and the settings for one question."""
    request = target.request_with(overrides)
    is_bare = example.task == BARE.name
    changes: dict[str, Any] = {}
    if is_bare:  # the recipe's limit is for scored questions
        changes["max_length"] = None
    if not example.is_open_ended:
        if request.format == "cloze-passage":  # a typed question has no passage
            changes["format"] = "cloze"
        if not PROTOCOLS[request.protocol].scores_options:
            changes["protocol"] = next(reader.name for reader in readers(request.format) if reader.scores_options)
    request = request.model_copy(update=changes)
    if target.adapter:
        target.adapter.refuse_untrained(INSTRUCTION if is_bare else example.task)
    tokenizer = tokenizer_of(target)
    loaded = load_model(target)
    scorer = make_scorer(example, make_encoder(loaded.config, tokenizer, request), request)
    tokens = request.batch_tokens or batch_budget(loaded.device)
    return scorer, Local(loaded, tokenizer, tokens, temperature), request


def _score(scorer: Scorer[Any], example: Example, model: Local) -> Prediction:
    """Score one question."""
    fix = "make it shorter, or use the CPU: CUDA_VISIBLE_DEVICES=''"
    try:
        with or_out_of_memory(f"out of GPU memory for this question; {fix}"):
            (prediction,) = scorer.score([example], model)
    except TemplateError as error:
        raise UsageError(f"the chat template refuses these turns: {error}; omit --system") from None
    return prediction
