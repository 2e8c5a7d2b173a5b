"""``moslora eval``: questions are read, a target is scored on them, and its run is told."""

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from moslora.base.failures import or_out_of_memory
from moslora.base.identity import packages
from moslora.base.resolve import locate
from moslora.console import note
from moslora.data.encode import Encoder, encoding
from moslora.data.sources import data_hash, differences, load_examples
from moslora.errors import UsageError
from moslora.evaluation.batches import batch_budget
from moslora.evaluation.evaluator import evaluate
from moslora.evaluation.in_run import is_in_run, tell_run
from moslora.evaluation.leaks import find_leaks
from moslora.evaluation.results import Results
from moslora.evaluation.scorer import Request
from moslora.evaluation.target import Target
from moslora.files import locked
from moslora.kernels import liger
from moslora.processes.devices import device
from moslora.processes.group import process_group, take_gpu
from moslora.ranks import is_main_process
from moslora.runs.bare_rows import remark_on_bare_rows
from moslora.runs.named import tasks_to_ask
from moslora.tasks import Example


def evaluate_target(
    target: Target, *, tasks: str | Sequence[str] | None = None, out: Path | None = None, **typed: Any
) -> tuple[Results, Path]:
    """Scores ``target`` with its own settings, changed by ``typed`` fields of `Request`; ``tasks`` as in
    `resolve_tasks`. Returns the results and their folder.

    Raises:
        UsageError: the protocol cannot read the format's answers, or the folder holds something else.
        MosloraError: the GPU is out of memory.
    """
    take_gpu()
    request, questions = asked_questions(target, tasks, typed)
    identity = target.identity()
    out = target.results_folder(request, out)
    tokenizer = target.tokenizer()
    by_peft = target.adapter is not None and target.adapter.recipe.adapter.needs_peft
    must_agree = {
        **{key: value for key, value in identity.items() if key != "base"},  # whose path may differ
        **{f"the hash of {task}": data_hash(rows) for task, rows in questions.items()},
        **request.model_dump(exclude={"source"}),
        "strategy": target.strategy,
        **packages(quantized=target.model.quantization is not None, peft=by_peft),
        **encoding(Encoder(tokenizer, max_length=None), request.format),
    }
    metadata = {**identity, "source": request.source}
    leaks = find_leaks(target.trained, questions)
    tokens = request.batch_tokens or batch_budget(device())
    with (
        locked(out) if is_main_process() else nullcontext(),
        process_group(must_agree, then="the same command continues from the scores so far"),
        or_out_of_memory(f"out of GPU memory with batches of {tokens:,} tokens; use a smaller --batch-tokens"),
    ):
        liger.agree()
        # The model is not kept: it uses the group, which ends with this block.
        model = target.load()
        results = evaluate(model, tokenizer, questions, request, out=out, metadata=metadata, leaks=leaks)
        if target.trained is not None and is_main_process() and is_in_run(out, target.trained.run):
            tell_run(target.trained, out, base=target.base)
    return results, out


def asked_questions(
    target: Target, tasks: str | Sequence[str] | None, typed: Mapping[str, Any]
) -> tuple[Request, dict[str, list[Example]]]:
    """How ``target`` is asked, and all questions of each task, with a note on scores that need a remark.

    Raises:
        UsageError: a source without test rows, or no such model; before anything is downloaded.
    """
    request = target.asked(typed)
    chosen = tasks_to_ask(target.recipe, tasks)
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
    limit = request.limit
    limited = [f"{task} {limit:,} of {len(rows):,}" for task, rows in questions.items() if limit and len(rows) > limit]
    if limited and "limit" not in typed:  # one that was typed needs no words
        note(f"questions: {', '.join(limited)} (evaluation.limit of the recipe); --limit all asks all")
    return request, questions
