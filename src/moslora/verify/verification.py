"""``moslora verify``: a server is asked what a run has answered, and the two are compared."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from moslora.choices import DType
from moslora.compare.find import evaluated_steps
from moslora.console import note
from moslora.errors import UsageError, counted, some
from moslora.files import locked
from moslora.recipe import resolve_tasks
from moslora.runs.evaluation import Evaluation, is_finished, read_evaluation
from moslora.runs.run import Run, base_of, result_of
from moslora.verify.answers import evidence_of, server_answers, text_evidence
from moslora.verify.interview import Interview, refuse_without_answers
from moslora.verify.prompts import Asker, find_prompt_fault
from moslora.verify.questions import (
    AskedQuestions,
    chosen_questions,
    make_asking,
    make_questions,
    results_folder,
    same_questions,
)
from moslora.verify.reading import Nothing, Prompt, Reading, find_reading, first_choice
from moslora.verify.replies import Replies, Reply
from moslora.verify.report import Report
from moslora.verify.server import Refused, Server, open_server
from moslora.verify.verdict import Verdict, judge, judge_texts
from moslora.verify.ways import Completion
from moslora.version import __version__


@dataclass(frozen=True)
class Options:
    """What may be typed.

    Attributes:
        model: the model's name on the server; ``None`` for its only one.
        tasks: separated by commas; ``None`` for those of the evaluation.
        limit: questions of each task; ``None`` for 64 in all, 0 for all.
        evaluation: name of the evaluation's folder; ``None`` for the only one, or the recipe's.
        dtype: of the server; ``None`` for the evaluation's.
        at_once: questions asked at the same time.
        again: nothing is taken from what was kept.
        out: folder of the replies; ``None`` for one in the run's.
        trust_remote_code: the tokenizer's own code may run.
    """

    model: str | None = None
    tasks: str | None = None
    limit: int | None = None
    evaluation: str | None = None
    dtype: DType | None = None
    at_once: int = 8
    again: bool = False
    out: Path | None = None
    trust_remote_code: bool = False


def verify(run: Path, server: str, options: Options) -> Report:
    """Asks the server at an address the questions that ``run`` has answered, and compares.

    Raises:
        UsageError: the run was not evaluated, or in a way that no server repeats; several models and none is named.
        Unavailable: the server does not answer; what it has answered is kept.
    """
    asked = read_asked(Run(run), options)
    opened = choose_model(open_server(server), options.model)
    folder = options.out or results_folder(Run(run), opened.address, opened.model, asked.run.folder)
    with locked(folder):
        replies = Replies(folder)
        replies.describe({"server": opened.address, "model": opened.model, "moslora": __version__})
        report = _compare(asked, opened, Interview(replies, options.at_once, options.again), options)
        report.write(folder)
    return report


def read_asked(run: Run, options: Options) -> AskedQuestions:
    """The questions, and all that is known of their answers.

    Raises:
        UsageError: the run was not evaluated, or before it was trained further.
    """
    folder = run.evaluation(options.evaluation)
    answered = read_evaluation(folder)
    if result_of(folder) == folder and answered.settings.metadata.get("adapter") is not None:
        evaluated_steps(folder, answered.settings, of_run=True)  # refuses the answers of weights that are gone
    names = None
    if options.tasks is not None:
        names = [task.name for task in resolve_tasks(options.tasks, run.recipe.own_tasks)]
    chosen = chosen_questions(answered, names=names, limit=options.limit)
    asking = make_asking(run, chosen, trust_remote_code=options.trust_remote_code)
    base = None
    if is_finished(base_of(folder)):
        base = same_questions(read_evaluation(base_of(folder)), chosen)
    others = {}
    for other in run.evaluations:
        if result_of(other) == folder and other not in (folder, base_of(folder)) and is_finished(other):
            answers = same_questions(read_evaluation(other), chosen)
            if answers is not None:
                others[other.name.removeprefix(f"{folder.name}-")] = answers
    return AskedQuestions(asking, make_questions(asking, run, chosen), chosen, base, others)


def choose_model(server: Server, typed: str | None) -> Server:
    """The server with the model that is typed, or its only one.

    Raises:
        UsageError: there is no such model, or there are several and none is typed.
    """
    names = [str(entry["id"]) for entry in server.models()]
    if typed is None and len(names) > 1:
        raise UsageError(f"{server.address}: has several models; choose one with --model, among {some(names, most=8)}")
    if typed is None:
        return replace(server, model="".join(names))
    if names and typed not in names:
        note(f"{server.address} does not list {typed}, but {some(names, most=8)}")
    return replace(server, model=typed)


def _compare(asked: AskedQuestions, server: Server, interview: Interview, options: Options) -> Report:
    asker = _open(asked, server, interview)
    way = asker.completion()
    replies = interview.ask(way, asked.questions)
    refuse_without_answers(list(replies.values()))
    dtype = options.dtype or _usual_dtype(asked.run)
    report = _judge(asked, replies, way, dtype=dtype)
    fault = find_prompt_fault(asker, asked, replies, report.verdict, tolerance=report.tolerance)
    if fault is not None:
        report = replace(report, verdict=fault)
    return replace(report, server=server.address, model=server.model, hint=_missing_base(asked, options))


def _judge(asked: AskedQuestions, replies: Mapping[str, Reply], way: Completion, *, dtype: DType) -> Report:
    """The report of the way that was asked first."""
    answers = server_answers(asked, replies)
    report = Report.of(asked, answers, way=way)
    told = evidence_of(asked, replies, dtype=dtype)
    if told is None:
        texts = text_evidence(asked, answers)
        return replace(report, verdict=judge_texts(texts))
    verdict, fit = judge(told)
    own_base = asked.run.settings.metadata.get("quantization")
    if verdict.kind == "quantised" and own_base:
        says = f"{verdict.says}; the run itself was evaluated over its base in {own_base}: a server that loads the base"
        verdict = replace(verdict, says=f"{says} in full precision answers so, too")
    too_long = _refused_for_length(asked, replies)
    if verdict.passed and too_long is not None:
        verdict = too_long
    return replace(report, verdict=verdict, fit=fit, tolerance=told.tolerance)


def _refused_for_length(asked: AskedQuestions, replies: Mapping[str, Reply]) -> Verdict | None:
    """That the server refuses the longest questions, and answers all others."""
    refused = {reply.id: reply.refused for reply in replies.values() if reply.refused}
    answered = replies.keys() - refused.keys()
    if not refused or not answered:
        return None
    longest = max(asked.lengths(answered))
    if min(asked.lengths(refused)) < longest:
        return None
    said = next(iter(refused.values()))
    return Verdict(
        "context",
        f"the context is cut: of {counted(len(replies), 'question')} the {len(refused)} longest are refused, above"
        f" {longest} tokens ({said})",
    )


def _open(asked: AskedQuestions, server: Server, interview: Interview) -> Asker:
    """How this server is asked: as tokens if it takes them, else as text; its log-probabilities as it tells them.

    Raises:
        UsageError: it tells nothing that this evaluation can be compared with.
    """
    by_length = sorted(asked.questions, key=lambda question: question.length)
    question = by_length[0]  # which a server with a short context answers, too
    with_text = next((one for one in by_length if one.has_texts), question)
    text = with_text.texts[0] or "a"
    first_choice(server.ask("completions", {"prompt": text, "max_tokens": 1, "temperature": 0}))
    prompt = Prompt(question.prompts[0], question.texts[0] or "", as_text=False)
    as_text = not _takes_tokens(server, prompt)
    if as_text:
        prompt = Prompt(with_text.prompts[0], text, as_text=True)
        question = with_text
    tokenizer = asked.asking.tokenizer
    reading: Reading = Nothing(server, tokenizer, patient=True)
    if question.answers:
        reading = find_reading(server, tokenizer, prompt, question.answers)
    if isinstance(reading, Nothing) and asked.asking.protocol.name == "cloze":
        raise UsageError(
            f"{server.address}: tells no log-probabilities, and protocol cloze compares nothing else; ask the run so"
            " that texts answer: moslora eval RUN --protocol generate"
        )
    return Asker(asked.asking, server, interview, reading, as_text)


def _takes_tokens(server: Server, prompt: Prompt) -> bool:
    """Whether the server takes a prompt as tokens, and reads as many as it is sent, or one more."""
    body = {"prompt": prompt.field, "max_tokens": 1, "temperature": 0}
    try:
        answer = server.ask("completions", body, patient=False)
        first_choice(answer)
    except Refused:
        return False
    usage = answer.get("usage")
    if not isinstance(usage, dict) or not isinstance(usage.get("prompt_tokens"), int):
        return True
    return bool(usage["prompt_tokens"] <= len(prompt.ids) + 1)


def _usual_dtype(run: Evaluation) -> DType:
    """The dtype of a server that serves this run as it is: servers have no float32."""
    if run.settings.dtype == "bfloat16":
        return "bfloat16"
    return "float16"


def _missing_base(asked: AskedQuestions, options: Options) -> str:
    """The command that asks the base; empty if it was asked."""
    if asked.base is not None:
        return ""
    run = asked.run.run
    settings = asked.run.settings
    most = max(len(answers.ids) for answers in asked.run.tasks.values())
    path = "RUN"
    if run is not None:
        path = shlex.quote(os.fspath(run.path))
    words = ["moslora", "eval", path, "--base", "--tasks", ",".join(asked.run.tasks)]
    words += ["--protocol", settings.protocol, "--format", settings.format, "--dtype", settings.dtype]
    words += ["--limit", str(most)]
    return " ".join(words)
