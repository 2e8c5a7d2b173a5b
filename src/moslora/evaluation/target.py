"""What ``moslora eval`` is pointed at, and what it does with it: a run, an adapter folder, or any model."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from moslora.checkpoint import AdapterFolder, load_adapted, open_adapter
from moslora.console import note
from moslora.data.sources import differences, load_examples, tested_on
from moslora.errors import MosloraError, UsageError
from moslora.evaluation.journal import SETTINGS
from moslora.evaluation.leaks import find_leaks
from moslora.evaluation.results import Results
from moslora.evaluation.run import Progress, evaluate
from moslora.files import locked, refuse_used
from moslora.locate import BUILTIN, fingerprint, locate
from moslora.model import DTYPES, load_base, load_tokenizer
from moslora.prompts import FORMATS
from moslora.recipe import PROTOCOLS, DataSection, EvaluationSection, ModelSection, list_recipes
from moslora.runs import locate_adapter, run_folder, unfinished


@dataclass(frozen=True)
class Target:
    """A model to be scored, not loaded yet.

    Attributes:
        model: how it is loaded.
        data: how its rows were rendered.
        evaluation: how it asks to be scored.
        source: where its questions come from unless told otherwise.
        runs: where runs are.
        suffix: of the names of its results' folders, for what is not the run's own result.
        adapter: ``None`` for a base or a model that is nobody's run.
        run: the run it belongs to, also as its base; ``None`` for a model that is nobody's run.
        remark: what whoever named it should know.
    """

    model: ModelSection
    data: DataSection
    evaluation: EvaluationSection
    source: str
    runs: Path
    suffix: str
    adapter: AdapterFolder | None
    run: AdapterFolder | None
    remark: str = ""

    @property
    def results(self) -> Path:
        """Folder for its results, one folder in it for each way of scoring. A model of the hub is downloaded for it."""
        if self.run:
            return run_folder(self.run.path) / "eval"
        name = Path(os.path.expanduser(self.model.name)).name
        return self.runs / f"eval-{name}-{fingerprint(self.model.name)[:8]}"

    def load(self, device: torch.device) -> PreTrainedModel:
        """The model on ``device``, in evaluation mode.

        Raises:
            MosloraError: it does not fit into the GPU's memory.
        """
        try:
            if self.adapter:
                return load_adapted(self.adapter, device=device, dtype=self.model.dtype)
            return load_base(self.model, device=device)
        except torch.OutOfMemoryError:
            raise MosloraError(
                f"{self.model.name} in {self.model.precision} does not fit into this GPU's memory; take a recipe with"
                " model.quantization, or the CPU: CUDA_VISIBLE_DEVICES=''"
            ) from None

    def identity(self, device: torch.device) -> dict[str, Any]:
        """What tells the model, and the arithmetic of its device, from others."""
        return {
            "base": self.model.name,
            "fingerprint": fingerprint(self.model.name, revision=self.model.revision),
            "adapter": self.adapter.manifest["sha256"]["adapter.safetensors"] if self.adapter else None,
            "attention": self.model.attention,
            "quantization": self.model.quantization,
            **({"double_quantization": self.model.double_quantization} if self.model.quantization == "nf4" else {}),
            "device": device.type,
        }


def open_target(
    target: str,
    *,
    base: bool = False,
    dtype: str | None = None,
    runs: Path = Path("runs"),
    trust_remote_code: bool = False,
) -> Target:
    """What ``target`` names.

    Args:
        target: a run, an adapter folder, a model folder, or a hub id.
        base: of a run, the base model without the adapter.
        dtype: other than the recipe's.
        runs: where runs are, and where the results of other models go.
        trust_remote_code: whether the model's own Python code may be run; no run's recipe can allow it.

    Raises:
        UsageError: it names nothing that can be evaluated.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: none of {', '.join(DTYPES)}")
    changes = {"dtype": dtype} if dtype else {}
    path = Path(os.path.expanduser(target))
    if not _meant_as_run(path, runs):
        if base:
            raise UsageError(f"--base goes with a run; {target} has no adapter to leave out")
        _refuse_no_model(target, path, runs)
        model = ModelSection(name=target, trust_remote_code=trust_remote_code).model_copy(update=changes)
        return Target(
            model=model,
            data=DataSection(),
            evaluation=EvaluationSection(),
            source="wheel",
            runs=runs,
            suffix="",
            adapter=None,
            run=None,
        )
    folder = open_adapter(locate_adapter(path), trust_remote_code=trust_remote_code)
    recipe = folder.recipe
    checkpoint = folder.path.name if folder.path.parent.name == "checkpoints" else ""
    return Target(
        model=recipe.model.model_copy(update=changes),
        data=recipe.data,
        evaluation=recipe.evaluation,
        source=recipe.evaluation_source,
        runs=runs,
        suffix="-base" if base else checkpoint and f"-{checkpoint}",
        adapter=None if base else folder,
        run=folder,
        remark="" if base else unfinished(path, folder.path, doing="scoring"),
    )


