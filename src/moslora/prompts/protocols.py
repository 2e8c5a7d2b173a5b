"""Protocols: how a question's answer is read from a model. Importing this module does not load torch.

`moslora.evaluation.scorers` has the class that computes each protocol.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from moslora.choices import FormatName

ProtocolName = Literal["choice", "cloze", "generate"]
ScoringProtocolName = Literal["choice", "cloze"]
"""Names of the protocols with `Protocol.scores_options`."""

DEFAULT_PROTOCOL: ProtocolName = "choice"
DEFAULT_FORMAT: FormatName = "label"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Way to read a question's answer from a model."""

    name: ProtocolName  # in recipes and on the command line
    description: str  # a line for the reference of recipes
    card: str  # a line for a model card, which shows a `prompt` and its `answers`
    formats: tuple[FormatName, ...]  # formats that it reads, the default first
    score: str = ""  # text whose log-probability is the deciding score; empty if options have no score
    divides_scores: bool = False  # whether an option's log-probability is divided by its characters before it decides
    room: int = 0  # tokens of ``evaluation.max_length`` kept for the text that the model writes

    @property
    def scores_options(self) -> bool:
        """Whether every option has a log-probability, so that a question has a margin."""
        return self.score != ""

    @property
    def writes(self) -> bool:
        """Whether the model generates a text, possibly with several beams."""
        return self.room > 0


LABEL_FORMATS: tuple[FormatName, ...] = ("label", "llm-adapters", "chat")
"""Formats whose answer is an option's label. In the others it is the option's text."""

PROTOCOLS: Mapping[ProtocolName, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="choice",
            description="the likeliest label, one forward pass per question",
            card="the likeliest of `answers` after `prompt` is the model's answer",
            formats=LABEL_FORMATS,
            score="the option's label",
        ),
        Protocol(
            name="cloze",
            description="the likeliest option text, plain and per character",
            card="of `answers` after `prompt` the likeliest, per character, is the model's answer",
            formats=("cloze", "cloze-passage"),
            score="the option's text, per character",
            divides_scores=True,
        ),
        Protocol(
            name="generate",
            description="LLM-Adapters' procedure, which generates an answer and searches it for a label",
            card="the first label in what the model writes after `prompt` is its answer",
            formats=LABEL_FORMATS,
            room=32,
        ),
    )
}


def readers(format: FormatName) -> list[Protocol]:
    """Protocols that read a format, the default first."""
    return [protocol for protocol in PROTOCOLS.values() if format in protocol.formats]


def joined_names(protocols: Iterable[Protocol]) -> str:
    """Names of ``protocols`` for a message: "choice or generate"."""
    return " or ".join(protocol.name for protocol in protocols)


def writers() -> list[Protocol]:
    """Protocols in which the model generates a text."""
    return [protocol for protocol in PROTOCOLS.values() if protocol.writes]
