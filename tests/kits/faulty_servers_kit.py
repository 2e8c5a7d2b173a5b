"""Servers with one planted fault each, which `eval --server` and `verify` have to name or refuse."""

import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from served_kit import Served
from server_kit import Pretended

Json = dict[str, Any]
Alter = Callable[[Json, Json], Json]
"""What is answered to a request, in place of the right answer."""

Fault = Callable[[Served, Random], Json]
"""What makes a server of `Served.pretended` faulty."""


def values(change: Callable[[list[float | None]], list[float | None]]) -> Alter:
    """The log-probabilities of each answer, changed together."""

    def alter(body: Json, answer: Json) -> Json:
        told = answer["choices"][0]["logprobs"] or {}
        if "token_logprobs" in told:
            told["token_logprobs"] = change(told["token_logprobs"])
        for entry in told.get("content") or ():
            for token in (entry, *entry["top_logprobs"]):
                (token["logprob"],) = change([token["logprob"]])
        for place, top in enumerate(told.get("top_logprobs") or ()):
            told["top_logprobs"][place] = dict(zip(top, change([*top.values()]), strict=True))
        return answer

    return alter


def each(change: Callable[[float], float]) -> Alter:
    """Every log-probability of an answer, changed alone."""
    return values(lambda them: [None if value is None else change(value) for value in them])


def echoed(change: Callable[[list[float | None]], list[float | None]]) -> Alter:
    """The log-probabilities of a prompt's tokens."""
    alter = values(change)
    return lambda body, answer: alter(body, answer) if body.get("echo") else answer


def counted_whole(served: Served) -> Alter:
    """The number of tokens that were sent, whatever the server has read."""
    tokenizer = served.tokenizer

    def alter(body: Json, answer: Json) -> Json:
        sent = body["prompt"]
        ids = tokenizer(sent).input_ids if isinstance(sent, str) else sent
        return answer | {"usage": {"prompt_tokens": len(ids)}}

    return alter


class OfAnother:
    """Every third answer is that to the request before, its count as well where ``counts``."""

    def __init__(self, *, counts: bool) -> None:
        self.counts = counts
        self.answers: list[Json] = []

    def __call__(self, body: Json, answer: Json) -> Json:
        self.answers.append(answer)
        if len(self.answers) % 3 or len(self.answers) < 6:  # the first ones find out what the server offers
            return answer
        return self.answers[-2] | ({} if self.counts else {"usage": answer["usage"]})


class Stale:
    """An answer is repeated to every prompt that begins with the same tokens, or characters."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.answers: dict[str, Json] = {}

    def __call__(self, body: Json, answer: Json) -> Json:
        key = str((body["prompt"][: self.length], len(body["prompt"]), body.get("logit_bias")))
        return self.answers.setdefault(key, answer)


FAULTS: Mapping[str, Fault] = {
    "a cut context": lambda served, draw: {"context": draw.randint(30, 75)},
    "values moved back": lambda served, draw: {"alters": echoed(lambda them: [*them[1:], them[-1]])},
    "values moved on": lambda served, draw: {"alters": echoed(lambda them: [None, *them[:-1]])},
    "values of the last tokens": lambda served, draw: {"alters": echoed(lambda them: them[-draw.randint(2, 9) :])},
    "another request's answer": lambda served, draw: {"alters": OfAnother(counts=True)},
    "a stale answer": lambda served, draw: {"alters": Stale(draw.randint(8, 20))},
    "BOS twice in tokens": lambda served, draw: {"begins_tokens": (1,)},
    "BOS twice in a text": lambda served, draw: {"begins_text": (1,)},
    "a token before all": lambda served, draw: {"begins_text": (7,), "begins_tokens": (7,)},
    "a template": lambda served, draw: {"wrap": draw.choice(["user: {}", "{}\nassistant:", " {}"])},
    "a cut context, counted whole": lambda served, draw: {"context": 60, "alters": counted_whole(served)},
    "another request's answer, its own count": lambda served, draw: {"alters": OfAnother(counts=False)},
    "values moved back behind the first": lambda served, draw: {
        "alters": echoed(lambda them: [None, *them[2:], them[-1]])
    },
    "a temperature": lambda served, draw: {"alters": each(lambda value: value * draw.choice([0.5, 0.7, 1.4]))},
    "logarithms to the base 2": lambda served, draw: {"alters": each(lambda value: value / math.log(2))},
    "probabilities": lambda served, draw: {"alters": each(math.exp)},
    "the sign": lambda served, draw: {"alters": each(lambda value: -value)},
    "one digit": lambda served, draw: {"alters": each(lambda value: round(value))},
    "the base": lambda served, draw: {"model": served.model(base=True)},
    "half of the adapter": lambda served, draw: {"model": served.model(scale=draw.choice([0.5, 0.8, 1.3]))},
    "another checkpoint": lambda served, draw: {"model": served.model("checkpoints/step-36")},
}
"""By name. Only a comparison with the run's own answers shows the last eleven, or for the first two of these a prompt
that the server repeats. `eval` takes such answers as they are."""

UNSEEN_BY_EVAL = [*FAULTS][-11:]


def faulty(served: Served, name: str, draw: Random, **way: Any) -> Pretended:
    """A server with this fault, which otherwise computes the run, and is asked in this ``way``."""
    return served.pretended(**{**FAULTS[name](served, draw), **way})
