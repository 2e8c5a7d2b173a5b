"""Servers with one planted fault each, which `eval --server` and `verify` have to name or refuse."""

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


def echoed(change: Callable[[list[float | None]], list[float | None]]) -> Alter:
    """Change the log-probabilities of a prompt's tokens."""

    def alter(body: Json, answer: Json) -> Json:
        logprobs = answer["choices"][0]["logprobs"] or {}
        if body.get("echo") and "token_logprobs" in logprobs:
            logprobs["token_logprobs"] = change(logprobs["token_logprobs"])
        return answer

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


FAULTS: Mapping[str, Fault] = {
    "a cut context": lambda served, draw: {"context": draw.randint(30, 75)},
    "values moved back": lambda served, draw: {"alters": echoed(lambda them: [*them[1:], them[-1]])},
    "values moved on": lambda served, draw: {"alters": echoed(lambda them: [None, *them[:-1]])},
    "another request's answer": lambda served, draw: {"alters": OfAnother(counts=True)},
    "BOS twice in tokens": lambda served, draw: {"begins_tokens": (1,)},
    "BOS twice in a text": lambda served, draw: {"begins_text": (1,)},
    "a token before all": lambda served, draw: {"begins_text": (7,), "begins_tokens": (7,)},
    "a template": lambda served, draw: {"wrap": draw.choice(["user: {}", "{}\nassistant:", " {}"])},
    "another request's answer, its own count": lambda served, draw: {"alters": OfAnother(counts=False)},
}
"""Name -> arguments of `Served.pretended`."""


def faulty(served: Served, name: str, draw: Random, **way: Any) -> Pretended:
    """A server with this fault, which otherwise computes the run, and is asked in this ``way``."""
    return served.pretended(**{**FAULTS[name](served, draw), **way})
