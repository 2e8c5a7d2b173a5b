"""Whether the server makes the run's prompt of a text and of a chat: asked at each call, and told by its own answers.

The same server is asked the same questions as tokens and as text. Its rounding is the same, so that answers that differ
come from other tokens. Which ones, is found by tokens that begin otherwise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from moslora.evaluation.evaluate_server import Asked, Interview
from moslora.evaluation.served import Served, Start, each_reply
from moslora.evaluation.server import Refused
from moslora.prompts.instructions import instruction
from moslora.runs.evaluation import Evaluation
from moslora.runs.predictions import Prediction
from moslora.verify.evidence import scores_by_id
from moslora.verify.fit import Answered, distance, size
from moslora.verify.verdict import FEWEST, MOST, Verdict

PROBES = 16
"""Questions that are asked again in another way."""

SHORT: Mapping[str, Any] = {"max_tokens": 8, "temperature": 0}
"""Fields of a request for the beginning of an answer, which is compared with a chat's: later tokens cannot be asked for
there."""

UNDOES: Mapping[Start, Start] = {"with one more BOS": "without BOS", "without BOS": "with one more BOS"}
"""How a prompt may begin otherwise. It gives the run's answers, if the server changes it in the other way."""

Reply = TypeVar("Reply")


@dataclass(frozen=True)
class Beginning:
    """What a server begins to write, with the log-probability of each token, where it tells it."""

    text: str
    log_p: tuple[float | None, ...]


