"""How the log-probability of given tokens is read from a server.

Servers differ in what they tell. The ways, the one that needs the fewest requests first:

``Echo``       the log-probabilities of the prompt's own tokens: vLLM, SGLang, llama-cpp-python
``Forced``     one token at a time, made the next one by ``logit_bias``: llama.cpp; vLLM, too
``Allowed``    one token at a time, the only one allowed: vLLM
``Likeliest``  one token at a time, if it is among the likeliest that the server lists

`Served.with_reading` tries them on one prompt and takes the first that works. Others tell texts
alone: transformers, TGI's and Ollama's older versions.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.evaluation.server import Likely, Logprobs, Server

LIKELIEST = (20, 5)
"""Numbers of likeliest tokens that are asked for: vLLM's limit, and OpenAI's."""

BIAS = 100
"""Added to the logit of a token that is made the next one: the largest that OpenAI's interface allows."""

CERTAIN = 1e-4
"""A log-probability above its negative is taken for that of a token that was made certain."""

Prompt = str | list[int]
"""What a server is asked to continue: tokens, or their text where it takes no tokens."""


@dataclass(frozen=True)
class Reading(ABC):
    """One way to read log-probabilities."""

    server: Server
    tokenizer: PreTrainedTokenizerBase
    says: ClassVar[str]  # how it reads, in words

    @abstractmethod
    def log_p(self, prompt: Prompt, answer: Sequence[int]) -> float | None:
        """Σ log p of the answer's tokens behind the prompt, in nats; ``None`` if the server does not tell it."""

    def works(self, prompt: Prompt, answers: Sequence[Sequence[int]]) -> bool:
        """Whether the server tells it for these answers, which differ."""
        return any(self.log_p(prompt, answer) is not None for answer in answers)

    def followed(self, prompt: Prompt, answer: Sequence[int]) -> Prompt:
        """The prompt with the beginning of an answer behind it."""
        if isinstance(prompt, str):
            return prompt + str(self.tokenizer.decode(list(answer)))
        return [*prompt, *answer]

    def is_token(self, told: Likely, token: int) -> bool:
        """Whether a token that a server names is ``token``: by its id where there is one, else by its text."""
        if told.id is not None:
            return told.id == token
        names = (self.tokenizer.decode([token]), self.tokenizer.convert_ids_to_tokens(token), f"token_id:{token}")
        return told.token in names


class Echo(Reading):
    """The server repeats the prompt with the log-probabilities of its tokens, of which the last are the answer's."""

    says = "by the log-probabilities of the prompt's tokens"

    def log_p(self, prompt: Prompt, answer: Sequence[int]) -> float | None:
        found = self.server.complete(self.followed(prompt, answer), echo=True, logprobs=1)
        told = found.reply.logprobs or Logprobs()
        values = told.token_logprobs or []
        count = found.tokens_read or 0
        if len(values) - count not in (0, 1):  # one may be that of the token written
            return None
        own = [value for value in values[:count][-len(answer) :] if value is not None]
        return math.fsum(own) if len(own) == len(answer) else None


class TokenByToken(Reading):
    """An answer read one token at a time."""

    def log_p(self, prompt: Prompt, answer: Sequence[int]) -> float | None:
        values = []
        for place, token in enumerate(answer):
            value = self.next_token(self.followed(prompt, answer[:place]), token)
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

    def forcing(self, token: int) -> dict[str, Any]:
        """The fields of a request that make a token the next one."""
        return {"logit_bias": {str(token): BIAS}}

    def next_token(self, prompt: Prompt, token: int) -> float | None:
        written = self.server.complete(prompt, logprobs=1, **self.forcing(token)).reply.written
        if not written or not self.is_token(written[0], token):
            return None
        return written[0].logprob

    def works(self, prompt: Prompt, answers: Sequence[Sequence[int]]) -> bool:
        """Also whether it is told as if nothing had been forced: two different tokens cannot both be certain."""
        first = answers[0][0]
        others = [answer[0] for answer in answers if answer[0] != first] or [int(first == 0)]
        values = [self.next_token(prompt, token) for token in (first, others[0])]
        return None not in values and any((value or 0.0) < -CERTAIN for value in values)


class Allowed(Forced):
    """The same by vLLM's field."""

    says = "token by token, each the only one allowed"

    def forcing(self, token: int) -> dict[str, Any]:
        return {"allowed_token_ids": [token]}


@dataclass(frozen=True)
class Likeliest(TokenByToken):
    """The token is looked up among the ``count`` likeliest next ones that the server lists."""

    count: int = LIKELIEST[0]
    says = "token by token, where it is among the likeliest that the server lists"

    def _listed(self, prompt: Prompt) -> Sequence[Likely]:
        written = self.server.complete(prompt, logprobs=self.count).reply.written
        return written[0].top_logprobs or () if written else ()

    def next_token(self, prompt: Prompt, token: int) -> float | None:
        for likely in self._listed(prompt):
            if self.is_token(likely, token):
                return likely.logprob
        return None

    def works(self, prompt: Prompt, answers: Sequence[Sequence[int]]) -> bool:
        """Whether the server lists tokens at all: those of these answers may be unlikely."""
        return len(self._listed(prompt)) > 1


def ways_to_read(server: Server, tokenizer: PreTrainedTokenizerBase) -> list[Reading]:
    """All ways, the one that needs the fewest requests first."""
    parts = (server, tokenizer)
    return [Echo(*parts), Forced(*parts), Allowed(*parts), *(Likeliest(*parts, count=count) for count in LIKELIEST)]
