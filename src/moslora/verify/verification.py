"""``moslora verify``: ask a server the questions that a model has answered, and compare both.

Questions that the model or its base has not answered yet are scored first on this machine, as by ``moslora eval``.
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
from moslora.runs.conditions import Changes, Weights, differences, read_header
from moslora.runs.evaluation import Evaluation, is_finished, questions_in_common, read_evaluation, refuse_other_scores
from moslora.runs.origin import read_origin
from moslora.runs.predictions import Prediction
from moslora.runs.run import PREDICTIONS, RESULTS, SETTINGS, Run, base_of, result_of
from moslora.verify.evidence import evidence, same_answers, text_evidence
from moslora.verify.prompts import PromptTests
from moslora.verify.report import REPORT, Report, effects_of
from moslora.verify.verdict import Verdict, judge, judge_texts

DEFAULT_QUESTIONS = 64
"""Default number of questions of all tasks together."""


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
    """Compare the server at ``address`` with the model at ``path`` and its base, by answers to the same questions.

    Args:
        path: a run, an adapter folder, or a model, such as a merged one.
        address: address of the server.
        model: the model's name on the server; ``None`` if the server has only one.
        tasks: names of tasks, separated by commas; ``None`` for those evaluated or, if none are, the recipe's.
        limit: number of questions of each task; ``None`` for 64 over all tasks together, 0 for all questions.
        evaluation: name of the evaluation's folder; ``None`` for the only one or, if there are several or none, the
            recipe's.
        dtype: precision of the server; ``None`` for the evaluation's, or float16 where that is float32.
        at_once: number of questions asked at the same time.
        out: folder of the server's answers; ``None`` for one in the run.
        trust_remote_code: allow the model's own Python code.

    Raises:
        UsageError: no server can be asked as the model was; the model was trained further since its evaluation; the
            server has several models and ``model`` names none.
        Unavailable: the server does not answer; its answers so far are kept.
    """
    target, folder = open_as_evaluated(path, evaluation, trust_remote_code=trust_remote_code)
    evaluated = _evaluated_tasks(folder)
    names = evaluated
    if tasks or not evaluated:
        chosen = target.tasks_to_ask(tasks)
        names = [task.name for task in chosen if not (task.is_text or task.is_open_ended)]
    if not names:
        raise UsageError("--tasks: choose tasks whose questions have options")
    if limit is None:
        limit = math.ceil(DEFAULT_QUESTIONS / len(names))
    server = open_server(address, model)
    missing = [name for name in names if name not in evaluated]
    if missing:
        _score(target, missing, limit=limit, out=folder)
    answers = read_evaluation(folder).restricted_to(names, limit or None)
    run = with_base(answers)
    if run.base is None:
        try:
            most = max(len(of_task.ids) for of_task in answers.tasks.values())
            _score(_base_of(target), list(answers.tasks), limit=most, out=base_of(folder))
            run = with_base(answers)
        except MosloraError as fault:
            note(f"the base could not be scored, so the verdict cannot be yes: {first_line(fault)}")
    prepared = prepare_questions(target, answers, ServerSource(server, at_once))
    home = target.run.path if target.run else folder.parent
    out = out or home / "verify" / f"{name_of(server)}-{folder.name}"
    refuse_other_scores(out)
    assert run.weights is not None
    dtype = dtype or ("bfloat16" if run.weights.dtype == "bfloat16" else "float16")  # servers have no float32
    with locked(out):
        if (out / REPORT).exists():  # the server may have been repaired since; an interrupted verification goes on
            for name in (REPORT, PREDICTIONS, SETTINGS, RESULTS):
                (out / name).unlink(missing_ok=True)
        pairs = [question.pairs for question in prepared.encoded()]
        served = open_served(server, prepared.encoder, pairs, at_once=at_once)
        results = prepared.answer(served, prepared.open_journal(out, {}))
        report = _report(served, prepared, results.predictions, run, dtype=dtype)
        write_text(out / REPORT, report.to_json())
    return report


def open_as_evaluated(path: Path, evaluation: str | None, *, trust_remote_code: bool = False) -> tuple[Target, Path]:
    """Return the model at ``path`` with the settings of one of its evaluations, and the evaluation's folder. By default
    it is the only evaluation or, if there are several or none, the recipe's, which need not exist yet."""
    target = open_target(str(path), trust_remote_code=trust_remote_code)
    run = Run(path)
    if evaluation or any(result_of(folder) == folder for folder in run.evaluations):
        folder = run.evaluation_folder(evaluation)
        conditions = read_header(folder).conditions
        model = target.model
        if isinstance(conditions.answered_by, Weights):
            model = model.model_copy(update={"dtype": conditions.answered_by.dtype})
        settings = {name: getattr(conditions, name) for name in ("protocol", "format", "max_length", "source")}
        settings |= {"beams": conditions.beams or 1, "limit": None}
        return replace(target, model=model, request=target.request.model_copy(update=settings)), folder
    scoring = readers(target.request.format)[0].name  # texts show no scale
    request = target.request.model_copy(update={"protocol": scoring, "limit": None})
    return replace(target, request=request), target.results_folder(request, None)


