"""Matches: how an answer is read from a generated text, and when it equals an accepted answer.

They follow lm-eval's ``exact_match`` and filters (https://github.com/EleutherAI/lm-evaluation-harness), which each
docstring names.
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
"""Pattern of a number: 96, -86, 1,234.50, $18, .5. A hyphen after a letter or a digit is not a sign."""

_ARTICLES = re.compile(r"\b(?:a|an|the)\b", re.IGNORECASE)
_PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}−]")
_WHOLE_NUMBER = re.compile(rf"(?<!\w)(?<!\d[.,]){NUMBER}(?!\w)(?![.,]\d)")


def normalized(text: str, ignore: tuple[Ignored, ...]) -> str:
    """``text`` as it is compared: in NFC, with single spaces, without what is ignored.

    Punctuation or articles stay where the text is nothing else.

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
    """Value of a text that is a number; ``None`` for any other.

    Thousands' commas, a dollar sign, a final full stop and zeros after the point do not count: $1,234.50. is 1234.5.
    """
    bare = text.strip().removesuffix(".")
    if not re.fullmatch(NUMBER, bare):
        return None
    return Decimal(bare.replace(",", "").replace("$", "").replace("−", "-"))


def _has_words(text: str, words: str) -> bool:
    """Whether ``text`` contains ``words``, but not inside a word or a number: 3.5 does not contain 3."""
    return re.search(rf"(?<!\w)(?<!\d[.,]){re.escape(words)}(?!\w)(?![.,]\d)", text) is not None


class Match(ABC):
    """Way to read an answer from a generated text and to compare it with the accepted answers."""

    kind: str  # name in recipes, a part of a question's hash
    words: ClassVar[str]  # the part of the text that counts

    @property
    def says(self) -> str:
        """The part of a generated text that is compared, and what is ignored in it, in words for the user."""
        return self.words

    @abstractmethod
    def read(self, text: str) -> str:
        """Answer in ``text``; empty without one, which is an error of format."""

    @abstractmethod
    def equal(self, answer: str, accepted: str) -> bool:
        """Whether an answer that was read equals an accepted one."""

    @abstractmethod
    def counts_as(self, accepted: str) -> str:
        """Accepted answer in the form that is compared; empty if nothing can equal it."""

    def position(self, answer: str, accepted: tuple[str, ...]) -> int | None:
        """Position of the first accepted answer that equals ``answer``; ``None`` without one."""
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
        """Whether the normalised texts are equal; two numbers must also have the same value."""
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
        """Whether ``answer`` contains the accepted words, as in "Answer:Lima".

        Both are compared once without punctuation and once with it. An accepted number must be one of the answer's
        numbers: 1.5 does not contain 15.
        """
        value = number(accepted)
        if value is not None and value not in map(number, _WHOLE_NUMBER.findall(answer)):
            return False
        if _has_words(self.counts_as(answer), self.counts_as(accepted)):
            return True
        other = tuple(name for name in self.ignore if name != "punctuation")
        return _has_words(normalized(answer, other), normalized(accepted, other))


@dataclass(frozen=True)
class Number(Match):
    """The last number in the text, compared by value, as lm-eval's filter ``flexible-extract`` of GSM8K."""

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
    """The first or last match of a regular expression, or its first group that is not empty, if it has groups.

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
        matches = list(re.finditer(self.pattern, text))
        if not matches:
            return ""
        match = matches[-1 if self.take == "last" else 0]
        groups = [group for group in match.groups() if group]
        return (groups or match)[0].strip()

    def equal(self, answer: str, accepted: str) -> bool:
        return bool(self.compared.counts_as(answer)) and self.compared.equal(answer, accepted)

    def counts_as(self, accepted: str) -> str:
        return self.compared.counts_as(accepted)
