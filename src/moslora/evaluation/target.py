"""The model that ``moslora eval`` scores: a run, an adapter folder, or any model."""

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.base.failures import fitting, or_out_of_memory
from moslora.base.identity import fingerprint, packages
from moslora.base.load import load_base, load_tokenizer
from moslora.base.resolve import locate
from moslora.base.sharded import shard_base, shards
from moslora.choices import DType, FormatName, Strategy
from moslora.console import note
from moslora.data.encode import Encoder, encoding
from moslora.data.sources import data_hash, differences, load_examples
from moslora.errors import UsageError, first_line
from moslora.evaluation.batches import batch_budget
from moslora.evaluation.evaluator import ModelFacts, evaluate, refuse_empty
from moslora.evaluation.leaks import find_leaks
from moslora.evaluation.results import Results, read_results
from moslora.evaluation.scorer import Request
from moslora.files import locked, refuse_used
from moslora.kernels import liger
from moslora.processes.devices import device
from moslora.processes.group import group_size, process_group, take_gpu
from moslora.prompts.protocols import Asked, choose, refuse_beams
from moslora.ranks import is_main_process
from moslora.recipe import ModelSection, Recipe, resolve_tasks
from moslora.runs import RUNS
from moslora.runs.adapter_folder import AdapterFolder, check_encoding, load_adapted, open_adapter
from moslora.runs.evaluation_defaults import read_evaluation_defaults
from moslora.runs.named import names_run
from moslora.runs.origin import remark_on
from moslora.runs.run import (
    BESIDE,
    EVALUATIONS,
    SETTINGS,
    checkpoint_name,
    evaluation_name,
    locate_adapter,
    run_of,
    unfinished,
)
from moslora.runs.trackers import KINDS, record
from moslora.tasks import TASKS, Task