def _evaluated_tasks(folder: Path) -> list[str]:
    """Tasks with options that the model has answered in ``folder``.

    Raises:
        UsageError: a server gave the answers, or weights that are gone.
    """
    if not (folder / PREDICTIONS).is_file():
        return []
    answered = read_evaluation(folder)
    if answered.weights is None:
        raise UsageError(f"{folder}: has the answers of a server; name an evaluation by this machine with --evaluation")
    if result_of(folder) == folder and not answered.of_base:
        evaluated_step(answered, of_result=True)
    return [name for name, answers in answered.complete.tasks.items() if answers.gold]


def _score(target: Target, tasks: Sequence[str], *, limit: int, out: Path) -> None:
    """Score a model on the first questions of these tasks, as ``moslora eval`` does."""
    say(f"before verifying, scoring {limit or 'all'} questions of each of {some(tasks, most=8)} into {out}")
    how = target.request.model_dump(exclude={"tasks", "limit"})
    evaluate_target(target, tasks=tasks, out=out, limit=limit or None, **how)


def _base_of(target: Target) -> Target:
    """Base of a run, or of a model that was merged from a run.

    Raises:
        MosloraError: the base is unknown, or not on this machine.
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
    raise MosloraError(f"{merged}: was merged from {origin.base}, which is not on this machine; copy or download it")


def with_base(answers: Evaluation) -> Evaluation:
    """Return a run's answers with those of its base, if the base has answered all of the same questions."""
    return replace(answers, base=_same_questions(base_of(answers.folder), answers))


def checkpoints_of(run: Evaluation) -> dict[str, Evaluation]:
    """Answers of each checkpoint that was asked all questions of ``run``, by the checkpoint's name."""
    folder = run.folder
    checkpoints = {}
    for other in Run(folder.parent.parent).evaluations:
        if result_of(other) == folder and other not in (folder, base_of(folder)):
            answers = _same_questions(other, run)
            if answers is not None:
                checkpoints[other.name.removeprefix(f"{folder.name}-")] = answers
    return checkpoints


def _same_questions(folder: Path, run: Evaluation) -> Evaluation | None:
    """Answers in ``folder``, of the base or a checkpoint, to the questions of ``run``; ``None`` if some are missing, or
    if a server gave them."""
    if not is_finished(folder):
        return None
    other = read_evaluation(folder)
    wanted = {task: set(answers.ids) for task, answers in run.tasks.items()}
    if other.weights is None or questions_in_common([other, run])[0] != wanted:
        return None
    return other.only(wanted)


def prepare_questions(target: Target, run: Evaluation, source: ServerSource) -> PreparedQuestions:
    """Return the questions that ``target`` (`open_as_evaluated`) has answered, to be asked of a server in the same way.

    Raises:
        MosloraError: the questions, the tokenizer or the chat template have changed since.
    """
    assert run.conditions is not None
    tasks = target.tasks_to_ask(list(run.tasks))
    questions = {task.name: load_examples(task, "test", source=target.request.source) for task in tasks}
    prepared = prepare(target, source, questions, target.request)
    changed = differences(run.conditions, prepared.conditions, Changes.QUESTIONS, Changes.TOKENS)
    if changed:
        what = some(changed, separator="; ")
        raise MosloraError(
            f"{run.folder}: the model answered under other conditions ({what}); remove this folder and verify again"
        )
    return prepared.only({id for answers in run.tasks.values() for id in answers.ids})


def _report(
    served: Served, prepared: PreparedQuestions, predictions: Sequence[Prediction], run: Evaluation, *, dtype: DType
) -> Report:
    """Report of a server's answers, with the verdict."""
    server = Evaluation.of(run.folder, prepared.conditions, predictions, run.records)
    questions = prepared.encoded()
    fit = None
    rounding = 0.0
    if served.reading is None:
        verdict = judge_texts(text_evidence(server, run))
    else:
        compared = evidence(questions, server, run, checkpoints=checkpoints_of(run), dtype=dtype)
        verdict, fit = judge(compared)
        rounding = compared.tolerance
    answered = frozenset(prediction.id for prediction in predictions if not prediction.refused)
    if verdict.agrees:
        verdict = _refused_for_length(questions, answered) or verdict
    if verdict.kind in ("run", "undecided"):
        verdict = _misread(predictions) or verdict
    return Report(
        server=served.server.address,
        model=served.server.model,
        evaluation=run.folder,
        asked=len(predictions),
        answered=len(answered),
        same=len(same_answers(server, run)),
        how=str(served),
        effects=effects_of(server, run),
        verdict=PromptTests(served, prepared, answered, rounding).verdict(verdict),
        fit=fit,
        tolerance=rounding,
    )


def _misread(predictions: Sequence[Prediction]) -> Verdict | None:
    """Verdict that the server reads another prompt than was sent, if this was seen for some of the questions."""
    misread = [each.refused for each in predictions if each.refused.startswith(MISREAD)]
    if not misread:
        return None
    return Verdict("prompt", f"of {counted(len(predictions), 'question')} {len(misread)} are refused: {misread[0]}")


def _refused_for_length(questions: Sequence[EncodedQuestion], answered: Collection[str]) -> Verdict | None:
    """Verdict that the server's context is too short, if it has answered all questions but the longest."""
    refused = [question.tokens for question in questions if question.example.id not in answered]
    longest = max(question.tokens for question in questions if question.example.id in answered)
    if not refused or min(refused) < longest:
        return None
    what = f"of {counted(len(questions), 'question')} the {len(refused)} longest are refused, above {longest} tokens"
    return Verdict("context", f"the context is cut: {what}")
