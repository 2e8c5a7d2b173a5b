"""The ways in which a question reaches a server: as the run's tokens, as their text, as a chat."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from moslora.evaluation.generate import MAX_NEW_TOKENS
from moslora.verify.questions import Asking, Question
from moslora.verify.reading import LIKELIEST, Nothing, Prompt, Reading, first_choice, written_tokens
from moslora.verify.replies import Reply
from moslora.verify.server import Refused, Server

Start = Literal["as it is", "without BOS", "with one more BOS"]
"""What becomes of a prompt's first token, to find out what a server does to it."""

LABEL_TOKENS = 8
"""Tokens that a server writes where a label is looked for in its text."""


class Way(ABC):
    """A way to ask."""

    name: str

    @abstractmethod
    def reaches(self, question: Question) -> bool:
        """Whether this question can be asked so."""

    @abstractmethod
    def sent(self, question: Question) -> str:
        """What decides the reply, as a text."""

    @abstractmethod
    def answer(self, question: Question) -> tuple[tuple[float | None, ...], str | None]:
        """The scores of the options, and a text; either may be missing.

        Raises:
            Refused: the server does not serve this question.
        """

    def key(self, question: Question) -> tuple[str, str, str]:
        digest = hashlib.sha256(self.sent(question).encode()).hexdigest()[:16]
        return self.name, question.id, digest

    def reply(self, question: Question) -> Reply:
        """The server's reply, which may be a refusal."""
        way, id, sent = self.key(question)
        try:
            scores, text = self.answer(question)
        except Refused as refusal:
            return Reply(id, way, sent, refused=str(refusal))
        return Reply(id, way, sent, scores=scores, text=text)


@dataclass(frozen=True)
class Completion(Way):
    """At ``/v1/completions``, as tokens or as text.

    Attributes:
        asking: how questions become tokens.
        reading: how log-probabilities are read.
        as_text: the prompt is sent as text.
        start: what becomes of its first token.
    """

    asking: Asking
    reading: Reading
    as_text: bool = False
    start: Start = "as it is"

    @property
    def name(self) -> str:  # type: ignore[override]
        form = "tokens"
        if self.as_text:
            form = "text"
        if self.start == "as it is":
            return form
        return f"{form} {self.start}"

    def reaches(self, question: Question) -> bool:
        if self.as_text and not question.has_texts:
            return False
        if self.start == "without BOS":
            return all(prompt[:1] == self._bos for prompt in question.prompts)
        if self.start == "with one more BOS":
            return bool(self._bos)
        return True

    @property
    def _bos(self) -> tuple[int, ...]:
        """The token that a server may add or leave out: the one that the tokenizer adds, or would."""
        known = self.asking.tokenizer.bos_token_id
        if known is None:
            return ()
        return (int(known),)

    def sent(self, question: Question) -> str:
        prompts = [prompt.field for prompt in self._prompts(question)]
        return repr((prompts, question.answers, self.reading.name))

    def _prompts(self, question: Question) -> list[Prompt]:
        return [self._prompt(ids, text) for ids, text in zip(question.prompts, question.texts, strict=True)]

    def _prompt(self, ids: tuple[int, ...], text: str | None) -> Prompt:
        written = text or ""
        if self.start == "without BOS":
            ids = ids[1:]
        elif self.start == "with one more BOS":
            ids = (*self._bos, *ids)
            written = str(self.asking.tokenizer.decode(list(self._bos))) + written
        return Prompt(ids, written, self.as_text)

    def answer(self, question: Question) -> tuple[tuple[float | None, ...], str | None]:
        prompts = self._prompts(question)
        if not question.answers:
            return (), self._written(prompts[0], MAX_NEW_TOKENS)
        if isinstance(self.reading, Nothing):
            return (), self._written(prompts[0], LABEL_TOKENS)
        pairs = zip(prompts, question.answers, strict=True)
        return tuple(self.reading.log_p(prompt, answer) for prompt, answer in pairs), None

    def _written(self, prompt: Prompt, tokens: int) -> str:
        choice = self.reading.complete(prompt, max_tokens=tokens)
        return str(choice.get("text") or "")


@dataclass(frozen=True)
class Chat(Way):
    """At ``/v1/chat/completions``, as a user's message, in the server's own template."""

    asking: Asking
    server: Server
    name: str = "chat"

    def reaches(self, question: Question) -> bool:
        return not question.truncated

    def sent(self, question: Question) -> str:
        return repr((question.instruction, question.answers))

    def answer(self, question: Question) -> tuple[tuple[float | None, ...], str | None]:
        if not question.answers:
            choice = self._complete(question, max_tokens=MAX_NEW_TOKENS)
            return (), _content(choice)
        shared = self._shared(question)
        choice = self._complete(
            question, max_tokens=max(len(shared) + 1, LABEL_TOKENS), logprobs=True, top_logprobs=LIKELIEST[0]
        )
        return self._scores(choice, question, shared), _content(choice)

    def _complete(self, question: Question, **fields: Any) -> dict[str, Any]:
        body = {"messages": [{"role": "user", "content": question.instruction}], "temperature": 0, **fields}
        return first_choice(self.server.ask("chat/completions", body))

    def _shared(self, question: Question) -> Sequence[int]:
        """The tokens of the answer that all options begin with, behind the template's own."""
        template = self.asking.encoder.encode(self.asking.format.generation_prompt(question.example), "", eos=False)
        return question.prompts[0][len(template.ids) :]

    def _scores(self, choice: dict[str, Any], question: Question, shared: Sequence[int]) -> tuple[float | None, ...]:
        """The options' log-probabilities in the place where they differ, if the server has written what they share."""
        tokenizer = self.asking.tokenizer
        written = written_tokens(choice)
        nothing = (None,) * len(question.answers)
        if len(written) <= len(shared):
            return nothing
        for token, wanted in zip(written, shared, strict=False):  # the shared ones come first
            if not token.names(wanted, tokenizer):
                return nothing
        place = written[len(shared)]
        return tuple(place.likeliest_log_p(answer[0], tokenizer) for answer in question.answers)


def _content(choice: dict[str, Any]) -> str:
    message = choice.get("message")
    if not isinstance(message, dict):
        return ""
    return str(message.get("content") or "")
