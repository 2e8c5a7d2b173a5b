"""The ways in which a question reaches a server: as the run's tokens, as their text, as a chat."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

from moslora.evaluation.generate import MAX_NEW_TOKENS
from moslora.verify.questions import Asking, Question
from moslora.verify.reading import Nothing, Prompt, Reading, first_choice, written_tokens
from moslora.verify.replies import Reply
from moslora.verify.server import Refused, Server

Start = Literal["as it is", "without BOS", "with one more BOS"]
"""What becomes of a prompt's first token, to find out what a server does to it."""

LABEL_TOKENS = 8
"""Tokens that a server writes where a label is looked for in its text, or its beginning is compared."""


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
        return [self.prompt(ids, text) for ids, text in zip(question.prompts, question.texts, strict=True)]

    def prompt(self, ids: tuple[int, ...], text: str | None) -> Prompt:
        """A prompt as it is sent."""
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
class Beginning(Way):
    """What a server begins to write as its answer, with the log-probability of each token as a score.

    A chat is compared with the run's own template in this way: an answer's later tokens cannot be asked for in a chat.

    Attributes:
        completion: how a prompt is sent.
        server: the server.
        in_chat: at ``/v1/chat/completions``, as a user's message, in the server's own template.
    """

    completion: Completion
    server: Server
    in_chat: bool

    @property
    def name(self) -> str:  # type: ignore[override]
        if self.in_chat:
            return "chat"
        return f"{self.completion.name}, to compare with a chat"

    def reaches(self, question: Question) -> bool:
        return self.in_chat or self.completion.reaches(question)

    def sent(self, question: Question) -> str:
        if self.in_chat:
            return question.instruction
        return repr(self._prompt(question).field)

    def _prompt(self, question: Question) -> Prompt:
        return self.completion.prompt(*self.completion.asking.template(question.example))

    def answer(self, question: Question) -> tuple[tuple[float | None, ...], str | None]:
        body: dict[str, Any] = {"max_tokens": LABEL_TOKENS, "temperature": 0}
        if not isinstance(self.completion.reading, Nothing):
            body["logprobs"] = 1
        if not self.in_chat:
            body["prompt"] = self._prompt(question).field
            choice = first_choice(self.server.ask("completions", body))
            return _written_log_p(choice), str(choice.get("text") or "")
        if "logprobs" in body:
            body |= {"logprobs": True, "top_logprobs": 1}
        body["messages"] = [{"role": "user", "content": question.instruction}]
        choice = first_choice(self.server.ask("chat/completions", body))
        return _written_log_p(choice), _content(choice)


def _written_log_p(choice: dict[str, Any]) -> tuple[float | None, ...]:
    return tuple(token.log_p for token in written_tokens(choice))


def _content(choice: dict[str, Any]) -> str:
    message = choice.get("message")
    if not isinstance(message, dict):
        return ""
    return str(message.get("content") or "")
