"""Whether the server makes the run's prompt of a text and of a chat: asked at each call, and told by its own answers.

The same server is asked the same questions as tokens and as text. Its rounding is the same, so that answers that differ
come from other tokens.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moslora.evaluation.evaluate_server import Asked, Interview
from moslora.evaluation.served import Served, each_reply
from moslora.evaluation.server import Choice, Refused
from moslora.prompts.instructions import instruction
from moslora.runs.predictions import Prediction
from moslora.verify.fit import centered, distance, size
from moslora.verify.verdict import FEWEST, MOST, Verdict

PROBES = 16
"""Questions that are asked again in another way."""

SHORT = 8
"""Tokens of the beginning of an answer, which is compared with a chat's: later ones cannot be asked for there."""

Answers = Mapping[str, Any]
"""The scores of each question's options by id, or its text."""


@dataclass(frozen=True)
class PromptTests:
    """A server that has answered, and is asked some of the questions again.

    Attributes:
        interview: how it was asked.
        run: the run's scores by id.
        answers: the server's scores or texts by id.
        tolerance: what rounding explains of a distance, in nats; 0 if the server tells no log-probabilities.
    """

    interview: Interview
    run: Answers
    answers: Answers
    tolerance: float

    @property
    def served(self) -> Served:
        return self.interview.served

    @property
    def probes(self) -> list[Asked]:
        """The questions that are asked again."""
        asked = [question for question in self.interview.questions if question.id in self.answers]
        return asked[:: max(1, len(asked) // PROBES)][:PROBES]

    def verdict(self, verdict: Verdict) -> Verdict:
        """The verdict on the answers, or that the server makes another prompt than the run's; and where that could not
        be tested, that this is undecided."""
        if not verdict.agrees:
            may_be_bos = self.tolerance and verdict.kind not in ("base", "scale", "context", "undecided")
            if may_be_bos and self._bos_is_added():
                return _another("as tokens", "tokens without their BOS")
            return verdict
        if not self.served.as_text:
            how = "when it is sent as text"
            others = self._answers(as_text=True)
            if len(others) < FEWEST:  # where an option begins, a text may lead to other tokens
                served = replace(self.served, as_text=True)
                verdict = self._by_beginnings(how, lambda asked: self._begun(asked, served), verdict)
            elif not self._are_same(self.answers, others):
                return _another(how, "tokens")
        if verdict.agrees and self.probes[0].scorer.format.name == "chat":
            verdict = self._by_beginnings("in a chat", self._begun_in_chat, verdict)
        return verdict

    def _bos_is_added(self) -> bool:
        """Whether prompts without their BOS give the run's answers."""
        others = self._answers(without_bos=True)
        if self.served.as_text or not self._are_same(others, self.run):
            return False
        return _distance(others, self.run) < _distance(self.answers, self.run) / 2

    def _answers(self, **changes: Any) -> Answers:
        """The scores or texts of the probes, asked in a way with these changes."""
        served = replace(self.served, **changes)
        replies = each_reply(lambda asked: asked.answer(served), self.probes, at_once=self.interview.at_once)
        return answers_of(replies)

    def _are_same(self, one: Answers, other: Answers) -> bool:
        """Whether two models, or one in two ways, answer the questions that both answer alike; false of too few."""
        both = one.keys() & other.keys()
        if len(both) < FEWEST:
            return False
        if not self.tolerance:
            return sum(one[id] == other[id] for id in both) >= MOST * len(both)
        return _distance(one, other) <= self.tolerance

    def _by_beginnings(self, how: str, begun: Callable[[Asked], Choice], verdict: Verdict) -> Verdict:
        """Of prompts that reach the server in another way: an answer must begin there as behind the run's template."""

        def asked_twice(asked: Asked) -> tuple[Choice, Choice] | Refused:
            try:
                return begun(asked), self._begun(asked, self.served)
            except Refused as refusal:
                return refusal

        both = []
        reason = ""
        for reply in each_reply(asked_twice, self.probes, at_once=self.interview.at_once):
            if isinstance(reply, Refused):
                reason = str(reply)
            else:
                both.append(reply)
        if len(both) < FEWEST:
            return Verdict("undecided", f"{verdict.says}; but the prompt {how} could not be tested ({reason})")
        alike = [(one, other) for one, other in both if one.content == other.content]
        moved = []
        for one, other in alike:
            for first, second in zip(one.written, other.written, strict=False):  # one may have the end's, too
                if first.logprob is not None and second.logprob is not None:
                    moved.append(first.logprob - second.logprob)
        is_near = not moved or size([np.array(moved)]) <= self.tolerance
        if len(alike) >= MOST * len(both) and is_near:
            return verdict
        return _another(how, "text" if self.served.as_text else "tokens")

    def _begun_in_chat(self, asked: Asked) -> Choice:
        """What follows a user's message in the server's own template."""
        message = {"role": "user", "content": instruction(asked.example)}
        body: dict[str, Any] = {"messages": [message], "max_tokens": SHORT, "temperature": 0}
        if self.tolerance:
            body |= {"logprobs": True, "top_logprobs": 1}
        return self.served.server.ask("chat/completions", body).choice

    def _begun(self, asked: Asked, served: Served) -> Choice:
        """What follows the run's own template."""
        scorer = asked.scorer
        prompt = scorer.encoder.encode(scorer.format.generation_prompt(asked.example), "", eos=False)
        told = {"logprobs": 1} if self.tolerance else {}
        return served.write(prompt.ids, max_tokens=SHORT, **told)


def _another(how: str, form: str) -> Verdict:
    return Verdict(
        "prompt",
        f"the prompt is another one {how}: another template or tokenizer, BOS twice or missing; sent as {form} it gives"
        " this run's answers",
    )


def answers_of(predictions: Iterable[Prediction]) -> Answers:
    """Those to the questions that were not refused."""
    return {each.id: each.scores or each.text for each in predictions if not each.refused}


def _distance(one: Answers, other: Answers) -> float:
    """Of the questions that both answer."""
    both = [id for id in one if id in other]
    return distance(centered([one[id] for id in both]), centered([other[id] for id in both]))
