"""``moslora verify``: a server is asked what a model has answered, and the two are compared.

What the model or its base has not answered yet is asked first, here, as by ``moslora eval``.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from moslora.base.identity import fingerprint
from moslora.base.resolve import BUILTIN, available_offline
from moslora.choices import DType
from moslora.compare.find import evaluated_step
from moslora.console import note, say
from moslora.data.sources import load_examples
from moslora.errors import MosloraError, UsageError, counted, first_line, some
from moslora.evaluation.evaluate_target import ServerSource, evaluate_target, name_of, prepare
from moslora.evaluation.evaluator import PreparedQuestions
from moslora.evaluation.model import Served, open_served
from moslora.evaluation.scorers import EncodedQuestion
from moslora.evaluation.server import MISREAD, open_server
from moslora.evaluation.target import Target, open_target
from moslora.files import locked, write_text
from moslora.prompts.protocols import readers
from moslora.runs.conditions import Changes, LocalModel, differences, read_header
from moslora.runs.evaluation import Evaluation, is_finished, questions_in_common, read_evaluation, refuse_other_scores
from moslora.runs.origin import read_origin
from moslora.runs.predictions import Prediction
from moslora.runs.run import PREDICTIONS, RESULTS, SETTINGS, Run, base_of, result_of
from moslora.tasks import COMMONSENSE
from moslora.verify.evidence import alike, evidence, text_evidence
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
    """Asks the server at an address the questions that the model at ``path`` and its base have answered, or answer
    now, and compares.

    Args:
        path: of a run, an adapter folder, or a model, such as a merged one.
        address: of the server.
        model: its name there; ``None`` for its only one.
        tasks: separated by commas; ``None`` for those of the evaluation, else of the recipe, else the eight sets.
        limit: the first questions of each task; ``None`` for 64 in all, 0 for all.
        evaluation: name of the evaluation's folder; ``None`` for the only one, or the recipe's.
        dtype: of the server; ``None`` for the evaluation's.
        at_once: questions asked at the same time.
        out: folder of the server's answers; ``None`` for one in the run's.
        trust_remote_code: the model's own code may run.

    Raises:
        UsageError: the model was asked in a way that no server repeats, or before it was trained further; several
            models and none is named.
        Unavailable: the server does not answer; what it has answered is kept.
    """
    target, folder = open_as_evaluated(path, evaluation, trust_remote_code=trust_remote_code)
    names = there = _answered_in(folder)
    if tasks or not names:
        asked = target.tasks_to_ask(tasks)
        names = [task.name for task in asked if not (task.is_text or task.is_open_ended)]
    if tasks and not names:
        raise UsageError(f"--tasks {tasks}: has no options; choose tasks whose questions have some")
    names = names or [*COMMONSENSE]
    if limit is None:
        limit = math.ceil(DEFAULT_QUESTIONS / len(names))
    server = open_server(address, model)
    missing = [name for name in names if name not in there]
    if missing:
        _score(target, missing, limit=limit, out=folder)
    chosen = read_evaluation(folder).restricted_to(names, limit or None)
    known = with_base(chosen)
    if known.base is None:
        try:
            most = max(len(answers.ids) for answers in chosen.tasks.values())
            _score(_base_of(target), list(chosen.tasks), limit=most, out=base_of(folder))
            known = with_base(chosen)
        except MosloraError as fault:
            note(f"its base was not asked, so that no server is called the run: {first_line(fault)}")
    prepared = prepare_questions(target, chosen, ServerSource(server, at_once))
    home = target.run.path if target.run else folder.parent
    out = out or home / "verify" / f"{name_of(server)}-{folder.name}"
    refuse_other_scores(out)
    assert chosen.weights is not None
    own_dtype: DType = "bfloat16" if chosen.weights.dtype == "bfloat16" else "float16"  # servers have no float32
    with locked(out):
        if (out / REPORT).exists():  # the server may have been mended since; one that was interrupted goes on
            for name in (REPORT, PREDICTIONS, SETTINGS, RESULTS):
                (out / name).unlink(missing_ok=True)
        served = open_served(
            server, prepared.encoder, [question.pairs for question in prepared.encoded()], at_once=at_once
        )
        results = prepared.answer(served, prepared.open_journal(out, {}))
        report = _report(served, prepared, results.predictions, known, dtype=dtype or own_dtype)
        write_text(out / REPORT, report.to_json())
    return report


def open_as_evaluated(path: Path, evaluation: str | None, *, trust_remote_code: bool = False) -> tuple[Target, Path]:
    """Return the model at ``path``, which is asked as in its evaluation of this name, and the evaluation's folder. By
    default it is the only one, or the recipe's, which may be still to come."""
    target = open_target(str(path), trust_remote_code=trust_remote_code)
    run = Run(path)
    if evaluation or any(result_of(folder) == folder for folder in run.evaluations):
        folder = run.evaluation_folder(evaluation)
        conditions = read_header(folder).conditions
        model = target.model
        if isinstance(conditions.answered_by, LocalModel):
            model = model.model_copy(update={"dtype": conditions.answered_by.dtype})
        asked = {name: getattr(conditions, name) for name in ("protocol", "format", "max_length", "source")}
        asked |= {"beams": conditions.beams or 1, "limit": None}
        return replace(target, model=model, request=target.request.model_copy(update=asked)), folder
    scoring = readers(target.request.format)[0].name  # texts show no scale
    request = target.request.model_copy(update={"protocol": scoring, "limit": None})
    return replace(target, request=request), target.results_folder(request, None)


