"""Test whether a server makes the run's own prompt of a text and of a chat.

The same server continues the same questions, sent as tokens and as text or as a chat. Its rounding is the same for
both, so different continuations come from different tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from moslora.evaluation.evaluator import PreparedQuestions
from moslora.evaluation.model import Served, each_reply
from moslora.evaluation.scorers import EncodedQuestion
from moslora.evaluation.server import Misread, Refused, Reply
from moslora.prompts.instructions import instruction
from moslora.verify.fit import size
from moslora.verify.verdict import FEWEST, MOST, Verdict

PROBES = 16
"""Number of answered questions that are continued in another form."""

BEGINNING = 8
"""Number of tokens of each continuation."""


@dataclass(frozen=True)
class PromptTests:
    """Tests of whether a server makes the run's prompt, by asking answered questions as text and in a chat.

    Attributes:
        served: the model behind the server, with the form in which prompts were sent to it.
        prepared: the questions that it was asked.
        answered: ids of the questions that it has answered.
        tolerance: largest distance that rounding explains, in nats; 0 if the server returns no log-probabilities.
    """

    served: Served
    prepared: PreparedQuestions
    answered: frozenset[str]
    tolerance: float

    @cached_property
    def probes(self) -> list[EncodedQuestion]:
        """Questions that the server has answered, to be sent again with their prompts in another form."""
        answered = [question for question in self.prepared.encoded() if question.example.id in self.answered]
        return answered[:: max(1, len(answered) // PROBES)][:PROBES]

    @property
    def is_chat(self) -> bool:
        """Whether the run's prompts are made by its chat template."""
        return self.prepared.tasks[0].scorer.format.name == "chat"

    def verdict(self, verdict: Verdict) -> Verdict:
        """Return ``verdict``, unless it agrees with the run and the server turns a request into other prompts than the
        run, or this could not be tested; then a verdict that says so."""
        if not verdict.agrees:
            return verdict
        if self.served.without_bos:
            return _another("when it is sent as tokens", "tokens without their BOS")
        if not self.served.as_text:
            as_text = replace(self.served, as_text=True)
            verdict = self._compare("when it is sent as text", lambda each: self._continued(each, as_text), verdict)
        if verdict.agrees and self.is_chat:
            verdict = self._compare("in a chat", self._continued_in_chat, verdict)
        return verdict

    def _compare(self, how: str, continued: Callable[[EncodedQuestion], Reply], verdict: Verdict) -> Verdict:
        """Return ``verdict`` if the server continues the probes, sent by ``continued``, as it continues the run's own
        prompts, sent as before; otherwise a verdict that it makes another prompt, or that this could not be tested."""
        another = _another(how, "text" if self.served.as_text else "tokens")

        def both(question: EncodedQuestion) -> tuple[Reply, Reply] | Refused:
            try:
                return continued(question), self._continued(question, self.served)
            except Refused as refusal:
                return refusal

        pairs = []
        reason = ""
        for reply in each_reply(both, self.probes, at_once=self.served.at_once):
            if isinstance(reply, Misread):
                return another
            if isinstance(reply, Refused):
                reason = str(reply)
            else:
                pairs.append(reply)
        if len(pairs) < FEWEST:
            return Verdict("undecided", f"{verdict.says}; but the prompt {how} could not be tested ({reason})")
        alike = [(one, other) for one, other in pairs if (one.text or "") == (other.text or "")]
        differences = []
        for one, other in alike:
            for first, second in zip(one.written, other.written, strict=False):  # one may have the end's, too
                if first.logprob is not None and second.logprob is not None:
                    differences.append(first.logprob - second.logprob)
        is_near = not differences or size([np.array(differences)]) <= self.tolerance
        return verdict if is_near and len(alike) >= MOST * len(pairs) else another

    def _continued_in_chat(self, question: EncodedQuestion) -> Reply:
        """The beginning of the answer to a user's message, in the server's own template."""
        message = {"role": "user", "content": instruction(question.example)}
        body: dict[str, Any] = {"messages": [message], "max_tokens": BEGINNING, "temperature": 0}
        if self.tolerance:
            body |= {"logprobs": True, "top_logprobs": 1}
        if question.truncated:
            raise Refused("a chat is not cut as the run's prompts are")
        return self.served.server.ask("chat/completions", body).of_prompt(len(self._prompt(question)))

    def _continued(self, question: EncodedQuestion, served: Served) -> Reply:
        """What the server continues the question with, sent in the run's own template: the beginning of its answer."""
        fields = {"logprobs": 1} if self.tolerance else {}
        return served.complete(self._prompt(question), max_tokens=BEGINNING, **fields)

    def _prompt(self, question: EncodedQuestion) -> list[int]:
        """Prompt of a question as tokens. In a chat it ends where the answer begins, as in the server's template."""
        if not self.is_chat:
            return question.pairs[0][0]
        task = self.prepared.tasks[0]
        prompt = task.scorer.format.generation_prompt(question.example)
        return self.prepared.encoder.encode(prompt, "", eos=False).ids


def _another(how: str, form: str) -> Verdict:
    return Verdict(
        "prompt",
        f"the prompt is another one {how}: another template or tokenizer, BOS twice or missing; sent as {form} it gives"
        " this run's answers",
    )