@dataclass(frozen=True)
class PromptTests:
    """A server that has answered, and is asked some of the questions again.

    Attributes:
        probes: these questions.
        interview: how it was asked.
        run: the run's scores by id.
        answers: the server's scores or texts by id.
        tolerance: what rounding explains of a distance, in nats; 0 if the server tells no log-probabilities.
    """

    probes: Sequence[Asked]
    interview: Interview
    run: Mapping[str, Sequence[float]]
    answers: Mapping[str, Sequence[float] | str | None]
    tolerance: float

    @classmethod
    def of(cls, interview: Interview, server: Evaluation, run: Evaluation, *, tolerance: float) -> "PromptTests":
        answers: dict[str, Sequence[float] | str | None] = {**scores_by_id(server)}
        for of_task in server.tasks.values():
            answers.update(zip(of_task.ids, of_task.texts, strict=bool(of_task.texts)))
        asked = [question for question in interview.questions if question.id in answers]
        probes = asked[:: max(1, len(asked) // PROBES)][:PROBES]
        return cls(probes, interview, scores_by_id(run), answers, tolerance)

    @property
    def served(self) -> Served:
        return self.interview.served

    @property
    def _starts(self) -> tuple[Start, ...]:
        """How prompts may begin otherwise, by which a fault is named: texts do not tell the ways apart."""
        return tuple(UNDOES) if self.tolerance else ()

    def verdict(self, verdict: Verdict) -> Verdict:
        """The verdict on the answers, or that the server makes another prompt than the run's, and of what; and where
        that could not be tested, that this is undecided."""
        if not verdict.agrees:
            if self.tolerance and verdict.kind not in ("base", "scale", "context", "undecided"):
                return self._undone() or verdict
            return verdict
        if not self.served.as_text:
            verdict = self._as_text(verdict)
        if verdict.agrees and self.probes[0].scorer.format.name == "chat":
            verdict = self._by_beginnings("in a chat", self._replies(self._begun_in_chat), verdict)
        return verdict

    def _replies(self, ask: Callable[[Asked], Reply]) -> tuple[dict[str, Reply], str]:
        """The replies to the probes by id, and why the server does not answer the others."""

        def reply(asked: Asked) -> tuple[str, Reply | None, str]:
            try:
                return asked.id, ask(asked), ""
            except Refused as refusal:
                return asked.id, None, str(refusal)

        found = {}
        reason = ""
        for id, answer, refused in each_reply(reply, self.probes, at_once=self.interview.at_once):
            if answer is None:
                reason = refused
            else:
                found[id] = answer
        return found, reason

    def _answers(self, **changes: Any) -> tuple[dict[str, Sequence[float] | str | None], str]:
        """The scores or texts of the probes, asked in a way with these changes."""
        served = replace(self.served, **changes)

        def answer(asked: Asked) -> Sequence[float] | str | None:
            found: Prediction = asked.answer(served)
            return found.scores or found.text

        return self._replies(answer)

    def _same(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        """Whether two models, or one in two ways, answer the questions that both answer alike; false of too few."""
        both = [id for id in one if id in other]
        if len(both) < FEWEST:
            return False
        if not self.tolerance:
            return sum(one[id] == other[id] for id in both) >= MOST * len(both)
        return self._distance(one, other) <= self.tolerance

    def _distance(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
        both = [id for id in one if id in other]
        return distance(Answered.of([one[id] for id in both]), Answered.of([other[id] for id in both]))

    def _undone(self) -> Verdict | None:
        """That prompts which begin otherwise give the run's answers."""
        for start in self._starts:
            others, _ = self._answers(start=start)
            if not self._same(others, self.run):
                continue
            if self._distance(others, self.run) < self._distance(self.answers, self.run) / 2:
                return Verdict(
                    "prompt",
                    f"the prompt is another one, {self._named(UNDOES[start])}: the server changes the beginning of what"
                    f" it is sent; asked {start} it gives this run's answers",
                )
        return None

    def _named(self, start: Start) -> str:
        """What a server does that begins prompts so."""
        if start == "without BOS":
            return "BOS is missing"
        if self.served.encoder.encode("", "", eos=False).ids:
            return "BOS twice"
        return "with a BOS, which the run has not read"

    def _as_text(self, verdict: Verdict) -> Verdict:
        """Of prompts that are sent as text."""
        others, _ = self._answers(as_text=True)
        how = "when it is sent as text"
        if len(others) < FEWEST:  # where an option begins, a text may lead to other tokens
            return self._by_beginnings(how, self._begun(as_text=True), verdict)
        if self._same(self.answers, others):
            return verdict
        undone = self._undone()
        if undone is not None:  # it is the tokens that are changed
            return undone
        for start in self._starts:
            changed, _ = self._answers(start=start)
            if self._same(changed, others):
                return self._another(how, self._named(start))
        return self._another(how)

    def _by_beginnings(self, how: str, replies: tuple[Mapping[str, Beginning], str], verdict: Verdict) -> Verdict:
        """Of prompts that reach the server in another way: an answer must begin there as behind the run's template."""
        others, reason = replies
        own, reason_of_own = self._begun()
        if len(others.keys() & own.keys()) < FEWEST:
            says = f"{verdict.says}; but the prompt {how} could not be tested ({reason or reason_of_own})"
            return Verdict("undecided", says)
        if self._begins_alike(own, others):
            return verdict
        for start in self._starts:
            changed, _ = self._begun(start=start)
            if self._begins_alike(changed, others):
                return self._another(how, self._named(start))
        return self._another(how)

    def _another(self, how: str, fault: str = "by its template or its tokenizer") -> Verdict:
        form = "as text" if self.served.as_text else "as tokens"
        return Verdict("prompt", f"the prompt is another one {how}, {fault}; sent {form} it gives this run's answers")

    def _begins_alike(self, one: Mapping[str, Beginning], other: Mapping[str, Beginning]) -> bool:
        """Whether these texts begin alike, their tokens as likely in one as in the other; false of too few."""
        both = [id for id in one if id in other]
        moved: list[float] = []
        alike = 0
        for id in both:
            if one[id].text != other[id].text:
                continue
            alike += 1
            for first, second in zip(one[id].log_p, other[id].log_p, strict=False):  # one may have the end's, too
                if first is not None and second is not None:
                    moved.append(first - second)
        if len(both) < FEWEST or alike < MOST * len(both):
            return False
        return not moved or size([np.array(moved)]) <= self.tolerance

    def _begun_in_chat(self, asked: Asked) -> Beginning:
        """What follows a user's message in the server's own template."""
        message = {"role": "user", "content": instruction(asked.example)}
        body: dict[str, Any] = {"messages": [message], **SHORT}
        if self.served.reading is not None:
            body |= {"logprobs": True, "top_logprobs": 1}
        choice = self.served.server.ask("chat/completions", body, what="chats").choice
        text = ""
        if choice.message is not None:
            text = choice.message.content or ""
        return Beginning(text, tuple(token.logprob for token in choice.written))

    def _begun(self, **changes: Any) -> tuple[dict[str, Beginning], str]:
        """What follows the run's own template, asked in a way with these changes."""
        served = replace(self.served, **changes)

        def begun(asked: Asked) -> Beginning:
            scorer = asked.scorer
            prompt = scorer.encoder.encode(scorer.format.generation_prompt(asked.example), "", eos=False)
            body: dict[str, Any] = {"prompt": served.prompt(prompt.ids).field, **SHORT}
            if served.reading is not None:
                body["logprobs"] = 1
            choice = served.server.ask("completions", body, what="texts").choice
            return Beginning(choice.text or "", tuple(token.logprob for token in choice.written))

        return self._replies(begun)