def _answered_in(folder: Path) -> list[str]:
    """The tasks with options that the model has answered there.

    Raises:
        UsageError: the answers are a server's, or of weights that are gone.
    """
    if not (folder / PREDICTIONS).is_file():
        return []
    answered = read_evaluation(folder)
    if answered.weights is None:
        raise UsageError(f"{folder}: the answers of a server; with --evaluation name some of the run's own")
    if result_of(folder) == folder and not answered.of_base:
        evaluated_step(answered, of_result=True)
    return [name for name, answers in answered.complete.tasks.items() if answers.gold]


def _score(target: Target, tasks: Sequence[str], *, limit: int, out: Path) -> None:
    """Asks a model the first questions of these tasks, as by ``moslora eval``."""
    say(f"first scoring {limit or 'all'} questions of each of {some(tasks, most=8)}, kept in {out}")
    how = target.request.model_dump(exclude={"tasks", "limit"})
    evaluate_target(target, tasks=tasks, out=out, limit=limit or None, **how)


def _base_of(target: Target) -> Target:
    """The base of a run, or of a model that was merged from one.

    Raises:
        MosloraError: it is not known, or not here.
    """
    if target.trained is not None:
        return replace(target, base=True)
    merged = Path(target.model.name)
    origin = read_origin(merged)
    if origin is None:
        raise MosloraError(f"{merged}: does not say what it was merged from")
    names = [origin.base, BUILTIN]
    run = Run(merged.parent)
    if run.exists:
        names.append(run.recipe.model.name)
    for name in names:
        if available_offline(name) and fingerprint(name) == origin.fingerprint:
            return replace(target, model=target.model.model_copy(update={"name": name}))
    raise MosloraError(f"{merged}: was merged from {origin.base}, which is not here")


def with_base(chosen: Evaluation) -> Evaluation:
    """The answers of a run that a server's are compared with, and those of its base, if it has answered all."""
    return replace(chosen, base=_same_questions(base_of(chosen.folder), chosen))


