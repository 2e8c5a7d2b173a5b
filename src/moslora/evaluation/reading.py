"""Read the log-probabilities of given tokens from a server.

Servers return different log-probabilities. There are four ways to read them, the one with the fewest requests first:

``Echo``       log-probabilities of the prompt's own tokens: vLLM, SGLang, llama-cpp-python
``Forced``     one token at a time, made the next one by ``logit_bias``: llama.cpp, vLLM
``Allowed``    one token at a time, made the next one as the only one allowed: vLLM
``Likeliest``  one token at a time, if it is among the likeliest tokens that the server lists

A value counts only if it surely belongs to its token: values of a prompt are compared with that prompt, and a token
that is listed without its id needs a text that no other token has.

`moslora.evaluation.model.Served.first_reading` tries the ways on one prompt and takes the first that works. Some
servers return texts alone: transformers, and older versions of TGI and Ollama.
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
"""Numbers of likeliest tokens that a request may ask for: vLLM's limit, and OpenAI's."""

BIAS = 100
"""Bias of the logit of a token that is made the next one: the largest value in OpenAI's interface."""

CERTAIN = 1e-4
"""A log-probability above the negative of this belongs to a token that was made certain."""

SEVERAL = -1
"""Value in place of a token's id, if several tokens have the same text."""

PARTIAL = "\ufffd"
"""Replacement character for bytes that are no whole character."""


Complete = Callable[..., Reply]
"""Function that sends a request to continue tokens: `moslora.evaluation.model.Served.complete`."""


@dataclass(frozen=True)
class TokenTexts:
    """Texts by which servers name tokens."""

    tokenizer: PreTrainedTokenizerBase

    def names(self, tokens: Sequence[int]) -> list[tuple[str, ...]]:
        """Possible texts of each token: decoded, with the space that SentencePiece's decoder drops, as in the
        vocabulary, and as ``token_id:ID``."""
        decoded = self.tokenizer.batch_decode([[token] for token in tokens])
        pieces = self.tokenizer.convert_ids_to_tokens(list(tokens))
        names: list[tuple[str, ...]] = []
        for token, text, piece in zip(tokens, decoded, pieces, strict=True):
            begins_with_space = str(piece).startswith("\u2581") and not text.startswith(" ")  # of SentencePiece
            names.append((text, f" {text}" if begins_with_space else text, str(piece), f"token_id:{token}"))
        return names

    @cached_property
    def _forms(self) -> Sequence[Mapping[str, int]]:
        """Text -> token, for each way in which a server may write the texts of tokens; `SEVERAL` if tokens share a
        text."""
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
        """Return the token that an entry of a server's list is: by its id, or else by its text; ``None`` if that is
        unsure.

        Servers write the texts of tokens in several ways. A text counts if it is the same token in every way that fits
        all ``listed`` texts.
        """
        if likely.id is not None:
            return likely.id
        fits = [sum(other.token in form for other in listed) for form in self._forms]
        best = [form for form, count in zip(self._forms, fits, strict=True) if count == max(fits)]
        possible = {form[likely.token] for form in best if likely.token in form}
        return possible.pop() if len(possible) == 1 else None


@dataclass(frozen=True)
class Reading(ABC):
    """Base class of the ways to read log-probabilities from a server.

    Attributes:
        texts: texts by which the server names tokens.
        says: name of the way, for messages.
    """

    texts: TokenTexts
    says: ClassVar[str]

    @abstractmethod
    def log_p(self, complete: Complete, ids: list[int], answer: list[int]) -> float | None:
        """Log-probability of an answer behind the prompt ``ids``, in nats; ``None`` if the server does not return it.

        Raises:
            Refused: the returned values may belong to other tokens.
        """

    def works(self, complete: Complete, ids: list[int], answers: Sequence[list[int]]) -> bool:
        """Whether this way reads the log-probability of at least one of several different answers from the server."""
        return any(self.log_p(complete, ids, answer) is not None for answer in answers)

    def may_be(self, likely: Likely, token: int) -> bool:
        """Whether an entry of a server's list may be ``token``, by its id or else by one of its texts."""
        if likely.id is not None:
            return likely.id == token
        return likely.token in self.texts.names([token])[0]


