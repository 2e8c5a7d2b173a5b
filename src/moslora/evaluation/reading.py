"""How the log-probability of given tokens is read from a server.

Servers differ in what they tell. The ways, the one that needs the fewest requests first:

``Echo``       the log-probabilities of the prompt's own tokens: vLLM, SGLang, llama-cpp-python
``Forced``     one token at a time, made the next one by ``logit_bias``: llama.cpp; vLLM, too
``Allowed``    one token at a time, the only one allowed: vLLM
``Likeliest``  one token at a time, if it is among the likeliest that the server lists

Only a value that is known to belong to its token is taken: values of a prompt are checked against that prompt, and a
token that is listed without its id needs a text that no other token has.

`Served.first_reading` tries them on one prompt and takes the first that works. Others tell texts
alone: transformers, TGI's and Ollama's older versions.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.evaluation.server import Likely, Logprobs, Misread, Refused, Reply

LIKELIEST = (20, 5)
"""Numbers of likeliest tokens that are asked for: vLLM's limit, and OpenAI's."""

BIAS = 100
"""Added to the logit of a token that is made the next one: the largest that OpenAI's interface allows."""

CERTAIN = 1e-4
"""A log-probability above its negative is taken for that of a token that was made certain."""

SEVERAL = -1
"""In the place of a token's id: several tokens have this text."""

PARTIAL = "\ufffd"
"""Stands in a text for bytes that are no whole character."""


Complete = Callable[..., Reply]
"""A request to continue tokens, with these fields: `moslora.evaluation.model.Served.complete`."""


@dataclass(frozen=True)
class TokenTexts:
    """The texts by which servers name tokens."""

    tokenizer: PreTrainedTokenizerBase

    def names(self, tokens: Sequence[int]) -> list[tuple[str, ...]]:
        """Texts of each token: decoded, the same with the space before it, in the vocabulary's form, and its number."""
        decoded = self.tokenizer.batch_decode([[token] for token in tokens])
        pieces = self.tokenizer.convert_ids_to_tokens(list(tokens))
        found: list[tuple[str, ...]] = []
        for token, text, piece in zip(tokens, decoded, pieces, strict=True):
            begins_with_space = str(piece).startswith("\u2581") and not text.startswith(" ")  # of SentencePiece
            found.append((text, f" {text}" if begins_with_space else text, str(piece), f"token_id:{token}"))
        return found

    @cached_property
    def _forms(self) -> Sequence[Mapping[str, int]]:
        """For each form of text the only token that has it."""
        forms: list[dict[str, int]] = []
        vocabulary = range(len(self.tokenizer))
        for texts in zip(*self.names(vocabulary), strict=True):
            form: dict[str, int] = {}
            for token, text in zip(vocabulary, texts, strict=True):
                if PARTIAL not in text:
                    form[text] = SEVERAL if text in form else token
            forms.append(form)
        return forms

    def token(self, likely: Likely, listed: Sequence[Likely]) -> int | None:
        """The token that a server has ``listed`` among others: by its id where there is one, else by its text, if it
        names the same token in every form that these texts may have; otherwise ``None``."""
        if likely.id is not None:
            return likely.id
        fits = [sum(other.token in form for other in listed) for form in self._forms]
        best = [form for form, count in zip(self._forms, fits, strict=True) if count == max(fits)]
        possible = {form[likely.token] for form in best if likely.token in form}
        return possible.pop() if len(possible) == 1 else None


@dataclass(frozen=True)
class Reading(ABC):
    """One way to read log-probabilities."""

    texts: TokenTexts
    says: ClassVar[str]  # how it reads, in words

    @abstractmethod
    def log_p(self, complete: Complete, ids: list[int], answer: list[int]) -> float | None:
        """Σ log p of the answer's tokens behind the prompt ``ids``, in nats; ``None`` if the server does not tell it.

        Raises:
            Refused: it is not clear that what the server tells belongs to these tokens.
        """

    def works(self, complete: Complete, ids: list[int], answers: Sequence[list[int]]) -> bool:
        """Whether the server tells it for these answers, which differ."""
        return any(self.log_p(complete, ids, answer) is not None for answer in answers)

    def may_be(self, told: Likely, token: int) -> bool:
        """Whether what a server names may be ``token``: by its id where there is one, else by any of its texts."""
        if told.id is not None:
            return told.id == token
        return told.token in self.texts.names([token])[0]


