"""How the log-probability of given tokens is read from a server.

Servers differ in what they tell. The ways, the one that needs the fewest requests first:

``echo``            the log-probabilities of the prompt's own tokens: vLLM, SGLang, llama-cpp-python
``prompt logprobs`` the same in vLLM's own field
``forced``          one token at a time, made the next one by ``logit_bias``: llama.cpp; vLLM, too
``allowed``         one token at a time, the only one allowed: vLLM
``likeliest``       one token at a time, if it is among the likeliest that the server lists

`find_reading` tries them on one prompt and takes the first that works. Others tell texts alone: transformers, TGI's and
Ollama's older versions.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.evaluation.server import Answer, Likely, Refused, Server, Unavailable

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
    patient: bool = False  # faults of the server are tried again, as they are no sign that it does not offer this
    of_prompt = False  # it reads those of the prompt's own tokens

    @property
    @abstractmethod
    def says(self) -> str:
        """How it reads, in words."""

    @abstractmethod
    def log_p(self, prompt: Prompt, answer: Sequence[int]) -> float | None:
        """Σ log p of the answer's tokens behind the prompt, in nats; ``None`` if the server does not tell it."""

    def works(self, prompt: Prompt, answers: Sequence[Sequence[int]]) -> bool:
        """Whether the server tells it for these answers, which differ."""
        return any(self.log_p(prompt, answer) is not None for answer in answers)

    def complete(self, prompt: Prompt, **fields: Any) -> Answer:
        """The answer to a request for one more token."""
        body = {"prompt": prompt.field, "max_tokens": 1, "temperature": 0, **fields}
        what = "the log-probabilities of the next token"
        if self.of_prompt:
            what = "the log-probabilities of a prompt's tokens"
        return self.server.ask("completions", body, what=what, patient=self.patient)


class OfPrompt(Reading):
    """The server tells the log-probabilities of the prompt's own tokens, of which the last are the answer's."""

    of_prompt = True
    says = "by the log-probabilities of the prompt's tokens"


class Echo(OfPrompt):
    """It repeats the prompt with them."""

    def log_p(self, prompt: Prompt, answer: Sequence[int]) -> float | None:
        whole = prompt.followed_by(answer, self.tokenizer)
        found = self.complete(whole, echo=True, logprobs=1)
        if found.choice.logprobs is None:
            return None
        values = found.choice.logprobs.token_logprobs or []
        written = len(values) - (found.tokens_read or len(whole.ids))
        if written < 0 or written > 1 or len(values) <= len(answer):
            return None
        return _sum(values[: len(values) - written][-len(answer) :])


class PromptLogprobs(OfPrompt):
    """vLLM's field of the same."""

    def log_p(self, prompt: Prompt, answer: Sequence[int]) -> float | None:
        whole = prompt.followed_by(answer, self.tokenizer)
        of_tokens = self.complete(whole, prompt_logprobs=0).choice.prompt_logprobs or []
        if len(of_tokens) <= len(answer):
            return None
        values = []
        for token, known in zip(answer, of_tokens[-len(answer) :], strict=True):
            entry = (known or {}).get(str(token))
            values.append(None if entry is None else entry.logprob)
        return _sum(values)


class TokenByToken(Reading):
    """An answer read one token at a time."""

    def log_p(self, prompt: Prompt, answer: Sequence[int]) -> float | None:
        values = []
        for place, token in enumerate(answer):
            value = self.next_token(prompt.followed_by(answer[:place], self.tokenizer), token)
            if value is None:
                return None
            values.append(value)
        return math.fsum(values)

    @abstractmethod
    def next_token(self, prompt: Prompt, token: int) -> float | None:
        """log p of a token behind the prompt."""


class Forced(TokenByToken):
    """The token is made the next one, and the server tells the log-probability that it had."""

    says = "token by token, each made the next one by logit_bias"

    def force(self, token: int) -> Mapping[str, Any]:
        """The field of a request that makes it the next one."""
        return {"logit_bias": {str(token): BIAS}}

    def next_token(self, prompt: Prompt, token: int) -> float | None:
        written = self.complete(prompt, logprobs=1, **self.force(token)).choice.written
        if not written or not _is_token(written[0], token, self.tokenizer):
            return None
        return written[0].logprob

    def works(self, prompt: Prompt, answers: Sequence[Sequence[int]]) -> bool:
        """Also whether it is told as if nothing had been forced: two different tokens cannot both be certain."""
        firsts = list(dict.fromkeys(answer[0] for answer in answers))
        if len(firsts) == 1:
            other = next(token for token in range(len(self.tokenizer)) if token != firsts[0])
            firsts.append(other)
        values = []
        for token in firsts[:2]:
            value = self.next_token(prompt, token)
            if value is None:
                return False
            values.append(value)
        return min(values) < -CERTAIN


class Allowed(Forced):
    """The same by vLLM's field."""

    says = "token by token, each the only one allowed"

    def force(self, token: int) -> Mapping[str, Any]:
        return {"allowed_token_ids": [token]}


@dataclass(frozen=True)
class Likeliest(TokenByToken):
    """The token is looked up among the ``count`` likeliest next ones that the server lists."""

    count: int = LIKELIEST[0]

    @property
    def says(self) -> str:
        return f"token by token, where it is among the {self.count} likeliest that the server lists"

    def _listed(self, prompt: Prompt) -> Sequence[Likely]:
        written = self.complete(prompt, logprobs=self.count).choice.written
        if not written:
            return ()
        return written[0].top_logprobs or ()

    def next_token(self, prompt: Prompt, token: int) -> float | None:
        for likely in self._listed(prompt):
            if _is_token(likely, token, self.tokenizer):
                return likely.logprob
        return None

    def works(self, prompt: Prompt, answers: Sequence[Sequence[int]]) -> bool:
        """Whether the server lists tokens at all: those of these answers may be unlikely."""
        return len(self._listed(prompt)) > 1


def find_reading(
    server: Server,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    answers: Sequence[Sequence[int]],
    *,
    token_by_token: bool = False,
) -> Reading | None:
    """The first way that works for this prompt and these answers, two or more that differ; ``None`` if none does.

    ``token_by_token`` leaves out those that read a prompt's own tokens. A server that ends when it is asked in one way
    is asked in the next.
    """
    ways: list[Reading] = [way(server, tokenizer) for way in (Echo, PromptLogprobs, Forced, Allowed)]
    ways += [Likeliest(server, tokenizer, count=count) for count in LIKELIEST]
    ended: Unavailable | None = None
    for way in ways:
        if token_by_token and way.of_prompt:
            continue
        try:
            if way.works(prompt, answers):
                return replace(way, patient=True)
        except Refused:
            continue
        except Unavailable as fault:
            if ended is not None:
                raise ended from None
            ended = fault
    if ended is not None:
        raise ended
    return None


def _is_token(told: Likely, token: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a token that a server names is ``token``: by its id where there is one, else by its text."""
    if told.id is not None:
        return told.id == token
    return told.token in (tokenizer.decode([token]), tokenizer.convert_ids_to_tokens(token), f"token_id:{token}")


def _sum(values: Sequence[float | None]) -> float | None:
    """The sum of numbers; ``None`` if one is missing."""
    found = [value for value in values if value is not None]
    if len(found) < len(values):
        return None
    return math.fsum(found)