def checkpoints_of(chosen: Evaluation) -> dict[str, Evaluation]:
    """Name of a checkpoint -> its answers to the same questions, where it has answered all."""
    folder = chosen.folder
    checkpoints = {}
    for other in Run(folder.parent.parent).evaluations:
        if result_of(other) == folder and other not in (folder, base_of(folder)):
            answers = _same_questions(other, chosen)
            if answers is not None:
                checkpoints[other.name.removeprefix(f"{folder.name}-")] = answers
    return checkpoints


def _same_questions(folder: Path, chosen: Evaluation) -> Evaluation | None:
    """The finished answers of another model in ``folder`` to the questions of ``chosen``; ``None`` if it has not
    answered all of them, or is a server."""
    if not is_finished(folder):
        return None
    answered = read_evaluation(folder)
    wanted = {task: set(answers.ids) for task, answers in chosen.tasks.items()}
    if answered.weights is None or questions_in_common([answered, chosen])[0] != wanted:
        return None
    return answered.only(wanted)


def prepare_questions(target: Target, chosen: Evaluation, source: ServerSource) -> PreparedQuestions:
    """Return the questions that ``target`` (`open_as_evaluated`) has answered, to be asked of a server in the same way.

    Raises:
        MosloraError: the questions, the tokenizer or the chat template have changed since.
    """
    assert chosen.conditions is not None
    tasks = target.tasks_to_ask(list(chosen.tasks))
    questions = {task.name: load_examples(task, "test", source=target.request.source) for task in tasks}
    prepared = prepare(target, source, questions, target.request)
    changed = differences(chosen.conditions, prepared.conditions, Changes.QUESTIONS, Changes.TOKENS)
    if changed:
        what = some(changed, separator="; ")
        raise MosloraError(f"{chosen.folder}: changed since ({what}); remove this folder and verify again")
    return prepared.only({id for answers in chosen.tasks.values() for id in answers.ids})


def _report(
    served: Served, prepared: PreparedQuestions, predictions: Sequence[Prediction], run: Evaluation, *, dtype: DType
) -> Report:
    """The numbers of the server's answers, and the verdict on them."""
    server = Evaluation.of(run.folder, prepared.conditions, predictions, run.records)
    questions = prepared.encoded()
    fit = None
    rounding = 0.0
    if served.reading is None:
        verdict = judge_texts(text_evidence(server, run))
    else:
        told = evidence(questions, server, run, checkpoints=checkpoints_of(run), dtype=dtype)
        verdict, fit = judge(told)
        rounding = told.tolerance
    answers = answers_of(predictions)
    if verdict.agrees:
        verdict = _refused_for_length(questions, answers) or verdict
    if verdict.kind in ("run", "undecided"):
        verdict = _misread(predictions) or verdict
    verdict = PromptTests(served, prepared, answers, rounding).verdict(verdict)
    return Report(
        server=served.server.address,
        model=served.server.model,
        evaluation=run.folder,
        asked=len(predictions),
        answered=len(answers),
        same=len(alike(server, run)),
        how=str(served),
        effects=effects_of(server, run),
        verdict=verdict,
        fit=fit,
        tolerance=rounding,
    )


def _misread(predictions: Sequence[Prediction]) -> Verdict | None:
    """Verdict that the server reads another prompt than was sent, for some of the questions."""
    misread = [each.refused for each in predictions if each.refused.startswith(MISREAD)]
    if not misread:
        return None
    return Verdict("prompt", f"of {counted(len(predictions), 'question')} {len(misread)} are refused: {misread[0]}")


def _refused_for_length(questions: Sequence[EncodedQuestion], answered: Collection[str]) -> Verdict | None:
    """Verdict that the server refuses the longest questions, having ``answered`` all others."""
    refused = [question.tokens for question in questions if question.example.id not in answered]
    longest = max(question.tokens for question in questions if question.example.id in answered)
    if not refused or min(refused) < longest:
        return None
    what = f"of {counted(len(questions), 'question')} the {len(refused)} longest are refused, above {longest} tokens"
    return Verdict("context", f"the context is cut: {what}")