@dataclass(frozen=True)
class Target:
    """A model to score, not loaded yet."""

    model: ModelSection  # how it is loaded
    request: Request  # the settings of its recipe, or the defaults
    recipe: Recipe | None = None  # its run's, or what a merged model's folder has of it
    run: AdapterFolder | None = None  # its adapter folder; ``None`` for a model without a run
    base: bool = False  # the run's base is scored, without the adapter
    strategy: Strategy = "ddp"  # what each of several processes holds

    @property
    def adapter(self) -> AdapterFolder | None:
        return None if self.base else self.run

    @property
    def own_tasks(self) -> Mapping[str, Task]:
        return self.recipe.own_tasks if self.recipe else {}

    def asked(self, typed: Mapping[str, Any]) -> Request:
        """Its request with the ``typed`` fields. If only one of protocol and format is typed, the other fits it."""
        own = self.request
        protocol = typed.get("protocol")
        format = typed.get("format")
        if self.recipe is None and not (protocol or format):
            note(f"no run says how to ask this model: protocol {own.protocol} (change it with --protocol)")
        chosen = choose(Asked(own.protocol, own.format), protocol=protocol, format=format)
        refuse_beams(typed.get("beams"), chosen.protocol)
        self._note_other(chosen, protocol=protocol, format=format)
        return Request.model_validate({**own.model_dump(), **typed, **chosen._asdict()})

    def _note_other(self, chosen: Asked, *, protocol: str | None, format: str | None) -> None:
        """Says what was chosen instead of the recipe's own, and not typed: another format is another question."""
        own = self.request
        if self.recipe is None:
            return
        if chosen.format not in (format, own.format):
            note(
                f"protocol {protocol} does not read format {own.format}, in which this model was trained; asked in"
                f" format {chosen.format}"
            )
        if chosen.protocol not in (protocol, own.protocol):
            note(
                f"format {format} is not read by protocol {own.protocol}, this model's own; read by protocol"
                f" {chosen.protocol}"
            )

    def tasks(self, typed: str | Sequence[str] | None) -> tuple[Task, ...]:
        """The typed tasks, by default those of its recipe, or the eight sets."""
        if typed is not None:
            return resolve_tasks(typed, self.own_tasks)
        return self.recipe.questions.tasks if self.recipe else tuple(TASKS.values())

    def folder(self, request: Request) -> Path:
        """The default results folder. A hub model is downloaded for its fingerprint."""
        name = evaluation_name(request.protocol, request.format, self.model.precision)
        if self.run is None:
            model = Path(os.path.expanduser(self.model.name)).name
            return RUNS / f"eval-{model}-{fingerprint(self.model.name)[:8]}" / name
        return run_of(self.run.path).path / EVALUATIONS / (name + self.suffix)

    @property
    def suffix(self) -> str:
        """At the end of the name of its results in a run's ``eval/``: empty for the run's result."""
        if self.run is None:
            return ""
        if self.base:
            return "-base"
        checkpoint = checkpoint_name(self.run.path)
        return f"-{checkpoint}" if checkpoint else ""

    def load(self) -> PreTrainedModel:
        """The model in evaluation mode on the GPU or else the CPU, sharded if the strategy asks for it."""
        shared = shards(self.strategy)
        several = group_size() > 1
        # To be sharded it is read on the CPU, where processes share the file's pages; quantised it is on its device.
        on_host = shared and not self.model.quantization
        place = torch.device("cpu") if on_host else device()
        with fitting(self.model, another="--strategy fsdp, " if several and not shared else ""):
            if self.adapter:
                dtype = self.model.dtype
                model = load_adapted(self.adapter, device=place, computed_here=not on_host, dtype=dtype)
            else:
                model = load_base(self.model, device=place, computed_here=not on_host)
            if shared:
                shard_base(model, device=device())
        return model

    @property
    def by_peft(self) -> bool:
        """Whether its adapter is one of PEFT's."""
        return self.adapter is not None and self.adapter.recipe.adapter.needs_peft

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer, which must be the one that the run was trained with."""
        tokenizer, _ = self.tokenizer_and_encoding(self.request.format)
        return tokenizer

    def tokenizer_and_encoding(self, format: FormatName) -> tuple[PreTrainedTokenizerBase, dict[str, str]]:
        """The tokenizer, and the hashes of what decides the tokens of a question in ``format``."""
        encoder = Encoder(load_tokenizer(self.model), max_length=None)
        if self.run:
            check_encoding(self.run, encoding(encoder, self.run.recipe.data.format))
        return encoder.tokenizer, encoding(encoder, format)

    def identity(self) -> dict[str, Any]:
        """Facts that identify the model and the arithmetic of its device."""
        return {
            "base": self.model.name,
            "fingerprint": fingerprint(self.model.name, revision=self.model.revision),
            "adapter": self.adapter.manifest["sha256"]["adapter.safetensors"] if self.adapter else None,
            "quantization": self.model.quantization,
            **({"double_quantization": self.model.double_quantization} if self.model.quantization == "nf4" else {}),
            "device": device().type,
        }


def open_target(
    target: str,
    *,
    base: bool = False,
    dtype: DType | None = None,
    trust_remote_code: bool = False,
    strategy: Strategy | None = None,
) -> Target:
    """The model that ``target`` names: a run, an adapter folder, a model folder, or a hub id.

    ``base``: of a run, the base without the adapter. ``dtype`` and ``strategy`` replace the recipe's.
    ``trust_remote_code``: the model's own Python code may run, which a run's recipe cannot allow.
    """
    changes = {"dtype": dtype} if dtype else {}
    path = Path(os.path.expanduser(target))
    if not names_run(target):
        recipe = read_evaluation_defaults(path)
        if remark := remark_on(path):
            note(remark)
        model = recipe.model if recipe else ModelSection(name=target)
        model = model.model_copy(update={"name": target, "trust_remote_code": trust_remote_code, **changes})
        return Target(model, _request(recipe) if recipe else Request(), recipe, strategy=strategy or "ddp")
    run = open_adapter(locate_adapter(path), trust_remote_code=trust_remote_code)
    recipe = run.recipe
    if strategy == "fsdp" and recipe.model.quantization == "int8":
        raise UsageError("--strategy fsdp: bitsandbytes' int8 layers lose their scales when they are sharded; use ddp")
    if not base and (remark := unfinished(path, run.path, doing="scoring")):
        note(remark)
    model = recipe.model.model_copy(update=changes)
    return Target(model, _request(recipe), recipe, run, base, strategy or recipe.training.strategy)


def _request(recipe: Recipe) -> Request:
    asked = {"format": recipe.data.format, "source": recipe.questions.source}
    return Request(**recipe.evaluation.model_dump() | asked)


def load(
    run: str | Path, *, dtype: DType | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that ``moslora eval`` would score, on the GPU or else the CPU, in evaluation mode, and its tokenizer.

    >>> model, tokenizer = moslora.load("runs/mine")
    >>> logits = model(**tokenizer("A stone falls.", return_tensors="pt").to(model.device)).logits  # (1, T, vocabulary)

    ``run`` is a run, an adapter folder, or a model without adapters, such as ``moslora merge`` writes. ``dtype`` is
    that of the base and the computation, by default the run's, or bfloat16; A, M and B stay in float32.

    Raises:
        MosloraError: there is no such thing, it is damaged, or it does not fit into the GPU's memory.
    """
    target = open_target(str(run), dtype=dtype, trust_remote_code=trust_remote_code, strategy="ddp")
    return target.load(), target.tokenizer()


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
    request, run, chosen = target.asked(typed), target.run, target.tasks(tasks)
    _check(target, chosen, source=request.source)
    questions = {task.name: load_examples(task, "test", source=request.source) for task in chosen}
    refuse_empty(questions)
    identity, out = target.identity(), out or target.folder(request)
    tokenizer, its_encoding = target.tokenizer_and_encoding(request.format)
    if run and _in_run(out, run) and "".join(BESIDE.findall(out.name)) != target.suffix:
        ending = f"a name that ends in {target.suffix}" if target.suffix else "a name without this ending"
        raise UsageError(f"--out {out}: in eval/ of a run this name is for other weights; choose {ending}")
    if is_main_process() and not (out / SETTINGS).exists():
        refuse_used(out)
    facts = {
        **{key: value for key, value in identity.items() if key != "base"},  # whose path may differ
        **{f"the hash of {task}": data_hash(rows) for task, rows in questions.items()},
        **request.model_dump(exclude={"source"}),
        "strategy": target.strategy,
        **its_encoding,
        **packages(quantized=target.model.quantization is not None, peft=target.by_peft),
    }
    tokens = request.batch_tokens or batch_budget(device())
    with (
        locked(out) if is_main_process() else nullcontext(),
        process_group(facts, then="the same command continues from the scores so far"),
        or_out_of_memory(f"out of GPU memory with batches of {tokens:,} tokens; use a smaller --batch-tokens"),
    ):
        liger.agree()
        results = evaluate(
            target.load(),  # not kept: it uses the group, which ends with this block
            tokenizer,
            questions,
            request,
            out=out,
            facts=ModelFacts(
                metadata={**identity, "source": request.source},
                leaks=find_leaks(run, questions) if run else {},
                encoding=its_encoding,
            ),
        )
        if run and is_main_process() and _in_run(out, run):
            _tell_run(run, out, base=target.base)
    return results, out


