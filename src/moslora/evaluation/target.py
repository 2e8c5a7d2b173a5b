"""What ``moslora eval`` scores: a run, an adapter folder, or any model."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from transformers import PreTrainedModel

from moslora.base.load import fitting, load_base, load_tokenizer, or_out_of_memory
from moslora.base.resolve import fingerprint, locate
from moslora.base.sharded import shard_base, shards
from moslora.choices import DType, Strategy
from moslora.console import is_main_process, note
from moslora.data.sources import MIXTURE, data_hash, differences, load_examples, tested_on
from moslora.errors import UsageError, first_line
from moslora.evaluation.batches import batch_budget
from moslora.evaluation.journal import SETTINGS
from moslora.evaluation.leaks import find_leaks
from moslora.evaluation.request import Options, Request
from moslora.evaluation.results import Results, load_results
from moslora.evaluation.run import evaluate
from moslora.files import locked, refuse_used
from moslora.processes.devices import device
from moslora.processes.group import meeting, members
from moslora.recipe import ModelSection, resolve_tasks
from moslora.runs.adapter_folder import AdapterFolder, load_adapted, open_adapter
from moslora.runs.run import EVALUATIONS, evaluation_name, locate_adapter, run_of, unfinished
from moslora.runs.wandb_run import wandb_run
from moslora.tasks import TASKS, Task


@dataclass(frozen=True)
class Target:
    """A model to score, not loaded yet.

    Attributes:
        model: how it is loaded.
        request: the settings of its run's recipe, or the defaults.
        tasks: those of its run's recipe, or the eight sets.
        runs: parent of the results folder of a model without a run.
        run: the run it belongs to (as its base, too), or ``None``.
        adapter: ``None`` for a base or a model without a run.
        suffix: of the results folder's name, for a base or a checkpoint.
        strategy: what each of several processes holds, by default that of its run's training.
    """

    model: ModelSection
    request: Request
    tasks: tuple[Task, ...]
    runs: Path
    run: AdapterFolder | None = None
    adapter: AdapterFolder | None = None
    suffix: str = ""
    strategy: Strategy = "ddp"

    def asked(self, **options: Unpack[Options]) -> Request:
        """Its request with the given options (`Request.changed`)."""
        if self.run is None and not (options.get("protocol") or options.get("format")):
            note(f"no run says how to ask this model: protocol {self.request.protocol} (change it with --protocol)")
        return self.request.changed(**options)

    def folder(self, request: Request) -> Path:
        """The default results folder. A hub model is downloaded for its fingerprint."""
        if self.run:
            results = run_of(self.run.path).path / EVALUATIONS
        else:
            name = Path(os.path.expanduser(self.model.name)).name
            results = self.runs / f"eval-{name}-{fingerprint(self.model.name)[:8]}"
        return results / (evaluation_name(request.protocol, request.format, self.model.precision) + self.suffix)

    def load(self) -> PreTrainedModel:
        """The model on the GPU, or where there is none on the CPU, in evaluation mode; sharded, if so it is to be."""
        shared, several = shards(self.strategy), members()[1] > 1
        # To be sharded it is read on the CPU, where processes share the file's pages; quantised it is on its device.
        place = torch.device("cpu") if shared and not self.model.quantization else device()
        with fitting(self.model, another="--strategy fsdp, " if several and not shared else ""):
            if self.adapter:
                model = load_adapted(self.adapter, device=place, dtype=self.model.dtype)
            else:
                model = load_base(self.model, device=place)
            if shared:
                shard_base(model, device=device())
        return model

    def identity(self) -> dict[str, Any]:
        """What identifies the model and the arithmetic of its device."""
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
    runs: Path = Path("runs"),
    trust_remote_code: bool = False,
    strategy: Strategy | None = None,
) -> Target:
    """What ``target`` names.

    Args:
        target: a run, an adapter folder, a model folder, or a hub id.
        base: of a run, the base model without the adapter.
        dtype: instead of the recipe's.
        runs: folder of the runs, and of the results of other models.
        trust_remote_code: whether the model's own Python code may run; a run's recipe cannot allow it.
        strategy: instead of the recipe's.

    Raises:
        UsageError: it is nothing that can be evaluated, or an 8-bit base is to be sharded.
    """
    changes = {"dtype": dtype} if dtype else {}
    path = Path(os.path.expanduser(target))
    # A path in ``runs`` is a (misspelt) run, not a hub id.
    is_run = not (path / "config.json").is_file() if os.path.isdir(path) else path.parent == runs
    if not is_run:
        if not os.path.isdir(path) and os.path.isdir(runs / path):
            raise UsageError(f"{target}: no such folder or model; did you mean {runs / path}?")
        model = ModelSection(name=target, trust_remote_code=trust_remote_code).model_copy(update=changes)
        return Target(model, Request(), tuple(TASKS.values()), runs, strategy=strategy or "ddp")
    run = open_adapter(locate_adapter(path), trust_remote_code=trust_remote_code)
    recipe = run.recipe
    if strategy == "fsdp" and recipe.model.quantization == "int8":
        raise UsageError("--strategy fsdp: bitsandbytes' int8 layers lose their scales when they are sharded; use ddp")
    checkpoint = f"-{run.path.name}" if run.path.parent.name == "checkpoints" else ""
    if not base and (remark := unfinished(path, run.path, doing="scoring")):
        note(remark)
    return Target(
        recipe.model.model_copy(update=changes),
        Request.of(recipe),
        recipe.questions.tasks,
        runs,
        run=run,
        adapter=None if base else run,
        suffix="-base" if base else checkpoint,
        strategy=strategy or recipe.training.strategy,
    )


def evaluate_target(
    target: Target, *, tasks: str | Sequence[str] | None = None, out: Path | None = None, **options: Unpack[Options]
) -> tuple[Results, Path]:
    """Scores ``target`` with its own settings, changed by the given options; ``tasks`` as in `resolve_tasks`.

    Returns:
        The results and their folder.

    Raises:
        UsageError: the protocol cannot read the format's answers, or the folder holds something else.
        MosloraError: the GPU is out of memory.
    """
    request = target.asked(**options)
    source, run = request.source, target.run
    chosen = target.tasks if tasks is None else resolve_tasks(tasks, run.recipe.own_tasks if run else None)
    sets = [task.name for task in chosen if not task.own]
    if sets and options.get("source") is None:
        _refuse_elsewhere(source)
    if sets and run and source == run.recipe.data.source and os.path.isfile(os.path.expanduser(source)):
        raise UsageError(f"{source}: a single file has no test rows, and this model was trained on it; set --source")
    if not run:  # a misspelt name fails before the data are downloaded
        locate(target.model.name, revision=target.model.revision)
    for line in differences(source, [name for name in sets if name == "hellaswag"]):
        note(line)
    trained = target.adapter.trained_tasks() if target.adapter else None
    # Only a note: the other scores are valid.
    if trained is not None and (others := [task.name for task in chosen if task.name not in trained]):
        note(
            f"the gate was never trained on {', '.join(others)} (only on {', '.join(trained)}): those scores use a"
            " random embedding"
        )
    questions = {task.name: load_examples(task, "test", source=source) for task in chosen}
    out = out or target.folder(request)
    if is_main_process() and not (out / SETTINGS).exists():
        refuse_used(out)
    facts = {
        **{key: value for key, value in target.identity().items() if key != "base"},  # whose path may differ
        **{f"the hash of {task}": data_hash(rows) for task, rows in questions.items()},
        **request.model_dump(exclude={"source"}),
        "strategy": target.strategy,
        "torch": torch.__version__,
    }
    same_command = "the same command continues from the scores so far"
    with locked(out) if is_main_process() else nullcontext(), meeting(facts, then=same_command):
        batch_tokens = request.batch_tokens or batch_budget(device())
        with or_out_of_memory(
            f"out of GPU memory with batches of {batch_tokens:,} tokens; use a smaller --batch-tokens"
        ):
            results = evaluate(
                target.load(),  # not kept: it uses the group, which ends with this block
                load_tokenizer(target.model),
                questions,
                request,
                out=out,
                metadata={**target.identity(), "source": tested_on(source)},
                leaks=find_leaks(run, questions) if run else None,
            )
    if run and is_main_process() and out.parent == run_of(run.path).path / EVALUATIONS:
        _tell_run(run, out)
    return results, out


def _tell_run(run: AdapterFolder, out: Path) -> None:
    """Adds the scores in ``out`` to the run's card, and to its run on Weights & Biases, if it has one."""
    own, summary = run_of(run.path), load_results(out).summary()
    own.add_facts(results={out.name: summary})
    if "wandb_id" not in own.facts:
        return
    scores = {"macro": summary["macro"], "majority_class": summary["majority_class"], **summary["tasks"]}
    try:
        with wandb_run(run.recipe, own) as opened:
            if opened:
                opened.summary.update({f"eval/{out.name}/{name}": score for name, score in scores.items()})
    except Exception as error:  # of whatever kind: the scores are on the disk
        note(f"the scores are not on Weights & Biases: {first_line(error)}")


def _refuse_elsewhere(source: str) -> None:
    """Refuses a recipe's relative source that does not exist here."""
    path = Path(source).expanduser()
    if source not in ("wheel", "hub", MIXTURE) and not path.is_absolute() and not path.exists():
        raise UsageError(
            f"source {source!r}: no such file or folder here; the path is relative to where the run was trained:"
            " run this command there, or set --source"
        )