class Echo(Reading):
    """The server repeats the prompt with the log-probabilities of its tokens, of which the last are the answer's."""

    says = "by the log-probabilities of the prompt's tokens"

    def log_p(self, complete: Complete, ids: list[int], answer: list[int]) -> float | None:
        sent = [*ids, *answer]
        told = complete(sent, echo=True, logprobs=1).logprobs or Logprobs()
        values = told.token_logprobs
        if not values:
            return None
        if len(values) - len(sent) not in (0, 1):  # one may be that of the token written
            raise Misread(f"{len(values)} log-probabilities of {len(sent)} tokens")
        if values[0] is not None or None in values[1 : len(sent)]:
            raise Misread("its log-probabilities are not those of all tokens but the first")
        names = self.texts.names(sent)
        for text, of_token in zip(told.tokens or [], names, strict=False):
            is_whole = text and PARTIAL not in text + of_token[0]  # parts of a character are shown in several ways
            if is_whole and text not in of_token:
                raise Misread(f"it repeats {text!r} where {of_token[0]!r} was sent")
        return math.fsum(value for value in values[len(ids) : len(sent)] if value is not None)


class TokenByToken(Reading):
    """An answer read one token at a time."""

    def log_p(self, complete: Complete, ids: list[int], answer: list[int]) -> float | None:
        values = []
        for place, token in enumerate(answer):
            value = self.next_token(complete, [*ids, *answer[:place]], token)
            if value is None:
                return None
            values.append(value)
        return math.fsum(values)

    @abstractmethod
    def next_token(self, complete: Complete, ids: list[int], token: int) -> float | None:
        """log p of a token behind the prompt."""


class Forced(TokenByToken):
    """The token is made the next one, and the server tells the log-probability that it had."""

    says = "token by token, each made the next one by logit_bias"

    def forcing(self, token: int) -> dict[str, Any]:
        """The fields of a request that make a token the next one."""
        return {"logit_bias": {str(token): BIAS}}

    def next_token(self, complete: Complete, ids: list[int], token: int) -> float | None:
        written = complete(ids, logprobs=1, **self.forcing(token)).written
        if not written or not self.may_be(written[0], token):
            return None
        return written[0].logprob

    def works(self, complete: Complete, ids: list[int], answers: Sequence[list[int]]) -> bool:
        """Also whether it is told as if nothing had been forced: two tokens with different texts are both written, and
        cannot both be certain."""
        first = answers[0][0]
        own, *names = self.texts.names([answer[0] for answer in answers])
        others = [answer[0] for answer, texts in zip(answers[1:], names, strict=True) if not {*own} & {*texts}]
        values = [self.next_token(complete, ids, token) for token in (first, *others, int(first == 0))[:2]]
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

    def _listed(self, complete: Complete, ids: list[int]) -> Sequence[Likely]:
        written = complete(ids, logprobs=self.count).written
        return written[0].top_logprobs or () if written else ()

    def next_token(self, complete: Complete, ids: list[int], token: int) -> float | None:
        listed = self._listed(complete, ids)
        for likely in listed:
            if self.texts.token(likely, listed) == token:
                return likely.logprob
        for likely in listed:
            if likely.id is None and self.may_be(likely, token):
                raise Refused(f"{likely.token!r} is the text of several tokens, and the server lists no ids")
        return None

    def works(self, complete: Complete, ids: list[int], answers: Sequence[list[int]]) -> bool:
        """Whether the server lists tokens at all: those of these answers may be unlikely."""
        return len(self._listed(complete, ids)) > 1


def ways_to_read(tokenizer: PreTrainedTokenizerBase) -> list[Reading]:
    """All ways, the one that needs the fewest requests first."""
    texts = TokenTexts(tokenizer)
    return [Echo(texts), Forced(texts), Allowed(texts), *(Likeliest(texts, count=count) for count in LIKELIEST)]
