"""A model behind a server, in a scorer's place of a model: it is asked for log-probabilities and for texts.

The scorer of the protocol puts the questions into tokens and reads the answers; between the two the server computes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool
from typing import Any, TypeVar

from moslora.console import say
from moslora.data.encode import TokenPair
from moslora.errors import MosloraError, UsageError, counted
from moslora.evaluation.journal import Journal
from moslora.evaluation.reading import Echo, Reading, ways_to_read
from moslora.evaluation.scorer import Question, Scorer
from moslora.evaluation.scorers import scorer_of
from moslora.evaluation.server import Misread, Refused, Reply, Server, Unavailable
from moslora.progress import Line
from moslora.runs.predictions import Prediction

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Served:
    """A model behind a server, and how it is asked.

    Attributes:
        server: with the model's name.
        scorer: of the protocol; texts and open-ended questions have their own (`scorer_of`).
        at_once: number of questions that are asked at the same time.
        reading: how log-probabilities are read; ``None`` if the server tells none.
        as_text: prompts are sent as text.
        without_bos: prompts of tokens are sent without their BOS, because the server adds one.
    """

    server: Server
    scorer: Scorer[Any]
    at_once: int
    reading: Reading | None = None
    as_text: bool = False
    without_bos: bool = False

    @property
    def how(self) -> str:
        """How it is asked, in words."""
        form = "text" if self.as_text else "tokens without BOS" if self.without_bos else "tokens"
        told = self.reading.says if self.reading else "by its texts alone"
        return f"asked as {form}, {told}"

    def log_probabilities(self, pairs: Sequence[TokenPair]) -> list[float]:
        """Σ log p of each answer's tokens behind its prompt, in nats.

        Raises:
            Refused: the server does not serve one of them, or does not tell all.
        """
        assert self.reading is not None
        found = []
        for ids, answer in pairs:
            value = self.reading.log_p(self.write, ids, answer)
            if value is None:
                raise Refused("its log-probabilities are not told in whole")
            found.append(value)
        return found

    def write(self, ids: list[int], *, max_tokens: int = 1, **fields: Any) -> Reply:
        """What the server writes behind a prompt, greedily.

        Raises:
            Refused: it does not serve this prompt, or reads more or fewer tokens.
        """
        return self.server.complete(self.prompt(ids), max_tokens=max_tokens, **fields).of_prompt(len(ids))

    def prompt(self, ids: list[int]) -> str | list[int]:
        """A prompt as it is sent.

        Raises:
            Refused: it cannot be sent so: it has no BOS to be left out, or no text has its tokens, as of a prompt that
                has lost its start.
        """
        encoder = self.scorer.encoder
        if self.without_bos and ids[0] != encoder.tokenizer.bos_token_id:
            raise Refused("it has no BOS to be left out")
        if not self.as_text:
            return ids[self.without_bos :]
        added = len(encoder.encode("", "", eos=False).ids)  # a BOS that the tokenizer adds
        text = str(encoder.tokenizer.decode(ids[added:]))
        if encoder.encode(text, "", eos=False).ids != ids:
            raise Refused("its text does not lead to the run's tokens")
        return text

    def with_reading(self, questions: Sequence[Question], *, after_echo: bool = False) -> "Served":
        """The same with the first way of reading log-probabilities that works for the shortest question that can be
        sent; without any if none of the ``questions`` is scored by them. A server that ends when it is asked in one way
        is asked in the next. ``after_echo``: it has ended over those of prompts, which are not asked for any more.

        Raises:
            UsageError: the server tells no log-probabilities.
            Unavailable: it has ended twice.
            MosloraError: it reads another prompt than the one that was sent.
        """
        scored = [question for question in questions if question.is_scored]
        if not scored:
            return self
        tried = self._shortest_that_can_be_sent(scored)
        misread = ended = None
        impatient = replace(self, server=replace(self.server, patient=False))
        for way in ways_to_read(self.scorer.encoder.tokenizer)[after_echo:]:
            try:
                if tried and way.works(impatient.write, *tried):
                    return replace(self, reading=way)
            except Misread as fault:
                misread = fault
            except Refused:
                continue
            except Unavailable as fault:
                if ended:
                    raise
                ended = fault
        if ended:
            raise ended
        if misread:
            raise MosloraError(f"{self.server.name}: {misread}")
        raise UsageError(
            f"{self.server.name}: tells no log-probabilities, which score the options; let texts answer, of the run and"
            " of the server: --protocol generate"
        )

    def _shortest_that_can_be_sent(self, questions: Sequence[Question]) -> tuple[list[int], list[list[int]]] | None:
        """A question's prompt, with its answers."""
        for question in sorted(questions, key=lambda question: question.tokens):
            ids, _ = question.pairs[0]
            with suppress(Refused):
                self.prompt(ids)
                return ids, [answer for _, answer in question.pairs]
        return None

    def replies(self, questions: Sequence[Question]) -> Iterator[Prediction]:
        """What it answers, in the order in which it does; nothing but the reason where it does not, or not in whole."""

        def reply(question: Question) -> Prediction:
            example = question.example
            scorer = scorer_of(example, self.scorer)
            try:
                return scorer.read(question, scorer.ask(question, self))
            except Refused as refusal:
                return Prediction(example.id, example.task, example.gold, prediction=None, refused=str(refusal))

        return each_reply(reply, questions, at_once=self.at_once)

    def answer_missing(self, questions: Sequence[Question], journal: Journal) -> "Served":
        """Adds the answers that are missing to the journal, each as soon as it is there. A server that ends while it is
        asked for the log-probabilities of prompts is asked token by token, if it is there again. Returns how the last
        was asked.

        Raises:
            Unavailable: the server is gone.
            MosloraError: it answers none of the questions.
        """
        missing = [question for question in questions if question.example.id not in journal.predictions]
        if not missing:
            return self
        say(f"asking {counted(len(missing), 'question')} of {self.server.name}, {self.how}")
        try:
            with Line(len(missing), f"0/{len(missing):,}") as line:
                for done, prediction in enumerate(self.replies(missing), start=1):
                    journal.keep([prediction])
                    line.show(done, f"{prediction.task} {done:,}/{len(missing):,}")
        except Unavailable as fault:
            if isinstance(self.reading, Echo):
                with suppress(Unavailable, UsageError):
                    return self.with_reading(questions, after_echo=True).answer_missing(questions, journal)
            kept = sum(question.example.id in journal.predictions for question in questions)
            raise Unavailable(
                f"{fault}, {self.how}; {kept} of {len(questions)} questions answered and kept: the same command goes"
                " on; --at-once 1 asks for one prompt at a time, which some servers need"
            ) from None
        reasons = [journal.predictions[question.example.id].refused for question in questions]
        if all(reasons):
            raise MosloraError(f"no question was answered: {reasons[0]}")
        return self


