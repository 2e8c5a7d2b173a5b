"""``moslora eval``: questions are read, and a target is scored on them, or a server in its place."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from moslora.base.failures import or_out_of_memory
from moslora.base.identity import packages
from moslora.base.resolve import locate
from moslora.base.shapes import meta_model, read_config
from moslora.console import note
from moslora.data.sources import differences, load_examples
from moslora.errors import UsageError, counted, first_line
from moslora.evaluation.batches import batch_budget
from moslora.evaluation.evaluator import PreparedQuestions, conditions_of, evaluate
from moslora.evaluation.journal import Journal
from moslora.evaluation.leaks import find_leaks
from moslora.evaluation.loading import load_model, tokenizer_of, weights_of
from moslora.evaluation.request import Request
from moslora.evaluation.scorers import make_encoder
from moslora.evaluation.scoring import missing_in
from moslora.evaluation.served import open_served
from moslora.evaluation.server import Server
from moslora.evaluation.target import Target
from moslora.files import locked
from moslora.kernels import liger
from moslora.processes.devices import device
from moslora.processes.group import process_group, take_gpu
from moslora.prompts.protocols import PROTOCOLS
from moslora.ranks import is_main_process
from moslora.runs.bare_rows import remark_on_bare_rows
from moslora.runs.conditions import KEPT, Endpoint
from moslora.runs.evaluation import read_evaluation
from moslora.runs.header import Leaks
from moslora.runs.results import Results, results_of
from moslora.runs.trackers import KINDS, record
from moslora.tasks import Example


def evaluate_target(
    target: Target,
    *,
    tasks: str | Sequence[str] | None = None,
    out: Path | None = None,
    server: Server | None = None,
    at_once: int = 8,
    **typed: Any,
) -> tuple[Results, Path]:
    """Scores ``target`` with its own settings, changed by ``typed`` fields of `Request`; ``tasks`` as in
    `resolve_tasks`. Returns the results and their folder. A ``server`` is asked in its place, so many questions
    ``at_once``: only the target's tokenizer, tasks and settings are used.

    Raises:
        UsageError: the protocol cannot read the format's answers, the server cannot be asked so, or the folder holds
            something else.
        Unavailable: the server does not answer; what it has answered is kept.
        MosloraError: the GPU is out of memory.
    """
    if server is None:
        take_gpu()
    request, questions = asked_questions(target, tasks, typed)
    leaks = find_leaks(target.trained, questions)
    out = target.results_folder(request, out, ending=f"-at-{name_of(server)}" if server else "")
    if server is not None:
        prepared = prepare_for_server(target, questions, request, server)
        with locked(out):
            journal = open_answers(prepared, out, leaks)
            if missing_in(prepared.tasks, journal):
                wanted = prepared.encoded()
                open_served(server, prepared.scorer, wanted, at_once=at_once).answer_missing(wanted, journal)
            journal.finish()
        return prepared.results(journal), out
    tokenizer = tokenizer_of(target)
    by_peft = target.adapter is not None and target.adapter.recipe.adapter.needs_peft
    versions = packages(quantized=target.model.quantization is not None, peft=by_peft)
    encoder = make_encoder(read_config(target.model), tokenizer, request)
    conditions = conditions_of(request, questions, encoder, weights_of(target, request), versions)
    must_agree = {**conditions.facts(*KEPT), "limit": request.limit, "strategy": target.strategy}
    tokens = request.batch_tokens or batch_budget(device())
    with (
        locked(out) if is_main_process() else nullcontext(),
        process_group(must_agree, then="the same command continues from the scores so far"),
        or_out_of_memory(f"out of GPU memory with batches of {tokens:,} tokens; use a smaller --batch-tokens"),
    ):
        liger.agree()
        # The model is not kept: it uses the group, which ends with this block.
        results = evaluate(
            load_model(target), tokenizer, questions, request, out=out, conditions=conditions, leaks=leaks
        )
        if is_main_process() and target.is_in_run(out):
            record_scores(target, out)
    return results, out


def asked_questions(
    target: Target, tasks: str | Sequence[str] | None, typed: Mapping[str, Any]
) -> tuple[Request, dict[str, list[Example]]]:
    """How ``target`` is asked, and all questions of each task, with a note on scores that need a remark.

    Raises:
        UsageError: a source without test rows, or no such model; before anything is downloaded.
    """
    request = target.asked(typed)
    chosen = target.tasks_to_ask(tasks)
    if tasks is None and target.trained and target.trained.recipe.evaluation.tasks is None:
        remark = remark_on_bare_rows(target.trained.run)
        if remark:
            note(f"{remark}; this evaluates the eight commonsense sets, or the --tasks that you name")
    source = request.source
    sets = [task.name for task in chosen if not task.own]
    trained_on = target.recipe.data.source if target.recipe else None
    if sets and source == trained_on and os.path.isfile(os.path.expanduser(source)):
        raise UsageError(
            f"{source}: this model was trained on this single file, which has no test rows; set --source, such as wheel"
        )
    if target.trained is None:
        locate(target.model.name, revision=target.model.revision)
    for line in differences(source, sets, split="test"):
        note(line)
    trained = target.adapter.trained_tasks() if target.adapter else None
    others = [task.name for task in chosen if trained and not task.is_text and task.name not in trained]
    if trained and others:  # of texts the gate is the mean of all tasks'
        unknown = f"the gate was never trained on {', '.join(others)} (only on {', '.join(trained)})"
        note(f"{unknown}: those scores use a random embedding")
    questions = {task.name: load_examples(task, "test", source=source) for task in chosen}
    limited = []
    for task, rows in questions.items():
        left = len(rows) - request.skipped(task)
        count = min(request.limit or left, left)
        if count < len(rows):
            limited.append(f"{task} {count:,} of {len(rows):,}")
    if limited and "limit" not in typed:  # one that was typed needs no words
        keys = "evaluation.limit and skip" if request.skip else "evaluation.limit"
        note(f"questions: {', '.join(limited)} ({keys} of the recipe); --limit all asks all")
    return request, questions


def prepare_for_server(
    target: Target, questions: Mapping[str, Sequence[Example]], request: Request, server: Server
) -> PreparedQuestions:
    """The questions as `PreparedQuestions`, with the settings of an evaluation of this server: what computes there is
    not known. The model is there without its weights, as only its context length is needed.

    Raises:
        UsageError: texts would be written by beam search, which no server does.
    """
    if PROTOCOLS[request.protocol].writes and request.beams > 1:
        raise UsageError(f"{request.beams} beams: servers write greedily; evaluate with --beams 1")
    tokenizer = tokenizer_of(target)
    encoder = make_encoder(read_config(target.model), tokenizer, request)
    conditions = conditions_of(request, questions, encoder, Endpoint(server.address, server.model), {})
    empty = meta_model(target.model).eval()
    return PreparedQuestions.of(empty, tokenizer, questions, request, conditions)


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


def record_scores(target: Target, folder: Path) -> None:
    """Add the scores in ``folder`` to the records that the training of ``target`` began in trackers."""
    assert target.trained is not None
    run = target.trained.run
    results = results_of(read_evaluation(folder).complete)
    scores: dict[str, float | None] = {}
    if results.macro is not None:
        scores = {"macro": results.macro.main.value, "majority_class": results.macro.majority_class}
    scores |= {task: score.main.value for task, score in results.tasks.items()}
    scores |= {task: score.nats_per_byte for task, score in results.texts.items()}
    named = {f"eval/{folder.name}/{name}": score for name, score in scores.items() if score is not None}
    for name in target.trained.recipe.tracking.to:
        try:
            if f"{name}_id" in run.facts:
                step = 0 if target.base else target.trained.manifest["step"]
                with record(name, target.trained.recipe, run) as (tracker, _):
                    KINDS[name].score(tracker, named, step)
        except Exception as error:  # of whatever kind: the scores are on the disk
            note(f"the scores could not be written into {name}: {first_line(error)}")
