"""``moslora eval --server``: a server is asked what a model would be, and the answers are kept as a model's are.

The scorer of the protocol puts the questions into tokens and reads the answers; between the two a server computes. The
base is there without its weights, as only its context length is needed.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.base.shapes import meta_model
from moslora.console import note, say
from moslora.data.encode import encoding
from moslora.errors import MosloraError, UsageError, counted
from moslora.evaluation.evaluate_target import asked_questions
from moslora.evaluation.evaluator import PreparedQuestions
from moslora.evaluation.journal import Journal
from moslora.evaluation.leaks import find_leaks
from moslora.evaluation.reading import Echo
from moslora.evaluation.results import Results
from moslora.evaluation.scorer import Request, Scorer
from moslora.evaluation.scoring import missing_in
from moslora.evaluation.served import Pair, Served, each_reply, open_served, with_reading
from moslora.evaluation.server import Refused, Server, Unavailable
from moslora.evaluation.target import Target
from moslora.files import locked
from moslora.progress import Line
from moslora.prompts.protocols import PROTOCOLS
from moslora.recipe import ModelSection
from moslora.runs.predictions import Prediction
from moslora.runs.settings import Leaks
from moslora.tasks import Example
from moslora.version import __version__


@dataclass(frozen=True)
class Asked:
    """A question with its scorer, and as tokens."""

    example: Example
    scorer: Scorer[Any, Any]
    question: Any

    @property
    def id(self) -> str:
        return self.example.id

    @property
    def pairs(self) -> list[Pair]:
        return self.scorer.pairs(self.question)

    @property
    def tokens(self) -> int:
        """Of the longest prompt with its answer."""
        return max(len(prompt) + len(answer) for prompt, answer in self.pairs)

    def answer(self, served: Served) -> Prediction:
        """What a server answers; nothing but the reason where it does not, or not in whole."""
        example = self.example
        try:
            return self.scorer.read(example, self.question, self.scorer.ask(self.question, served))
        except Refused as refusal:
            return Prediction(example.id, example.task, example.gold, prediction=None, refused=str(refusal))


def asked_of(prepared: PreparedQuestions) -> list[Asked]:
    """The questions that are wanted, task after task."""
    found = []
    for task in prepared.tasks:
        found += [Asked(example, task.scorer, task.scorer.encode(example)) for example in task.wanted]
    return found


@dataclass(frozen=True)
class Interview:
    """A server, and what it is asked.

    Attributes:
        questions: task after task.
        served: the server, and how it is asked.
        at_once: number of questions that are asked at the same time.
    """

    questions: Sequence[Asked]
    served: Served
    at_once: int

    @classmethod
    def of(cls, prepared: PreparedQuestions, server: Server, *, at_once: int) -> "Interview":
        """Finds out how this server is asked, with the shortest questions, which one with a short context answers, too.

        Raises:
            UsageError: it tells no log-probabilities, and these questions need them.
            Unavailable: it does not answer.
        """
        questions = asked_of(prepared)
        shortest = min(questions, key=lambda asked: asked.tokens)
        served = open_served(server, shortest.scorer.encoder, shortest.pairs[0][0])
        return cls(questions, served, at_once).with_reading()

    def with_reading(self, *, after_echo: bool = False) -> "Interview":
        """The same with the first way of reading log-probabilities that works, if questions are scored by them."""
        in_order = sorted(self.questions, key=lambda asked: asked.tokens)
        options = [asked.pairs for asked in in_order if asked.pairs[0][1]]
        if not options:
            return self
        return replace(self, served=with_reading(self.served, options, after_echo=after_echo))

    def ask(self, journal: Journal) -> "Interview":
        """Adds the missing answers to the journal, each as soon as it is there. A server that ends while it is asked
        for the log-probabilities of prompts is asked token by token, if it is there again. Returns the interview that
        had the last answer.

        Raises:
            Unavailable: the server is gone.
        """
        missing = [asked for asked in self.questions if asked.id not in journal.predictions]
        if not missing:
            return self
        say(f"asking {counted(len(missing), 'question')} of {self.served.server.name}, {self.served.how}")
        try:
            with Line(len(missing), f"0/{len(missing):,}") as line:
                answers = each_reply(lambda asked: asked.answer(self.served), missing, at_once=self.at_once)
                for done, prediction in enumerate(answers, start=1):
                    journal.append([prediction])
                    line.show(done, f"{prediction.task} {done:,}/{len(missing):,}")
        except Unavailable as fault:
            if isinstance(self.served.reading, Echo):
                with suppress(Unavailable, UsageError):
                    return self.with_reading(after_echo=True).ask(journal)
            kept = sum(asked.id in journal.predictions for asked in self.questions)
            raise Unavailable(
                f"{fault}, {self.served.how}; {kept} of {len(self.questions)} questions answered and kept: the same"
                " command goes on; --at-once 1 asks for one prompt at a time, which some servers need"
            ) from None
        return self


def evaluate_server(
    target: Target,
    server: Server,
    *,
    tasks: str | Sequence[str] | None = None,
    out: Path | None = None,
    at_once: int,
    **typed: Any,
) -> tuple[Results, Path]:
    """Scores the model behind ``server`` as `evaluate_target` would score ``target``, whose tokenizer, tasks and
    settings are used.

    Raises:
        UsageError: the server cannot be asked so, or the folder holds something else.
        Unavailable: the server does not answer; what it has answered is kept.
    """
    request, questions = asked_questions(target, tasks, typed)
    out = target.results_folder(request, out, server=f"-at-{name_of(server)}")
    leaks = find_leaks(target.trained, questions)
    prepared = prepare(target.model, target.tokenizer(), questions, request, server)
    with locked(out):
        journal = open_answers(prepared, out, leaks)
        if missing_in(prepared.tasks, journal):
            Interview.of(prepared, server, at_once=at_once).ask(journal)
        journal.finish()
    refuse_without_answers(list(journal.predictions.values()))
    return prepared.results(journal), out


def prepare(
    model: ModelSection,
    tokenizer: PreTrainedTokenizerBase,
    questions: Mapping[str, Sequence[Example]],
    request: Request,
    server: Server,
) -> PreparedQuestions:
    """The questions as `PreparedQuestions`, with the settings of an evaluation of this server: what computes there is
    not known.

    Raises:
        UsageError: texts would be written by beam search, which no server does.
    """
    if PROTOCOLS[request.protocol].writes and request.beams > 1:
        raise UsageError(f"{request.beams} beams: servers write greedily; evaluate with --beams 1")
    empty = meta_model(model, only_shapes=False).eval()
    prepared = PreparedQuestions.of(empty, tokenizer, questions, request)
    settings = replace(
        prepared.settings,
        dtype="",
        batch_tokens=0,
        block_size=0,
        metadata={"source": request.source, "server": server.address, "model": server.model},
        made_with={"moslora": __version__, **encoding(prepared.scorer.encoder, request.format)},
    )
    return replace(prepared, settings=settings)


def open_answers(prepared: PreparedQuestions, out: Path, leaks: Mapping[str, Leaks]) -> Journal:
    """The journal in ``out``. Nobody knows whether answers that are there are of what is served now."""
    journal = prepared.open_journal(out, leaks)
    if journal.predictions:
        known = counted(len(journal.predictions), "question")
        note(f"{known} answered in an earlier call: remove {out} if something else is served since")
    return journal


def name_of(server: Server) -> str:
    """A server and its model, as part of a folder's name."""
    address = server.address.partition("://")[2]
    return re.sub(r"[^\w.-]+", "-", f"{address}-{server.model}").strip("-.")


def refuse_without_answers(predictions: Sequence[Prediction]) -> None:
    """Refuses a server that has answered nothing."""
    if predictions and all(prediction.refused for prediction in predictions):
        raise MosloraError(f"no question was answered: {predictions[0].refused}")
