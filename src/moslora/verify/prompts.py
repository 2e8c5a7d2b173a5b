"""Whether the server makes the run's prompt of a text and of a chat: asked again, and told apart by its own answers.

The same server is asked the same questions as tokens and as text. Its rounding is the same, so that answers that differ
come from other tokens. Which ones, is found by tokens that begin otherwise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moslora.verify.answers import scores_by_id
from moslora.verify.fit import Answered, distance, size
from moslora.verify.interview import Interview
from moslora.verify.questions import AskedQuestions, Asking, Question
from moslora.verify.reading import Reading
from moslora.verify.replies import Reply
from moslora.verify.server import Refused, Server
from moslora.verify.verdict import MOST, Verdict
from moslora.verify.ways import Beginning, Completion, Start, Way

PROBES = 16
"""Questions that are asked again in another way."""

STARTS: tuple[Start, ...] = ("with one more BOS", "without BOS")
"""How a prompt may begin otherwise."""

UNDOES: Mapping[Start, Start] = {"without BOS": "with one more BOS", "with one more BOS": "without BOS"}
"""A prompt that begins so gives the run's answers, if the server changes it in the other way."""


@dataclass(frozen=True)
class Asker:
    """A server with how it is asked.

    Attributes:
        asking: how questions become tokens.
        server: the server.
        interview: asks it.
        reading: how its log-probabilities are read.
        as_text: it takes no tokens.
    """

    asking: Asking
    server: Server
    interview: Interview
    reading: Reading
    as_text: bool

    def completion(self, *, as_text: bool | None = None, start: Start = "as it is") -> Completion:
        """The questions at ``/v1/completions``, by default in the form that was found."""
        if as_text is None:
            as_text = self.as_text
        return Completion(self.asking, self.reading, as_text, start)

    def beginning(self, *, in_chat: bool = False, start: Start = "as it is") -> Beginning:
        """What is written behind the run's own template, or in a chat."""
        return Beginning(self.completion(start=start), self.server, in_chat)


