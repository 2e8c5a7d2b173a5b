"""A server's replies on disk, so that no question is asked twice: ``replies.jsonl``, a line per question and way."""

import json
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moslora.files import append_text, drop_partial_line, write_json, write_text, writing

REPLIES = "replies.jsonl"
SERVER = "server.json"
BEFORE = "replies-before.jsonl"
"""In the folder of a verification: the replies, who gave them, and those of a server that has changed since."""

Key = tuple[str, str, str]
"""Way, id of the question, and a hash of what was sent."""


@dataclass(frozen=True)
class Reply:
    """What a server answers to one question.

    Attributes:
        id: of the question.
        way: how it was asked, such as ``tokens``.
        sent: a hash of the prompts and of how their log-probabilities are read.
        scores: log-probability of each option's own tokens, in nats; ``None`` where the server does not tell it.
        text: what it has written, if it was asked to.
        refused: why the server does not answer; empty if it does.
    """

    id: str
    way: str
    sent: str
    scores: tuple[float | None, ...] = ()
    text: str | None = None
    refused: str = ""

    @property
    def key(self) -> Key:
        return self.way, self.id, self.sent

    @property
    def known_scores(self) -> tuple[float, ...] | None:
        """The scores, if the server tells all of them."""
        known = tuple(score for score in self.scores if score is not None)
        if not known or len(known) < len(self.scores):
            return None
        return known

    @property
    def told(self) -> tuple[int, ...]:
        """The positions of the options whose scores the server tells."""
        return tuple(position for position, score in enumerate(self.scores) if score is not None)

    def to_json(self) -> str:
        return json.dumps(vars(self), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> "Reply":
        values = json.loads(line)
        values["scores"] = tuple(values.get("scores", ()))
        return cls(**values)


class Replies:
    """The replies in one folder, created if absent, which threads may add to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[Key, Reply] = {}
        self._lock = threading.Lock()
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._read()

    def describe(self, facts: dict[str, Any]) -> None:
        """Writes who gives the replies."""
        write_json(self.folder / SERVER, facts)

    def get(self, key: Key) -> Reply | None:
        return self.found.get(key)

    def add(self, reply: Reply) -> None:
        """Adds a reply and syncs it to disk."""
        with self._lock:
            append_text(self.folder / REPLIES, reply.to_json() + "\n")
            self.found[reply.key] = reply

    def forget_refusals(self, way: str) -> None:
        """Leaves out the refusals to one way of asking: the server may have been started otherwise since."""
        with self._lock:
            self.found = {key: reply for key, reply in self.found.items() if reply.way != way or not reply.refused}

    def forget(self, way: str) -> None:
        """Leaves out the replies to one way of asking; all that were there stay in `BEFORE`."""
        path = self.folder / REPLIES
        with self._lock, writing(self.folder):
            shutil.copyfile(path, self.folder / BEFORE)
            self.found = {key: reply for key, reply in self.found.items() if reply.way != way}
            write_text(path, "".join(reply.to_json() + "\n" for reply in self.found.values()))

    def _read(self) -> None:
        """Reads what is there. A line that a killed process left half written is asked again."""
        path = self.folder / REPLIES
        if not path.exists():
            return
        drop_partial_line(path)
        content = path.read_bytes().decode("utf-8", errors="replace")
        for line in content.split("\n"):  # a text may have other ends of lines
            try:
                reply = Reply.from_json(line)
            except (ValueError, TypeError):  # damaged: it is asked again
                continue
            self.found[reply.key] = reply