def open_served(server: Server, scorer: Scorer[Any], questions: Sequence[Question], *, at_once: int) -> Served:
    """How this server is asked, by the shortest of the questions, which one with a short context answers, too: as
    tokens if it takes a prompt so and reads these tokens, or those that it puts a BOS before; else as text.

    Raises:
        UsageError: it tells no log-probabilities, and these questions need them.
        Refused: it takes neither.
        Unavailable: it does not answer.
    """
    ids, _ = min(questions, key=lambda question: question.tokens).pairs[0]
    impatient = replace(server, patient=False)
    for without_bos in (False, True):
        with suppress(Refused):
            Served(impatient, scorer, at_once, without_bos=without_bos).write(ids)
            return Served(server, scorer, at_once, without_bos=without_bos).with_reading(questions)
    server.complete("a")
    return Served(server, scorer, at_once, as_text=True).with_reading(questions)


def each_reply(ask: Callable[[Item], Result], items: Sequence[Item], *, at_once: int) -> Iterator[Result]:
    """What ``ask`` returns for these items, several at a time, in the order in which they are done; its first error is
    raised.

    The threads of this pool are daemons: Ctrl-C ends a program that waits for a server.
    """
    with ThreadPool(at_once) as pool:
        yield from pool.imap_unordered(ask, items)
