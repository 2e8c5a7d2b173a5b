"""Questions asked, several at a time, and kept as soon as they are answered."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from moslora.console import note, say
from moslora.errors import MosloraError, counted
from moslora.verify.questions import Question
from moslora.verify.replies import Replies, Reply
from moslora.verify.server import Unavailable
from moslora.verify.ways import Way

CANARIES = 3
"""Kept replies that are asked for once more, before the others are trusted: the longest question is one of them, as a
server with another context answers the short ones as before."""

CHANGED = 0.1
"""Largest change of a log-probability, in nats, between two replies of the same server: in bfloat16 a batch of another
size moves it by some 0.03."""


@dataclass(frozen=True)
class Interview:
    """One server, asked in several ways.

    Attributes:
        replies: those so far.
        at_once: questions that are asked at the same time.
        again: no reply of an earlier interview is trusted.
        trusted: ways whose kept replies are this server's.
    """

    replies: Replies
    at_once: int
    again: bool = False
    trusted: set[str] = field(default_factory=set)

    def ask(self, way: Way, questions: Sequence[Question]) -> dict[str, Reply]:
        """The replies by id, of the questions that this way reaches.

        Raises:
            Unavailable: the server is gone; what it has answered is kept.
        """
        reached = [question for question in questions if way.reaches(question)]
        self._trust(way, reached)
        missing = [question for question in reached if self.replies.get(way.key(question)) is None]
        if missing:
            say(f"asking {counted(len(missing), 'question')}, {way.name}")
            self._ask(way, missing)
        found = {}
        for question in reached:
            reply = self.replies.get(way.key(question))
            if reply is not None:
                found[question.id] = reply
        return found

    def _trust(self, way: Way, questions: Sequence[Question]) -> None:
        """Forgets the replies of earlier interviews if the server answers otherwise now."""
        if way.name in self.trusted:
            return
        self.trusted.add(way.name)
        self.replies.forget_refusals(way.name)
        known = [question for question in questions if self.replies.get(way.key(question)) is not None]
        if not known:
            return
        if self.again:
            self.replies.forget(way.name)
            return
        longest = max(known, key=lambda question: question.length)
        others = [question for question in known if question is not longest]
        canaries = [longest, *others[: CANARIES - 1]]
        if self._has_changed(way, canaries):
            note(f"the server answers otherwise than before, {way.name}: all of it is asked again")
            self.replies.forget(way.name)
        else:
            kept = f"{len(known)} of {counted(len(questions), 'question')}, {way.name}, answered in an earlier call"
            say(f"{kept}; {len(canaries)} of them asked again and unchanged (--again asks all)")

    def _has_changed(self, way: Way, questions: Sequence[Question]) -> bool:
        """Whether the server answers these questions otherwise than before."""
        for question in questions:
            before = self.replies.get(way.key(question))
            if before is not None and differs(before, way.reply(question)):
                return True
        return False

    def _ask(self, way: Way, questions: Sequence[Question]) -> None:
        fault = self._first_fault(way, questions)
        if isinstance(fault, Unavailable):
            kept = sum(self.replies.get(way.key(question)) is not None for question in questions)
            raise Unavailable(
                f"{fault}; {kept} of {counted(len(questions), 'question')} answered and kept: the same command goes on"
            )
        if fault is not None:
            raise fault

    def _first_fault(self, way: Way, questions: Sequence[Question]) -> Exception | None:
        """Asks the questions, several at a time, up to the first fault.

        Its threads are daemons: Ctrl-C ends a program that waits for a server, which no pool of threads allows.
        """
        waiting: SimpleQueue[Question] = SimpleQueue()
        for question in questions:
            waiting.put(question)
        faults: list[Exception] = []
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                try:
                    question = waiting.get_nowait()
                except Empty:
                    return
                try:
                    self.replies.add(way.reply(question))
                except Exception as error:
                    faults.append(error)
                    stop.set()

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(self.at_once, len(questions)))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            stop.set()
        if not faults:
            return None
        return faults[0]


def differs(one: Reply, other: Reply) -> bool:
    """Whether two replies to a question are another model's."""
    if one.text != other.text or bool(one.refused) != bool(other.refused):
        return True
    for first, second in zip(one.scores, other.scores, strict=False):
        if (first is None) != (second is None):
            return True
        if first is not None and second is not None and abs(first - second) > CHANGED:
            return True
    return False


def refuse_without_answers(replies: Sequence[Reply]) -> None:
    """Refuses to judge a server that has answered nothing."""
    refused = [reply.refused for reply in replies if reply.refused]
    if refused and len(refused) == len(replies):
        raise MosloraError(f"no question was answered: {refused[0]}")