def evaluate_target(
    target: Target,
    *,
    tasks: tuple[str, ...] | None = None,
    protocol: str | None = None,
    format: str | None = None,
    limit: int | Literal["all"] | None = None,
    source: str | None = None,
    batch_size: int | None = None,
    beams: int | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Results, Path]:
    """Scores ``target``; whatever is ``None`` is as the target asks for, a ``limit`` of "all" lifts its own.

    Returns:
        The results and the folder they lie in.

    Raises:
        UsageError: the format's answers cannot be read by the protocol, or the folder holds something else.
        MosloraError: the GPU's memory does not suffice.
    """
    section = target.evaluation
    if target.remark:
        note(target.remark)
    if target.run is None and protocol is None and format is None:
        note(f"a model does not say how it is to be asked: protocol {section.protocol}, or give --protocol")
    protocol, format = reading(target, protocol, format)
    if beams is not None and protocol != "generate":
        raise UsageError(f"--beams {beams}: protocol {protocol} generates nothing; leave it out")
    tasks = section.tasks if tasks is None else tasks
    source = target.source if source is None else source
    if source == target.data.source and os.path.isfile(os.path.expanduser(source)):
        raise UsageError(f"{source}: one file has no test rows, and this model was trained on it; give --source")
    if out is not None:
        _refuse_used(out)
    if target.run is None:  # a misspelt one is noticed before the data's download
        locate(target.model.name, revision=target.model.revision)
    for line in differences(source, [task for task in tasks if task == "hellaswag"]):
        note(line)
    trained = target.adapter.trained_tasks() if target.adapter else None
    # A note only: a recipe's evaluation has all eight sets unless told otherwise, and their other scores are good.
    if trained is not None and (others := [task for task in tasks if task not in trained]):
        note(
            f"the gate was never trained on {', '.join(others)} (but on {', '.join(trained)}): scored there with"
            " the embedding that was drawn at the start"
        )
    examples = {task: load_examples(task, "test", source=source) for task in tasks}
    if out is None:
        out = target.results / f"{protocol}-{format}-{target.model.precision}{target.suffix}"
        _refuse_used(out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch_size = batch_size or section.batch_size
    with locked(out):
        model = target.load(device)
        try:
            results = evaluate(
                model,
                load_tokenizer(target.model),
                examples,
                protocol=protocol,
                format=format,
                out=out,
                limit=section.limit if limit is None else None if limit == "all" else limit,
                batch_size=batch_size,
                beams=beams or section.beams,
                max_length=section.max_length,
                metadata={**target.identity(device), "source": tested_on(source)},
                leaks=find_leaks(target.run, examples, source=source),
                progress=progress,
            )
        except torch.OutOfMemoryError:
            raise MosloraError(
                f"out of GPU memory with batches of {batch_size} sequences; take a smaller --batch-size"
            ) from None
    return results, out


def _refuse_used(out: Path) -> None:
    """Refuses a folder that is in use for anything but results."""
    if not (out / SETTINGS).exists():
        refuse_used(out)


def _meant_as_run(path: Path, runs: Path) -> bool:
    """Whether ``path`` is a run, or is meant as one though it is not there: a misspelt run is no hub id."""
    if os.path.isdir(path):
        return not (path / "config.json").is_file()
    return path.parent == runs


def _refuse_no_model(target: str, path: Path, runs: Path) -> None:
    """Refuses what is no folder and cannot be meant as a hub id, before the hub is asked."""
    if os.path.isdir(path) or target == BUILTIN:
        return
    if os.path.isdir(runs / path):
        raise UsageError(f"{target}: no folder and no model; did you mean {runs / path}?")
    if any(target == name for name, _ in list_recipes()):
        raise UsageError(f"{target}: a recipe, and what is scored is a run of one, or a model")
    if any(letter.isspace() for letter in target):
        raise UsageError(f"{target}: no folder, and no hub id has blanks; name a run, a model folder or a hub id")


def reading(target: Target, protocol: str | None, format: str | None) -> tuple[str, str]:
    """Protocol and format that go together, completed from each other and from the target."""
    if format is not None and format not in FORMATS:
        raise UsageError(f"--format {format}: none of {', '.join(FORMATS)}")
    known = sorted({name for names in PROTOCOLS.values() for name in names})
    if protocol is not None and protocol not in known:
        raise UsageError(f"--protocol {protocol}: none of {', '.join(known)}")
    own: str
    if format is None:
        own = target.data.format
        protocol = protocol or target.evaluation.protocol
        return protocol, own if protocol in PROTOCOLS[own] else next(f for f in FORMATS if protocol in PROTOCOLS[f])
    if protocol is None:
        own = target.evaluation.protocol
        return (own if own in PROTOCOLS[format] else PROTOCOLS[format][0]), format
    if protocol not in PROTOCOLS[format]:
        raise UsageError(
            f"--protocol {protocol} cannot read the answers of --format {format};"
            f" take --protocol {' or '.join(PROTOCOLS[format])}"
        )
    return protocol, format
