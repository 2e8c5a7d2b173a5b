"""A model behind a server, in a scorer's place of a model: it is asked for log-probabilities and for texts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool
from typing import Any, TypeVar

from moslora.data.encode import Encoder
from moslora.errors import UsageError
from moslora.evaluation.reading import LIKELIEST, Allowed, Echo, Forced, Likeliest, Prompt, Reading
from moslora.evaluation.server import Choice, Refused, Server, Unavailable

Pair = tuple[list[int], list[int]]
"""A prompt, and an answer behind it, as tokens."""

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
        without_bos: prompts of tokens are sent without their BOS, to find out whether the server adds another one.
    """

    server: Server
    encoder: Encoder
    reading: Reading | None = None
    as_text: bool = False
    without_bos: bool = False

    @property
    def how(self) -> str:
        """How it is asked, in words."""
        form = "text" if self.as_text else "tokens"
        told = self.reading.says if self.reading else "by its texts alone"
        return f"asked as {form}, {told}"

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

    def write(self, ids: list[int], *, max_tokens: int, **fields: Any) -> Choice:
        """What the server writes behind a prompt, greedily.

        Raises:
            Refused: it does not serve this prompt.
        """
        body = {"prompt": self.prompt(ids), "max_tokens": max_tokens, "temperature": 0, **fields}
        return self.server.ask("completions", body).choice

    def prompt(self, ids: list[int]) -> Prompt:
        """A prompt as it is sent.

        Raises:
            Refused: it cannot be sent so: it has no BOS to be left out, or no text has its tokens, as of a prompt that
                has lost its start.
        """
        tokenizer = self.encoder.tokenizer
        if self.without_bos and ids[0] != tokenizer.bos_token_id:
            raise Refused("it has no BOS to be left out")
        if not self.as_text:
            return ids[self.without_bos :]
        added = len(self.encoder.encode("", "", eos=False).ids)  # a BOS that the tokenizer adds
        text = str(tokenizer.decode(ids[added:]))
        if self.encoder.encode(text, "", eos=False).ids != ids:
            raise Refused("its text does not lead to the run's tokens")
        return text


def open_served(server: Server, encoder: Encoder, ids: list[int]) -> Served:
    """How this server is asked: as tokens if it takes this short prompt so, and reads as many or one more; else as
    text.

    Raises:
        Refused: it takes neither.
        Unavailable: it does not answer.
    """
    body = {"max_tokens": 1, "temperature": 0}
    with suppress(Refused):
        read = server.ask("completions", {"prompt": ids, **body}, patient=False).tokens_read
        if not read or read <= len(ids) + 1:
            return Served(server, encoder)
    server.ask("completions", {"prompt": "a", **body})
    return Served(server, encoder, as_text=True)


def with_reading(served: Served, options: Sequence[Sequence[Pair]], *, after_echo: bool = False) -> Served:
    """The same with the first way of reading log-probabilities that works. A server that ends when it is asked in one
    way is asked in the next.

    Args:
        served: how prompts are sent.
        options: of questions, of which the first that can be sent so is tried.
        after_echo: the server has ended when it was asked for those of prompts, which are not asked for any more.

    Raises:
        UsageError: the server tells no log-probabilities.
        Unavailable: it has ended twice.
    """
    prompt: Prompt = ""
    answers: list[list[int]] = []
    for pairs in options:
        with suppress(Refused):
            prompt = served.prompt(pairs[0][0])
            answers = [answer for _, answer in pairs]
            break
    parts = (served.server, served.encoder.tokenizer)
    ways: list[Reading] = []
    if answers:
        ways = [Echo(*parts), Forced(*parts), Allowed(*parts)]
        ways += [Likeliest(*parts, count=count) for count in LIKELIEST]
    ended = None
    for way in ways[after_echo:]:
        try:
            if way.works(prompt, answers):
                return replace(served, reading=replace(way, patient=True))
        except Refused:
            continue
        except Unavailable as fault:
            if ended:
                raise
            ended = fault
    if ended:
        raise ended
    raise UsageError(
        f"{served.server.name}: tells no log-probabilities, which score the options; let texts answer, of the run and"
        " of the server: --protocol generate"
    )


def each_reply(ask: Callable[[Item], Reply], items: Sequence[Item], *, at_once: int) -> Iterator[Reply]:
    """What ``ask`` returns for these items, several at a time, in the order in which they are done; its first error is
    raised.

    The threads of this pool are daemons: Ctrl-C ends a program that waits for a server.
    """
    with ThreadPool(at_once) as pool:
        yield from pool.imap_unordered(ask, items)
