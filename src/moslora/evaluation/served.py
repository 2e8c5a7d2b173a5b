"""A model behind a server, in a scorer's place of a model: it is asked for log-probabilities and for texts."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Literal, TypeVar

from moslora.data.encode import Encoder
from moslora.errors import UsageError
from moslora.evaluation.reading import Prompt, Reading, find_reading
from moslora.evaluation.server import Refused, Server

Pair = tuple[list[int], list[int]]
"""A prompt, and an answer behind it, as tokens."""

Start = Literal["as it is", "without BOS", "with one more BOS"]
"""What becomes of a prompt's first token, to find out what a server does to it."""

Item = TypeVar("Item")
Reply = TypeVar("Reply")


@dataclass(frozen=True)
class Served:
    """A model behind a server, and how it is asked.

    Attributes:
        server: with the model's name.
        encoder: of the tokenizer that made the prompts.
        reading: how log-probabilities are read; ``None`` if the server tells none.
        as_text: prompts are sent as text.
        start: what becomes of a prompt's first token.
    """

    server: Server
    encoder: Encoder
    reading: Reading | None = None
    as_text: bool = False
    start: Start = "as it is"

    @property
    def how(self) -> str:
        """How it is asked, in words."""
        form = "asked as tokens"
        if self.as_text:
            form = "asked as text"
        if self.reading is None:
            return f"{form}, by its texts alone"
        return f"{form}, {self.reading.says}"

    def log_probabilities(self, pairs: Sequence[Pair]) -> list[float]:
        """Σ log p of each answer's tokens behind its prompt, in nats.

        Raises:
            Refused: the server does not serve one of them, or does not tell all.
        """
        assert self.reading is not None
        found = []
        for ids, answer in pairs:
            value = self.reading.log_p(self.prompt(ids), answer)
            if value is None:
                raise Refused("its log-probabilities are not told in whole")
            found.append(value)
        return found

    def text(self, ids: list[int], *, max_tokens: int) -> str:
        """What the server writes, greedily.

        Raises:
            Refused: it does not serve this prompt.
        """
        body = {"prompt": self.prompt(ids).field, "max_tokens": max_tokens, "temperature": 0}
        return self.server.ask("completions", body, what="texts").choice.text or ""

    def prompt(self, ids: list[int]) -> Prompt:
        """A prompt as it is sent.

        Raises:
            Refused: it cannot be sent so, as its text leads to other tokens, or as it has no BOS to be left out.
        """
        text = self._text_of(ids)
        if self.as_text and text is None:
            raise Refused("its text does not lead to the run's tokens")
        bos = self.encoder.tokenizer.bos_token_id
        if self.start == "as it is":
            return Prompt(tuple(ids), text or "", self.as_text)
        if bos is None or (self.start == "without BOS" and ids[:1] != [bos]):
            raise Refused(f"it cannot be sent {self.start}")
        if self.start == "without BOS":
            return Prompt(tuple(ids[1:]), text or "", self.as_text)
        return Prompt((bos, *ids), str(self.encoder.tokenizer.decode([bos])) + (text or ""), self.as_text)

    def _text_of(self, ids: list[int]) -> str | None:
        """The text that has these tokens, without a BOS that the tokenizer adds; ``None`` if none has them, as of a
        prompt that has lost its start."""
        added = len(self.encoder.encode("", "", eos=False).ids)
        text = str(self.encoder.tokenizer.decode(ids[added:]))
        if self.encoder.encode(text, "", eos=False).ids != ids:
            return None
        return text


def open_served(server: Server, encoder: Encoder, prompt: list[int]) -> Served:
    """How this server is asked: as tokens if it takes this short prompt so, else as text.

    Raises:
        Refused: it takes neither.
        Unavailable: it does not answer.
    """
    if _takes_tokens(server, prompt):
        return Served(server, encoder)
    server.ask("completions", {"prompt": "a", "max_tokens": 1, "temperature": 0}, what="a text")
    return Served(server, encoder, as_text=True)


def with_reading(served: Served, options: Sequence[Sequence[Pair]], *, token_by_token: bool = False) -> Served:
    """The same with the first way of reading log-probabilities that works.

    Args:
        served: how prompts are sent.
        options: of questions, of which the first that can be sent so is tried.
        token_by_token: ways that read a prompt's own tokens are left out.

    Raises:
        UsageError: the server tells no log-probabilities.
    """
    reading = None
    for pairs in options:
        with suppress(Refused):
            prompt = served.prompt(pairs[0][0])
            answers = [answer for _, answer in pairs]
            reading = find_reading(
                served.server, served.encoder.tokenizer, prompt, answers, token_by_token=token_by_token
            )
            break
    if reading is None:
        raise UsageError(
            f"{served.server.name}: tells no log-probabilities, which score the options; let texts answer, of the run"
            " and of the server: --protocol generate"
        )
    return replace(served, reading=reading)


def _takes_tokens(server: Server, ids: list[int]) -> bool:
    """Whether the server takes a prompt as tokens, and reads as many as it is sent, or one more."""
    body = {"prompt": ids, "max_tokens": 1, "temperature": 0}
    try:
        read = server.ask("completions", body, what="a prompt of tokens", patient=False).tokens_read
    except Refused:
        return False
    return read is None or read <= len(ids) + 1


def each_reply(ask: Callable[[Item], Reply], items: Sequence[Item], *, at_once: int) -> Iterator[Reply]:
    """What ``ask`` returns for these items, several at a time, in the order in which they are done; its first error is
    raised.

    Its threads are daemons: Ctrl-C ends a program that waits for a server, which no pool of threads allows.
    """
    waiting: SimpleQueue[Item] = SimpleQueue()
    done: SimpleQueue[Reply | Exception] = SimpleQueue()
    stop = threading.Event()
    for item in items:
        waiting.put(item)

    def work() -> None:
        while not stop.is_set():
            try:
                item = waiting.get_nowait()
            except Empty:
                return
            try:
                done.put(ask(item))
            except Exception as error:
                done.put(error)

    for _ in range(min(at_once, len(items))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in items:
            reply = done.get()
            if isinstance(reply, Exception):
                raise reply
            yield reply
    finally:
        stop.set()