def _check(target: Target, tasks: Sequence[Task], *, source: str) -> None:
    """Refuses a source without test rows and a model that does not exist, before anything is downloaded. Notes scores
    that need a remark."""
    run, sets = target.run, [task.name for task in tasks if not task.own]
    if sets and target.recipe and source == target.recipe.data.source and os.path.isfile(os.path.expanduser(source)):
        raise UsageError(f"{source}: a single file has no test rows, and this model was trained on it; set --source")
    if not run:
        locate(target.model.name, revision=target.model.revision)
    for line in differences(source, sets, split="test"):
        note(line)
    trained = target.adapter.trained_tasks() if target.adapter else None
    asked = [task.name for task in tasks if not task.is_text]  # of texts it is the mean of all tasks' gates
    if trained is not None and (others := [name for name in asked if name not in trained]):
        unknown = f"the gate was never trained on {', '.join(others)} (only on {', '.join(trained)})"
        note(f"{unknown}: those scores use a random embedding")


def _in_run(out: Path, run: AdapterFolder) -> bool:
    """Whether ``out`` is a folder of the run's ``eval/``, however both are written."""
    return out.resolve().parent == (run_of(run.path).path / EVALUATIONS).resolve()


def _tell_run(run: AdapterFolder, out: Path, *, base: bool) -> None:
    """Adds the scores in ``out`` to the run's card, and to the records that its training began in trackers."""
    own, summary = run_of(run.path), read_results(out).summary()
    own.add_facts(results={out.name: summary})
    averages = {name: score for name, score in summary.items() if name in ("macro", "majority_class")}
    scores = averages | summary["tasks"] | summary.get("nats_per_byte", {})
    scores = {f"eval/{out.name}/{name}": score for name, score in scores.items()}
    for name in run.recipe.tracking.to:
        try:
            if f"{name}_id" in own.facts:
                with record(name, run.recipe, own) as (tracker, _):
                    KINDS[name].score(tracker, scores, 0 if base else run.manifest["step"])
        except Exception as error:  # of whatever kind: the scores are on the disk
            note(f"the scores are not in {name}: {first_line(error)}")
