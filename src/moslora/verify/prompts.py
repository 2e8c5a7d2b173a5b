"""Whether the server makes the run's own prompt of a text and of a chat, told by its own answers.

The same server is asked the same questions as tokens and as text. Its rounding is the same, so that answers that differ
come from other tokens.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from moslora.data.encode import EncodedText
from moslora.evaluation.evaluator import PreparedQuestions
from moslora.evaluation.model import Served, each_reply
from moslora.evaluation.scorers import EncodedQuestion
from moslora.evaluation.server import Misread, Refused, Reply
from moslora.prompts.formats import Format
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
        served: how it was asked.
        prepared: the questions that it was asked.
        answers: the server's scores or texts by id.
        tolerance: what rounding explains of a distance, in nats; 0 if the server tells no log-probabilities.
    """

    served: Served
    prepared: PreparedQuestions
    answers: Answers
    tolerance: float

    @cached_property
    def probes(self) -> list[EncodedQuestion]:
        """Those answered questions that are asked again."""
        answered = [question for question in self.prepared.encoded() if question.example.id in self.answers]
        return answered[:: max(1, len(answered) // PROBES)][:PROBES]

    @property
    def format(self) -> Format:
        """The format of the run's prompts."""
        return self.prepared.tasks[0].scorer.format

    def verdict(self, verdict: Verdict) -> Verdict:
        """The verdict on the answers, or that the server makes another prompt than the run's; and where that could not
        be tested, that this is undecided."""
        if not verdict.agrees:
            return verdict
        if self.served.without_bos:
            return _another("when it is sent as tokens", "tokens without their BOS")
        if not self.served.as_text:
            verdict = self._of_text(verdict)
        if verdict.agrees and self.format.name == "chat":
            verdict = self._by_beginnings("in a chat", self._begun_in_chat, verdict)
        return verdict

    def _of_text(self, verdict: Verdict) -> Verdict:
        """Of prompts that are sent as text: their answers must be those of tokens."""
        how = "when it is sent as text"
        as_text = replace(self.served, as_text=True)
        probes = self.prepared.only({question.example.id for question in self.probes})
        others = answers_of(probes.ask(as_text))
        if len(others) < FEWEST:  # where an option begins, a text may lead to other tokens
            return self._by_beginnings(how, lambda question: self._begun(question, as_text), verdict)
        return verdict if self._are_same(self.answers, others) else _another(how, "tokens")

    def _are_same(self, one: Answers, other: Answers) -> bool:
        """Whether two models, or one in two ways, answer the questions that both answer alike; false of too few."""
        both = one.keys() & other.keys()
        if len(both) < FEWEST:
            return False
        if not self.tolerance:
            return sum(one[id] == other[id] for id in both) >= MOST * len(both)
        return _distance(one, other) <= self.tolerance

    def _by_beginnings(self, how: str, begun: Callable[[EncodedQuestion], Reply], verdict: Verdict) -> Verdict:
        """Of prompts that reach the server in another way: an answer must begin there as behind the run's template."""

        def asked_twice(question: EncodedQuestion) -> tuple[Reply, Reply] | Refused:
            try:
                return begun(question), self._begun(question, self.served)
            except Refused as refusal:
                return refusal

        both = []
        reason = ""
        for reply in each_reply(asked_twice, self.probes, at_once=self.served.at_once):
            if isinstance(reply, Misread):
                return _another(how, "text" if self.served.as_text else "tokens")
            if isinstance(reply, Refused):
                reason = str(reply)
            else:
                both.append(reply)
        if len(both) < FEWEST:
            return Verdict("undecided", f"{verdict.says}; but the prompt {how} could not be tested ({reason})")
        alike = [(one, other) for one, other in both if (one.text or "") == (other.text or "")]
        moved = []
        for one, other in alike:
            for first, second in zip(one.written, other.written, strict=False):  # one may have the end's, too
                if first.logprob is not None and second.logprob is not None:
                    moved.append(first.logprob - second.logprob)
        is_near = not moved or size([np.array(moved)]) <= self.tolerance
        if len(alike) >= MOST * len(both) and is_near:
            return verdict
        return _another(how, "text" if self.served.as_text else "tokens")

    def _begun_in_chat(self, question: EncodedQuestion) -> Reply:
        """What follows a user's message in the server's own template."""
        message = {"role": "user", "content": instruction(question.example)}
        body: dict[str, Any] = {"messages": [message], "max_tokens": SHORT, "temperature": 0}
        if self.tolerance:
            body |= {"logprobs": True, "top_logprobs": 1}
        prompt = self._prompt(question)
        if prompt.truncated:
            raise Refused("a chat is not cut as the run's prompts are")
        return self.served.server.ask("chat/completions", body).of_prompt(len(prompt.ids))

    def _begun(self, question: EncodedQuestion, served: Served) -> Reply:
        """What follows the run's own template."""
        told = {"logprobs": 1} if self.tolerance else {}
        return served.complete(self._prompt(question).ids, max_tokens=SHORT, **told)

    def _prompt(self, question: EncodedQuestion) -> EncodedText:
        """The run's own template, behind which an answer is written."""
        return self.prepared.encoder.encode(self.format.generation_prompt(question.example), "", eos=False)


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
