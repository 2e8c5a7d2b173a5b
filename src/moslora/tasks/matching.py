"""Matches: what is read from a written text as its answer, and when it equals an accepted one.

They follow lm-eval's ``exact_match`` with its filters (https://github.com/EleutherAI/lm-evaluation-harness), whose
words are named beside each.
"""

import re
import string
import unicodedata
from abc import ABC, abstractmethod
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar, Literal, get_args

Ignored = Literal["case", "punctuation", "articles"]
EVERY_IGNORED: tuple[Ignored, ...] = get_args(Ignored)

NUMBER = r"(?:(?<!\w)[-−])?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
"""A number in a text: 96, -86, 1,234.50, $18, .5. A hyphen behind a letter or a digit is no sign."""

_ARTICLES = re.compile(r"\b(?:a|an|the)\b", re.IGNORECASE)
_PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}−]")
_WHOLE_NUMBER = re.compile(rf"(?<!\w)(?<!\d[.,]){NUMBER}(?!\w)(?![.,]\d)")


def normalized(text: str, ignore: tuple[Ignored, ...]) -> str:
    """``text`` as it is compared: in Unicode's form NFC, without what is ignored, unless nothing else is left, and with
    one space between words.

    ``case`` is lm-eval's ``ignore_case``; ``punctuation`` its ``ignore_punctuation``, the signs of ASCII and the minus,
    so that 1,234 equals 1234; ``articles`` are a, an and the, as in the official scripts of SQuAD and TriviaQA, and in
    lm-eval a part of ``regexes_to_ignore``.
    """
    text = unicodedata.normalize("NFC", text)
    if "case" in ignore:
        text = text.lower()
    for name, removed, instead in (("punctuation", _PUNCTUATION, ""), ("articles", _ARTICLES, " ")):
        bare = removed.sub(instead, text)
        if name in ignore and bare.strip():
            text = bare
    return " ".join(text.split())


def number(text: str) -> Decimal | None:
    """The value of a text that is a number; ``None`` for any other. Thousands' commas, a dollar sign, a full stop at
    the end and zeros behind the point do not count: $1,234.50. is 1234.5."""
    bare = text.strip().removesuffix(".")
    if not re.fullmatch(NUMBER, bare):
        return None
    return Decimal(bare.replace(",", "").replace("$", "").replace("−", "-"))


def _has_words(text: str, words: str) -> bool:
    """Whether ``text`` has these words, and not as a part of a word or of a number: in 3.5 there is no 3."""
    return re.search(rf"(?<!\w)(?<!\d[.,]){re.escape(words)}(?!\w)(?![.,]\d)", text) is not None


class Match(ABC):
    """How a written text is read, and compared with the accepted answers."""

    kind: str  # its name in recipes, by which the hash of a question tells it from others
    words: ClassVar[str]  # what counts

    @property
    def says(self) -> str:
        """What counts, in words."""
        return self.words

    @abstractmethod
    def read(self, text: str) -> str:
        """The answer in a text; empty if there is none, which is an error of its format."""

    @abstractmethod
    def equal(self, answer: str, accepted: str) -> bool:
        """Whether an answer that was read is this accepted one."""

    @abstractmethod
    def counts_as(self, accepted: str) -> str:
        """An accepted answer as it is compared; empty if nothing can equal it."""

    def position(self, answer: str, accepted: tuple[str, ...]) -> int | None:
        """The place of the first accepted answer that ``answer``, as it was read, equals; ``None`` for none."""
        return next((n for n, candidate in enumerate(accepted) if answer and self.equal(answer, candidate)), None)


@dataclass(frozen=True)
class Exact(Match):
    """The whole text, as lm-eval's filter ``remove_whitespace``."""

    ignore: tuple[Ignored, ...] = EVERY_IGNORED
    kind: str = "exact"
    words: ClassVar[str] = "the whole text"

    @property
    def says(self) -> str:
        return f"{self.words}, whatever its {', '.join(self.ignore)}" if self.ignore else self.words

    def read(self, text: str) -> str:
        return text.strip()

    def equal(self, answer: str, accepted: str) -> bool:
        """Two numbers are also compared by their values, as their signs and points are no punctuation."""
        one = number(answer)
        other = number(accepted)
        if one is not None and other is not None and one != other:
            return False
        return self.counts_as(answer) == self.counts_as(accepted)

    def counts_as(self, accepted: str) -> str:
        return normalized(accepted, self.ignore)


@dataclass(frozen=True)
class Contains(Exact):
    """An accepted answer anywhere in the text, as whole words."""

    kind: str = "contains"
    words: ClassVar[str] = "the accepted answer anywhere in the text, as whole words"

    def equal(self, answer: str, accepted: str) -> bool:
        """Also with the punctuation left in: in "Answer:Lima" only that keeps the words apart. An accepted number must
        be one of the text's: 1.5 does not contain 15."""
        value = number(accepted)
        if value is not None and value not in map(number, _WHOLE_NUMBER.findall(answer)):
            return False
        if _has_words(self.counts_as(answer), self.counts_as(accepted)):
            return True
        other = tuple(name for name in self.ignore if name != "punctuation")
        return _has_words(normalized(answer, other), normalized(accepted, other))


@dataclass(frozen=True)
class Number(Match):
    """The last number in the text, by its value; as lm-eval's filter ``flexible-extract`` of GSM8K."""

    kind: str = "number"
    words: ClassVar[str] = "the last number in the text, by its value"

    def read(self, text: str) -> str:
        numbers = ["", *re.findall(NUMBER, text)]
        return str(numbers[-1])

    def equal(self, answer: str, accepted: str) -> bool:
        return number(answer) == number(accepted)

    def counts_as(self, accepted: str) -> str:
        value = number(accepted)
        return "" if value is None else f"{value.normalize():f}"


@dataclass(frozen=True)
class Pattern(Match):
    """What a regular expression finds, the first or the last; its first group that is not empty, if it has groups.

    As lm-eval's filter ``regex`` with ``group_select`` 0 or -1.
    """

    pattern: str
    compared: Exact | Number
    take: Literal["first", "last"] = "first"
    kind: str = "pattern"

    @property
    def says(self) -> str:
        return f"what {self.pattern!r} finds {self.take}, read as {self.compared.says}"

    def read(self, text: str) -> str:
        found = list(re.finditer(self.pattern, text))
        if not found:
            return ""
        match = found[-1 if self.take == "last" else 0]
        groups = [group for group in match.groups() if group]
        return (groups or match)[0].strip()

    def equal(self, answer: str, accepted: str) -> bool:
        return bool(self.compared.counts_as(answer)) and self.compared.equal(answer, accepted)

    def counts_as(self, accepted: str) -> str:
        return self.compared.counts_as(accepted)
