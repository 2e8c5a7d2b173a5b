"""How a task words its questions: LLM-Adapters' instruction (arXiv 2304.01933, ``dataset/``), and the cloze prompt.

Text is used unchanged, with double and trailing spaces; the tests compare whole files by hash.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Numbered:
    """``{head}{question}`` + one ``{Stem}{i}: {choice}`` per option + ``Answer format: {stem}1/{stem}2…``."""

    head: str  # opening words
    stem: str  # label without its number, such as "solution"
    # number of options in LLM-Adapters' regular expression; ``None`` for as many as a question has
    most: int | None = None
    between: str = " "  # text between two options
    before_format: str = "\n\n"  # text between the last option and "Answer format"
    # the question as asked, of ``{context}`` and ``{question}``, for an example that has a context
    shown: str = "{question}"
    cloze: str = "Question: {question}\nAnswer:"  # that an option's text answers; ``{context}`` is shown apart

    def labels(self, count: int) -> tuple[str, ...]:
        return tuple(f"{self.stem}{i}" for i in range(1, count + 1))

    def _markers(self, count: int) -> list[str]:
        first, *others = (f"{label.capitalize()}: " for label in self.labels(count))
        return ["\n\n" + first, *(self.between + other for other in others)]

    def _ending(self, count: int) -> str:
        return f"{self.before_format}Answer format: {'/'.join(self.labels(count))}"

    def render(self, question: str, choices: tuple[str, ...]) -> str:
        count = len(choices)
        options = (text for option in zip(self._markers(count), choices, strict=True) for text in option)
        return f"{self.head}{question}{''.join(options)}{self._ending(count)}"

    def parse(self, text: str) -> tuple[str, tuple[str, ...]] | None:
        """The question and choices that `render` turns into exactly ``text``, or None."""
        _, _, named = text.rpartition("Answer format: ")
        count = named.count("/") + 1
        ending = self._ending(count)
        if not 2 <= count <= (self.most or count) or not (text.startswith(self.head) and text.endswith(ending)):
            return None
        rest = text.removeprefix(self.head).removesuffix(ending)
        pieces = []
        for marker in self._markers(count):
            piece, found, rest = rest.partition(marker)
            if not found:
                return None
            pieces.append(piece)
        return pieces[0], (*pieces[1:], rest)


@dataclass(frozen=True)
class Plain:
    """A text by itself: nothing is asked about it, its own probability is measured."""


@dataclass(frozen=True)
class TrueFalse:
    """BoolQ: ``{head}{question}?`` + ``Answer format: true/false``, without options and passage."""

    head: str
    most: int | None = 2
    ending: str = "?\n\nAnswer format: true/false"
    shown: str = "{question}"
    cloze: str = "Question: {question}?\nAnswer:"

    def labels(self, count: int) -> tuple[str, ...]:
        return ("true", "false")

    def render(self, question: str, choices: tuple[str, ...]) -> str:
        return f"{self.head}{question}{self.ending}"

    def parse(self, text: str) -> tuple[str, tuple[str, ...]] | None:
        if not (text.startswith(self.head) and text.endswith(self.ending)):
            return None
        return text.removeprefix(self.head).removesuffix(self.ending), self.labels(2)