def find_prompt_fault(
    asker: Asker, asked: AskedQuestions, replies: Mapping[str, Reply], verdict: Verdict, *, tolerance: float
) -> Verdict | None:
    """That the server makes another prompt than the run's, and of what; ``None`` if it does not.

    Args:
        asker: asks again.
        asked: the questions.
        replies: to the questions as they were asked first.
        verdict: on these replies.
        tolerance: what rounding explains of a distance, in nats; 0 if the server tells no log-probabilities.
    """
    probes = list(asked.questions[:: max(1, len(asked.questions) // PROBES)])[:PROBES]
    may_be_another_prompt = verdict.kind not in ("base", "scale", "context")
    tells_scores = bool(tolerance)
    if not verdict.passed and may_be_another_prompt and tells_scores:
        return _undone(asker, asked, probes, tolerance=tolerance)
    if not verdict.passed:
        return None
    same = Same(replies, tolerance)
    if not asker.as_text:
        fault = _as_text(asker, probes, same)
        if fault is not None:
            undone = _undone(asker, asked, probes, tolerance=tolerance)
            if undone is not None:  # it is the tokens that are changed
                return undone
            return fault
    if asker.asking.format.name == "chat":
        return _as_chat(asker, probes, tolerance=tolerance)
    return None


@dataclass(frozen=True)
class Same:
    """Whether other replies of a server are those of the same prompts."""

    replies: Mapping[str, Reply]
    tolerance: float

    def begins(self, others: Mapping[str, Reply]) -> bool:
        """Whether these texts begin as the other ones, their tokens as likely as there."""
        moved: list[float] = []
        alike = 0
        for id, other in others.items():
            own = self.replies[id]
            if own.text != other.text:
                continue
            alike += 1
            for first, second in zip(own.scores, other.scores, strict=False):  # one may have the end's token, too
                if first is not None and second is not None:
                    moved.append(first - second)
        if alike < MOST * len(others):
            return False
        return not moved or size([np.array(moved)]) <= self.tolerance

    def holds(self, others: Mapping[str, Reply]) -> bool:
        """Whether these replies are the same but for rounding; also where nothing can be compared."""
        scores = []
        texts = []
        for id, other in others.items():
            own = self.replies[id]
            if own.known_scores and other.known_scores:
                scores.append((own.known_scores, other.known_scores))
            elif own.text is not None and other.text is not None:
                texts.append(own.text == other.text)
        if scores:
            first, second = zip(*scores, strict=True)
            return distance(Answered.of(first), Answered.of(second)) <= self.tolerance
        return sum(texts) >= MOST * len(texts)


def _undone(asker: Asker, asked: AskedQuestions, probes: Sequence[Question], *, tolerance: float) -> Verdict | None:
    """That prompts which begin otherwise give the run's answers."""
    as_it_is = _from_run(asked, _asked_if_served(asker.interview, asker.completion(), probes))
    for start in STARTS:
        others = _asked_if_served(asker.interview, asker.completion(start=start), probes)
        off = _from_run(asked, others)
        if off <= tolerance and off < as_it_is / 2:
            fault = _named(UNDOES[start], asker.asking)
            return Verdict(
                "prompt",
                f"the prompt is another one, {fault}: the server changes the beginning of what it is sent; asked"
                f" {start} it gives this run's answers",
            )
    return None


def _named(start: Start, asking: Asking) -> str:
    """What a server does that begins prompts so."""
    if start == "without BOS":
        return "BOS is missing"
    if asking.own_bos:
        return "BOS twice"
    return "with a BOS, which the run has not read"


def _from_run(asked: AskedQuestions, replies: Mapping[str, Reply]) -> float:
    """How far these replies are from the run's answers, in nats; infinite if they cannot be compared."""
    own = scores_by_id(asked.run)
    pairs = []
    for id, reply in replies.items():
        if reply.known_scores and own.get(id):
            pairs.append((own[id], reply.known_scores))
    if not pairs:
        return math.inf
    first, second = zip(*pairs, strict=True)
    return distance(Answered.of(first), Answered.of(second))


def _as_text(asker: Asker, probes: Sequence[Question], same: Same) -> Verdict | None:
    """That the prompts' text gives other answers than their tokens."""
    others = _asked_if_served(asker.interview, asker.completion(as_text=True), probes)
    if same.holds(others):
        return None
    return Verdict(
        "prompt",
        f"the prompt is another one when it is sent as text, {_what_begins(asker, probes, others, same.tolerance)};"
        " sent as tokens it gives this run's answers",
    )


def _as_chat(asker: Asker, probes: Sequence[Question], *, tolerance: float) -> Verdict | None:
    """That a chat gives other answers than the tokens of the run's own template."""
    chat = _asked_if_served(asker.interview, asker.beginning(in_chat=True), probes)
    own = _asked_if_served(asker.interview, asker.beginning(), probes)
    both = {id: reply for id, reply in chat.items() if id in own}
    if not both or Same(own, tolerance).begins(both):
        return None
    fault = "by its template"
    for start in STARTS:
        changed = _asked_if_served(asker.interview, asker.beginning(start=start), probes)
        if changed.keys() >= both.keys() and Same(changed, tolerance).begins(both):
            fault = _named(start, asker.asking)
    return Verdict(
        "prompt",
        f"the prompt is another one in a chat, {fault}; sent as a prompt it gives this run's answers",
    )


def _what_begins(asker: Asker, probes: Sequence[Question], others: Mapping[str, Reply], tolerance: float) -> str:
    """What the server does to the beginning of a prompt: what tokens that begin so answer, too."""
    same = Same(others, tolerance)
    for start in STARTS:
        changed = _asked_if_served(asker.interview, asker.completion(start=start), probes)
        both = {id: reply for id, reply in changed.items() if id in others}
        if both and same.holds(both):
            return _named(start, asker.asking)
    return "by its template or its tokenizer"


def _asked_if_served(interview: Interview, way: Way, probes: Sequence[Question]) -> dict[str, Reply]:
    """The replies to questions that this way reaches; none where the server does not serve it."""
    try:
        replies = interview.ask(way, probes)
    except Refused:
        return {}
    return {id: reply for id, reply in replies.items() if not reply.refused}
