"""A user's question, scored as `moslora.evaluation.evaluator` scores those of the sets, or a conversation.

    probability_j = exp(log p_j) / Σ_i exp(log p_i)

log p_j is the log-probability of an option's label (``choice``), or of its text (``cloze``). The options are in the
order of the deciding score, which ``cloze`` divides by an option's characters: so the first one is what ``moslora
eval`` would count as the answer. A question without options is answered in words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
    """How an answer in words is written.

    Attributes:
        system: the system message before the question; empty for none.
        max_tokens: greatest number of tokens; ``None`` for the task's.
        temperature: of the softmax from which the tokens are drawn; 0 for the likeliest.
    """

    system: str = ""
    max_tokens: int | None = None
    temperature: float = 0.0

    def limited(self, example: Example) -> Example:
        """``example`` with this limit of its answer."""
        words = example.wording
        if self.max_tokens is None or not isinstance(words, OpenEnded):
            return example
        return replace(example, wording=replace(words, max_new_tokens=self.max_tokens))


class Answer(NamedTuple):
    """An option, its probability among the options, the score that decides, and the log-probability (nats) of its label
    or text."""

    option: str
    probability: float
    score: float
    log_probability: float


@dataclass(frozen=True)
class Answered:
    """The options, the best score first, and how they were scored; of an answer in words none."""

    options: tuple[Answer, ...]
    prediction: Prediction
    protocol: ProtocolName
    format: FormatName

    def __str__(self) -> str:
        how = f"protocol {self.protocol}" if self.options else "answer in words"
        said = f"{how}, format {self.format}, asked as {self.prediction.task}"
        if self.options:
            score = PROTOCOLS[self.protocol].score
            said += f"; probability: among these options; score, which decides: log-probability of {score}"
        if self.prediction.truncated:
            said += "; the question is longer than max_length, so its beginning was cut"
        return said


def ask(
    target: Target,
    *,
    question: str,
    options: Sequence[str] = (),
    task: str | None = None,
    in_words: InWords | None = None,
    **overrides: Any,
) -> Answered:
    """Scores the options of one question, or lets it be answered in words (see :func:`as_example`), with the settings
    of ``target``, changed by ``overrides``, fields of its request: protocol and format."""
    in_words = in_words or InWords()
    example, names = as_example(question, options, task=task, own=target.own_tasks)
    if in_words != InWords() and not example.is_open_ended:
        raise UsageError("--system, --max-tokens and --temperature are for answers in words; omit them, or the options")
    if in_words.system and example.task != BARE.name:
        raise UsageError(f"--system: task {example.task} has its own prompt; omit it")
    if example.task == BARE.name and has_turns(target, overrides.get("format")):
        overrides["format"] = "chat"
        example = as_conversation([*_system(in_words), Turn("user", example.question)])
    elif in_words.system:
        raise UsageError("--system: only a chat template has a place for it; add --format chat")
    scorer, model, request = _load(target, example, overrides, temperature=in_words.temperature)
    (prediction,) = _scored(scorer, in_words.limited(example), model)
    answers = []
    if not example.is_open_ended:
        probabilities = [math.exp(log_p) for log_p in log_softmax(prediction.scores)]
        columns = names, probabilities, prediction.deciding_scores, prediction.scores
        answers = [Answer(*parts) for parts in zip(*columns, strict=True)]
        answers.sort(key=lambda answer: -answer.score)  # stable: the first of equals, as in eval
    return Answered(tuple(answers), prediction, request.protocol, request.format)


@dataclass
class Chat:
    """A conversation that is kept: each question is answered behind all turns before it.

    Attributes:
        scorer: of answers in words.
        model: writes them.
        in_words: how they are written.
        turns: so far.
    """

    scorer: Scorer[Any]
    model: Local
    in_words: InWords
    turns: list[Turn] = field(default_factory=list)

    @classmethod
    def of(cls, target: Target, in_words: InWords, **overrides: Any) -> "Chat":
        """A new conversation with the model of ``target``; arguments as of `ask`."""
        turns = _system(in_words)
        example = as_conversation([*turns, Turn("user", "question")])
        overrides["format"] = "chat"
        scorer, model, _ = _load(target, example, overrides, temperature=in_words.temperature)
        return cls(scorer, model, in_words, turns)

    def answer(self, question: str) -> str:
        """The model's answer. If the turns are too long for the model's context, the first questions are left out."""
        self.turns.append(Turn("user", question))
        first = len(_system(self.in_words))
        example = self.in_words.limited(as_conversation(self.turns))
        while self.scorer.encode(example).truncated and len(self.turns) > first + 1:
            del self.turns[first : first + 2]
            note_once("the conversation is longer than the model's context; its first questions are left out")
            example = self.in_words.limited(as_conversation(self.turns))
        (prediction,) = _scored(self.scorer, example, self.model)
        text = (prediction.text or "").strip()
        self.turns.append(Turn("assistant", text))
        return text


def has_turns(target: Target, format: FormatName | None) -> bool:
    """Whether questions of no task are asked in the chat template: in this ``format``, or else the run's. A model
    without a recipe is asked in its chat template if it has one."""
    if format is None and target.recipe is None:
        return bool(tokenizer_of(target).chat_template)
    return (format or target.request.format) == "chat"


def _system(in_words: InWords) -> list[Turn]:
    return [Turn("system", in_words.system)] if in_words.system else []


def _load(
    target: Target, example: Example, overrides: dict[str, Any], *, temperature: float
) -> tuple[Scorer[Any], Local, Request]:
    """What asks the model of ``target`` the question ``example``, and how."""
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
    tokens = request.batch_tokens or batch_budget(loaded.device)
    return scorer, Local(loaded, tokenizer, tokens, temperature), request


def _scored(scorer: Scorer[Any], example: Example, model: Local) -> list[Prediction]:
    """The prediction of one question."""
    fix = "make it shorter, or use the CPU: CUDA_VISIBLE_DEVICES=''"
    try:
        with or_out_of_memory(f"out of GPU memory for this question; {fix}"):
            return scorer.score([example], model)
    except TemplateError as error:
        raise UsageError(f"the chat template refuses these turns: {error}; omit --system") from None
