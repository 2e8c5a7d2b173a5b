"""The section of a user's own tasks."""

from typing import Annotated

from jinja2 import TemplateSyntaxError
from pydantic import AfterValidator, Field, Strict

from moslora.choices import Split
from moslora.tasks import BUILT_IN, GROUP, INSTRUCTION, Columns, Hub, Numbered, Plain, Task
from moslora.tasks.task import compiled

from .changes import Changes
from .fields import Section


def _is_jinja(source: str) -> str:
    try:
        compiled(source)
    except TemplateSyntaxError as error:
        raise ValueError(f"is neither a Jinja expression nor a template: {error.message}") from None
    return source


Expression = Annotated[str, Field(min_length=1), AfterValidator(_is_jinja)]
Texts = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Strict(False), Field(min_length=2)]


class HubSection(Section):
    """A data set on the Hugging Face hub."""

    path: str = Field(min_length=1)
    """Its id, such as `tau/commonsense_qa`."""

    config: str | None = None
    """The subset; null if there is only one."""

    revision: str | None = None
    """Branch, tag or commit; null for the default branch."""


class TaskSection(Section):
    """A multiple-choice task of your own, or texts of your own.

    `question`, `options`, `answer` and `context` are Jinja expressions over a row's columns: a column's name, a part of
    it (`question.stem`), or more (`label|int - 1`). A text with `{{` is a template: `"{{premise}} Why?"`.
    """

    train: Annotated[str | None, Changes.PLACE] = Field(default=None, min_length=1)
    """File of the training rows (JSON, JSONL, CSV or Parquet), relative to the file that names it; with `hub`, the
    split; or null."""

    test: Annotated[str | None, Changes.PLACE] = Field(default=None, min_length=1)
    """File or split of the questions to evaluate on; null for a part of the training rows, which is not trained on."""

    held_out: Annotated[float, Changes.READING] = Field(default=0.1, gt=0, lt=1)
    """Share of the training rows that are the questions if there is no `test`. The rows' content decides which."""

    hub: Annotated[HubSection | None, Changes.READING] = None
    """The data set of these splits; null for local files."""

    texts: Annotated[str | None, Changes.PLACE] = Field(default=None, min_length=1)
    """File of texts, of which nothing is asked: an evaluation measures them, in nats per byte. Rows with a `text`
    (JSON, JSONL, CSV or Parquet), or plain text, whose paragraphs they are. Null for questions; then alone, without
    other keys."""

    question: Annotated[Expression, Changes.READING] = "question"
    """The question."""

    options: Annotated[Expression | Texts, Changes.READING] = "options"
    """The options: an expression for a list of texts, or the list itself, if all rows have the same."""

    answer: Annotated[Expression, Changes.READING] = "answer"
    """The right option: its position from 0, its text, or its letter."""

    context: Annotated[Expression | None, Changes.READING] = None
    """Text before the question, such as a passage; null, or empty in some rows, for none."""

    instruction: Annotated[str, Changes.READING] = "Please choose the correct answer to the question: "
    """Text before the question in the formats that list the options."""

    label: Annotated[str, Changes.READING] = Field(default="answer", pattern=r"^[A-Za-z]+$")
    """Name of an option without its number: `answer` for answer1, answer2, …"""

    cloze: Annotated[str, Changes.READING] = Field(
        default="{context}\nQuestion: {question}\nAnswer:", pattern=r"\{question\}"
    )
    """The prompt of the format `cloze`, which the option's text continues after a space. In a row without a
    context, `{context}` and the white space after it are left out."""

    def task(self, name: str) -> Task:
        """This section as an entry like those of the eight sets."""
        if self.texts:
            return Task(name=name, columns=Columns(), wording=Plain(), splits={"test": self.texts})
        splits: dict[Split, str] = {}
        if self.train:
            splits["train"] = self.train
        if self.test:
            splits["test"] = self.test
        hub = None
        if self.hub:
            hub = Hub(**self.hub.model_dump())
        return Task(
            name=name,
            columns=Columns(self.question, self.options, self.answer, self.context),
            wording=Numbered(self.instruction, self.label, shown="{context} {question}", cloze=self.cloze),
            splits=splits,
            hub=hub,
            held_out=self.held_out,
        )


def _is_free(name: str) -> str:
    if name in (*BUILT_IN, GROUP, INSTRUCTION) or not name.isidentifier():
        raise ValueError(f"{name!r} cannot be the name of a task: letters, digits and _, and no name of a built-in set")
    return name


TaskName = Annotated[str, AfterValidator(_is_free)]