class Echo(Reading):
    """Read the log-probabilities of a repeated prompt that ends in the answer."""

    says = "by the log-probabilities of the prompt's tokens"

    def log_p(self, complete: Complete, ids: list[int], answer: list[int]) -> float | None:
        sent = [*ids, *answer]
        echoed = complete(sent, echo=True, logprobs=1).logprobs or Logprobs()
        values = echoed.token_logprobs
        if not values:
            return None
        if len(values) - len(sent) not in (0, 1):  # the last one may belong to the written token
            raise Misread(f"{len(values)} log-probabilities of {len(sent)} tokens")
        if values[0] is not None or None in values[1 : len(sent)]:
            raise Misread("its log-probabilities are not those of all tokens but the first")
        names = self.texts.names(sent)
        for text, of_token in zip(echoed.tokens or [], names, strict=False):
            is_whole = text and PARTIAL not in text + of_token[0]  # servers show parts of a character in several ways
            if is_whole and text not in of_token:
                raise Misread(f"it repeats {text!r} where {of_token[0]!r} was sent")
        return math.fsum(value for value in values[len(ids) : len(sent)] if value is not None)


class TokenByToken(Reading):
    """Read an answer one token at a time."""

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
        """Log-probability of a token behind the prompt ``ids``, in nats; ``None`` if the server does not return it."""


class Forced(TokenByToken):
    """Make the token the next one by a logit bias, and read its log-probability without the bias."""

    says = "token by token, each made the next one by logit_bias"

    def forcing(self, token: int) -> dict[str, Any]:
        """Fields of a request that make a token the next one."""
        return {"logit_bias": {str(token): BIAS}}

    def next_token(self, complete: Complete, ids: list[int], token: int) -> float | None:
        written = complete(ids, logprobs=1, **self.forcing(token)).written
        if not written or not self.may_be(written[0], token):
            return None
        return written[0].logprob

    def works(self, complete: Complete, ids: list[int], answers: Sequence[list[int]]) -> bool:
        """Whether the server reports log-probabilities from before the logit bias. Then of two tokens, forced in turn,
        at most one is certain."""
        first = answers[0][0]
        own, *names = self.texts.names([answer[0] for answer in answers])
        others = [answer[0] for answer, texts in zip(answers[1:], names, strict=True) if not {*own} & {*texts}]
        values = [self.next_token(complete, ids, token) for token in (first, *others, int(first == 0))[:2]]
        return None not in values and any((value or 0.0) < -CERTAIN for value in values)


class Allowed(Forced):
    """Ask vLLM to allow one token only, by a field of its requests, and read that token's log-probability."""

    says = "token by token, each the only one allowed"

    def forcing(self, token: int) -> dict[str, Any]:
        return {"allowed_token_ids": [token]}


@dataclass(frozen=True)
class Likeliest(TokenByToken):
    """Look the token up among the ``count`` likeliest next tokens that the server lists."""

    count: int = LIKELIEST[0]
    says = "token by token, where it is among the likeliest that the server lists"

    def _listed(self, complete: Complete, ids: list[int]) -> Sequence[Likely]:
        """Likeliest next tokens behind the prompt ``ids``."""
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
        """Whether the server lists several tokens. Whether the answers' tokens are among them is not tested."""
        return len(self._listed(complete, ids)) > 1


def ways_to_read(tokenizer: PreTrainedTokenizerBase) -> list[Reading]:
    """Return all ways to read log-probabilities, the one with the fewest requests first."""
    texts = TokenTexts(tokenizer)
    return [Echo(texts), Forced(texts), Allowed(texts), *(Likeliest(texts, count=count) for count in LIKELIEST)]
