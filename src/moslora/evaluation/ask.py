"""A user's question, scored as `moslora.evaluation.run` scores those of the sets.

    probability_j = exp(s_j) / Σ_i exp(s_i)

s is the deciding score: the log-probability of an option's label (``rank``), or of its text, per character (``cloze``).
So the most likely option is the one that ``moslora eval`` would count as the answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TextIO

import torch

from moslora.base.load import or_out_of_memory
from moslora.errors import UsageError
from moslora.evaluation.predictions import Prediction
from moslora.evaluation.run import make_scorer
from moslora.evaluation.target import Target
from moslora.recipe import resolve_tasks
from moslora.tasks import Example, Task

TRUTHS = (("true", "false"), ("yes", "no"))
"""The options of a BoolQ question, in its order."""


class Answer(NamedTuple):
    """An option, its probability among the options, and the log-probability (nats) of its label or text."""

    option: str
    probability: float
    log_probability: float


@dataclass(frozen=True)
class Answered:
    """The options, most likely first, and how they were scored."""

    options: tuple[Answer, ...]
    prediction: Prediction
    protocol: str
    format: str

    def __str__(self) -> str:
        score = "log-probability of the option's " + ("text, per character" if self.prediction.characters else "label")
        cut = "; the question is longer than max_length, so its beginning was cut" if self.prediction.truncated else ""
        return (
            f"protocol {self.protocol}, format {self.format}, asked as {self.prediction.task};"
            f" probability: softmax of the {score}{cut}"
        )


def ask(target: Target, *, question: str, options: Sequence[str], task: str | None = None, **typed: Any) -> Answered:
    """Scores the options of one question (see :func:`as_example`) with the settings of ``target``, changed by ``typed``
    fields of its request: protocol and format."""
    example, names = as_example(question, options, task=task, own=target.own_tasks)
    if target.adapter:
        target.adapter.refuse_untrained(example.task)
    request = target.asked(typed)
    protocol = "rank" if request.protocol == "generate" else request.protocol  # a text has no probabilities
    format = "cloze" if request.format == "cloze-passage" else request.format  # BoolQ's passage is missing here
    request = request.model_copy(update={"protocol": protocol, "format": format})
    tokenizer = target.tokenizer()
    scorer = make_scorer(target.load(), tokenizer, request)
    fix = "make it shorter, or use the CPU: CUDA_VISIBLE_DEVICES=''"
    with or_out_of_memory(f"out of GPU memory for this question; {fix}"):
        (prediction,) = scorer.score([example])
    probabilities = torch.tensor(prediction.deciding_scores, dtype=torch.float64).softmax(0).tolist()
    answers = map(Answer, names, probabilities, prediction.scores)
    best_first = sorted(answers, key=lambda answer: -answer.probability)  # stable: the first of equals, as in eval
    return Answered(tuple(best_first), prediction, protocol, format)


def as_example(
    question: str, options: Sequence[str], *, task: str | None = None, own: Mapping[str, Task] | None = None
) -> tuple[Example, tuple[str, ...]]:
    """The question as an example of a task, and its options as typed, in the order of the choices.

    Args:
        question: in the task's form: WinoGrande's has a "_", HellaSwag's begins with an activity and ": ".
        options: two or more; for BoolQ true and false, yes and no, or none.
        task: whose prompt to use; ``None`` for BoolQ's if the options are yes and no or true and false, else ARC's.
        own: the tasks of a run's recipe; the only one with questions is the default.
    """
    question, options = question.strip(), tuple(option.strip() for option in options if option.strip())
    if not question:
        raise UsageError("the question is empty; give it with --question, or type it")
    truths = [option.lower() for option in options]
    order = next((pair for pair in TRUTHS if set(pair) == set(truths)), None)
    asked = [name for name, its in (own or {}).items() if not its.is_text]
    default = asked[0] if len(asked) == 1 else "boolq" if order else "arc_easy"
    entry, *others = resolve_tasks(task or default, own)
    if others:
        raise UsageError("--task: must be a single task for one question")
    if entry.name == "boolq":
        if options and not order:
            raise UsageError("task boolq: options must be yes and no, or true and false; omit them or change --task")
        names = tuple(options[truths.index(word)] for word in order) if order else TRUTHS[0]
        return Example("question", "boolq", question.rstrip("? "), TRUTHS[0], 0), names
    if len(options) < 2:
        raise UsageError(f"{len(options)} option given; give two or more: --option A --option B, or one a line")
    context = None
    if entry.name == "winogrande" and question.count("_") != 1:
        raise UsageError("task winogrande: the sentence must contain one _, where the options go")
    if entry.name == "hellaswag":
        context, found, question = question.partition(": ")
        if not found:
            raise UsageError("task hellaswag: must begin with an activity and a colon, as in 'Baking: She takes'")
    wording = entry.wording if entry.own else None
    return Example("question", entry.name, question, options, 0, context, wording=wording), options


def read_typed(stream: TextIO, *, question: str | None, options: Sequence[str]) -> tuple[str, list[str]]:
    """Reads the question if it is missing, one line, and the options if there are none, one per line up to an empty
    line or the end. Prints prompts on a terminal."""

    def line(prompt: str) -> str:
        if stream.isatty():
            print(prompt, end="", flush=True)
        try:
            return stream.readline().strip()
        except UnicodeDecodeError:
            raise UsageError("the input is not UTF-8 text") from None

    question, given = line("question: ") if question is None else question, list(options)
    while question and not options and (option := line(f"option {len(given) + 1} (none: done): ")):
        given.append(option)
    return question, given
