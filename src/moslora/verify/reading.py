"""How the log-probability of given tokens is read from a server.

Servers differ in what they tell. The ways, the one that needs the fewest requests first:

``echo``            the log-probabilities of the prompt's own tokens: vLLM, SGLang, llama-cpp-python
``prompt logprobs`` the same in vLLM's own field
``forced``          one token at a time, made the next one by ``logit_bias``: llama.cpp; vLLM, too
``likeliest``       one token at a time, if it is among the likeliest that the server lists
``nothing``         text alone: transformers, TGI's and Ollama's older versions

`find_reading` tries them on one prompt and takes the first that works.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.verify.server import Refused, Server

LIKELIEST = (20, 5)
"""Numbers of likeliest tokens that are asked for: vLLM's limit, and OpenAI's."""

BIAS = 100
"""Added to the logit of a token that is made the next one: the largest that OpenAI's interface allows."""

CERTAIN = 1e-4
"""A log-probability above its negative is taken for that of a token that was made certain."""


@dataclass(frozen=True)
class Prompt:
    """What a server is asked to continue: tokens, or their text where it takes no tokens."""

    ids: tuple[int, ...]
    text: str
    as_text: bool

    def followed_by(self, answer: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> "Prompt":
        """This prompt with the beginning of an answer behind it."""
        if not answer:
            return self
        text = self.text + str(tokenizer.decode(list(answer)))
        return Prompt((*self.ids, *answer), text, self.as_text)

    @property
    def field(self) -> str | list[int]:
        """The field ``prompt`` of a request."""
        if self.as_text:
            return self.text
        return list(self.ids)


@dataclass(frozen=True)
class Reading(ABC):
    """One way to read log-probabilities."""

    server: Server
    tokenizer: PreTrainedTokenizerBase
    patient: bool = False  # errors of the server are tried again, as they are no sign that it does not offer this
    name = ""
    says = ""

    @abstractmethod
    def log_p(self, prompt: Prompt, answer: Sequence[int]) -> float | None:
        """Σ log p of the answer's tokens behind the prompt, in nats; ``None`` if the server does not tell it."""

    def works(self, prompt: Prompt, answers: Sequence[Sequence[int]]) -> bool:
        """Whether the server tells it for these answers, which differ."""
        try:
            found = [self.log_p(prompt, answer) for answer in answers]
        except Refused:
            return False
        return any(value is not None for value in found)

    def complete(self, prompt: Prompt, **fields: Any) -> dict[str, Any]:
        """The first choice in the answer to a request, with its ``usage``."""
        body = {"prompt": prompt.field, "max_tokens": 1, "temperature": 0, **fields}
        return first_choice(self.server.ask("completions", body, patient=self.patient))


class Echo(Reading):
    """The server repeats the prompt with the log-probability of each of its tokens."""

    name = "echo"
    says = "by the log-probabilities of the prompt's tokens"

    def log_p(self, prompt: Prompt, answer: Sequence[int]) -> float | None:
        whole = prompt.followed_by(answer, self.tokenizer)
        choice = self.complete(whole, echo=True, logprobs=1)
        values = list(_mapping(choice.get("logprobs")).get("token_logprobs") or [])
        written = len(values) - _tokens_read(choice, default=len(whole.ids))
        if written < 0 or written > 1 or len(values) <= len(answer):
            return None
        return _sum(values[: len(values) - written][-len(answer) :])


class PromptLogprobs(Reading):
    """vLLM's field of the same."""

    name = "prompt logprobs"
    says = "by the log-probabilities of the prompt's tokens"

    def log_p(self, prompt: Prompt, answer: Sequence[int]) -> float | None:
        whole = prompt.followed_by(answer, self.tokenizer)
        choice = self.complete(whole, prompt_logprobs=0)
        of_tokens = list(choice.get("prompt_logprobs") or [])
        if len(of_tokens) <= len(answer):
            return None
        values = []
        for token, known in zip(answer, of_tokens[-len(answer) :], strict=True):
            values.append(_mapping(_mapping(known).get(str(token))).get("logprob"))
        return _sum(values)


class TokenByToken(Reading):
    """An answer read one token at a time."""

    def log_p(self, prompt: Prompt, answer: Sequence[int]) -> float | None:
        total = 0.0
        for place, token in enumerate(answer):
            before = prompt.followed_by(answer[:place], self.tokenizer)
            value = self.next_token(before, token)
            if value is None:
                return None
            total += value
        return total

    @abstractmethod
    def next_token(self, prompt: Prompt, token: int) -> float | None:
        """log p of a token behind the prompt."""


class Forced(TokenByToken):
    """The token is made the next one by a bias, and the server tells its log-probability without the bias."""

    name = "forced"
    says = "token by token, each made the next one by logit_bias"

    def next_token(self, prompt: Prompt, token: int) -> float | None:
        choice = self.complete(prompt, logprobs=1, logit_bias={str(token): BIAS})
        written = written_tokens(choice)
        if not written or not written[0].names(token, self.tokenizer):
            return None
        return written[0].log_p

    def works(self, prompt: Prompt, answers: Sequence[Sequence[int]]) -> bool:
        """Also whether the bias stays out of the log-probabilities: two different tokens cannot both be certain."""
        firsts = list(dict.fromkeys(answer[0] for answer in answers))
        if len(firsts) == 1:
            other = next(token for token in range(len(self.tokenizer)) if token != firsts[0])
            firsts.append(other)
        try:
            found = [self.next_token(prompt, token) for token in firsts[:2]]
        except Refused:
            return False
        values = [value for value in found if value is not None]
        return len(values) == 2 and min(values) < -CERTAIN


@dataclass(frozen=True)
class Likeliest(TokenByToken):
    """The token is looked up among the ``count`` likeliest next ones that the server lists."""

    count: int = LIKELIEST[0]
    name = "likeliest"

    @property
    def says(self) -> str:  # type: ignore[override]
        return f"token by token, where it is among the {self.count} likeliest that the server lists"

    def next_token(self, prompt: Prompt, token: int) -> float | None:
        choice = self.complete(prompt, logprobs=self.count)
        written = written_tokens(choice)
        if not written:
            return None
        return written[0].likeliest_log_p(token, self.tokenizer)

    def works(self, prompt: Prompt, answers: Sequence[Sequence[int]]) -> bool:
        """Whether the server lists tokens at all: those of these answers may be unlikely."""
        try:
            written = written_tokens(self.complete(prompt, logprobs=self.count))
        except Refused:
            return False
        return bool(written) and len(written[0].likeliest) > 1


class Nothing(Reading):
    """The server tells no log-probability."""

    name = "nothing"
    says = "by its texts alone: it tells no log-probabilities"

    def log_p(self, prompt: Prompt, answer: Sequence[int]) -> float | None:
        return None


def find_reading(
    server: Server, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answers: Sequence[Sequence[int]]
) -> Reading:
    """The first way that works for this prompt and these answers, two or more that differ."""
    ways: list[Reading] = [Echo(server, tokenizer), PromptLogprobs(server, tokenizer), Forced(server, tokenizer)]
    ways += [Likeliest(server, tokenizer, count=count) for count in LIKELIEST]
    for way in ways:
        if way.works(prompt, answers):
            return replace(way, patient=True)
    return Nothing(server, tokenizer, patient=True)


@dataclass(frozen=True)
class WrittenToken:
    """A token that a server has written, as far as it says.

    Attributes:
        text: of the token.
        log_p: its log-probability in nats.
        likeliest: text, and id where it is told, of the likeliest tokens in its place -> log-probability.
        id: its id; ``None`` if the server does not tell it.
    """

    text: str
    log_p: float | None
    likeliest: Mapping[tuple[str, int | None], float]
    id: int | None = None

    def names(self, token: int, tokenizer: PreTrainedTokenizerBase) -> bool:
        return _same_token(self.text, self.id, token, tokenizer)

    def likeliest_log_p(self, token: int, tokenizer: PreTrainedTokenizerBase) -> float | None:
        """The log-probability of a token, if it is among the likeliest."""
        for (text, id), value in self.likeliest.items():
            if _same_token(text, id, token, tokenizer):
                return value
        return None


def written_tokens(choice: Mapping[str, Any]) -> list[WrittenToken]:
    """The tokens that a server has written in a choice, by either form of its field ``logprobs``; none without it."""
    told = _mapping(choice.get("logprobs"))
    if told.get("content"):
        return [_from_chat(entry) for entry in told["content"]]
    found = []
    texts = told.get("tokens") or []
    values = told.get("token_logprobs") or []
    tops = told.get("top_logprobs") or [None] * len(texts)
    for text, value, top in zip(texts, values, tops, strict=False):  # a server may leave out the last ones
        likeliest: dict[tuple[str, int | None], float] = {}
        for other, log_p in _mapping(top).items():
            likeliest[(str(other), None)] = float(log_p)
        found.append(WrittenToken(str(text), _finite(value), likeliest))
    return found


def _from_chat(entry: Mapping[str, Any]) -> WrittenToken:
    likeliest = {}
    for other in entry.get("top_logprobs") or []:
        value = _finite(other.get("logprob"))
        if value is not None:
            likeliest[(str(other.get("token")), other.get("id"))] = value
    return WrittenToken(str(entry.get("token")), _finite(entry.get("logprob")), likeliest, entry.get("id"))


def first_choice(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The first choice of an answer, with the answer's ``usage``.

    Raises:
        Refused: there is none.
    """
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Refused(f"an answer without choices: {str(dict(answer))[:100]}")
    return {**choices[0], "usage": answer.get("usage")}


def _same_token(text: str, id: int | None, token: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a token that a server names is ``token``: by its id where there is one, else by its text."""
    if id is not None:
        return id == token
    return text in (tokenizer.decode([token]), tokenizer.convert_ids_to_tokens(token), f"token_id:{token}")


def _tokens_read(choice: Mapping[str, Any], *, default: int) -> int:
    """The number of the prompt's tokens, as the server counts them."""
    count = _mapping(choice.get("usage")).get("prompt_tokens")
    if not isinstance(count, int) or count <= 0:
        return default
    return count


def _sum(values: Sequence[Any]) -> float | None:
    """The sum of numbers; ``None`` if one of them is none."""
    numbers = [_finite(value) for value in values]
    found = [number for number in numbers if number is not None]
    if len(found) < len(numbers):
        return None
    return math.fsum(found)


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    return {}
