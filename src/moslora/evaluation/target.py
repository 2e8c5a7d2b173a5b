"""What ``moslora eval`` is pointed at, and what it does with it: a run, an adapter folder, or any model."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from transformers import PreTrainedModel

from moslora.base.load import load_base, load_tokenizer
from moslora.base.resolve import fingerprint, locate
from moslora.choices import DType
from moslora.console import note
from moslora.data.sources import MIXTURE, differences, load_examples, tested_on
from moslora.errors import MosloraError, UsageError
from moslora.evaluation.batches import batch_budget
from moslora.evaluation.journal import SETTINGS
from moslora.evaluation.leaks import find_leaks
from moslora.evaluation.request import Options, Request
from moslora.evaluation.results import Results
from moslora.evaluation.run import evaluate
from moslora.files import locked, refuse_used
from moslora.recipe import ModelSection
from moslora.runs.adapter_folder import AdapterFolder, load_adapted, open_adapter
from moslora.runs.find import locate_adapter, run_folder, unfinished


@dataclass(frozen=True)
class Target:
    """A model to be scored, not loaded yet.

    Attributes:
        model: how it is loaded.
        request: how its run asks to be scored.
        runs: where the results of a model go that belongs to no run.
        run: the run it belongs to, also as its base; ``None`` for a model that belongs to none.
        adapter: ``None`` for a base or a model that belongs to no run.
        suffix: of the name of its results' folder, for what is not the run's own result.
    """

    model: ModelSection
    request: Request
    runs: Path
    run: AdapterFolder | None = None
    adapter: AdapterFolder | None = None
    suffix: str = ""

    def asked(self, **options: Unpack[Options]) -> Request:
        """Its own request with the given options over it (`Request.changed`), and a note where nothing says how."""
        if self.run is None and not (options.get("protocol") or options.get("format")):
            note(f"a model does not say how to ask it: protocol {self.request.protocol}, or choose with --protocol")
        return self.request.changed(**options)

    def folder(self, request: Request) -> Path:
        """Where its results go unless told otherwise. A model of the hub is downloaded for the name."""
        if self.run:
            results = run_folder(self.run.path) / "eval"
        else:
            name = Path(os.path.expanduser(self.model.name)).name
            results = self.runs / f"eval-{name}-{fingerprint(self.model.name)[:8]}"
        return results / f"{request.protocol}-{request.format}-{self.model.precision}{self.suffix}"

    def load(self, device: torch.device) -> PreTrainedModel:
        """The model on ``device``, in evaluation mode."""
        with or_out_of_memory(
            f"{self.model.name} in {self.model.precision} does not fit into this GPU's memory; use a recipe with"
            " model.quantization, or the CPU: CUDA_VISIBLE_DEVICES=''"
        ):
            if self.adapter:
                return load_adapted(self.adapter, device=device, dtype=self.model.dtype)
            return load_base(self.model, device=device)

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
    dtype: DType | None = None,
    runs: Path = Path("runs"),
    trust_remote_code: bool = False,
) -> Target:
    """What ``target`` names.

    Args:
        target: a run, an adapter folder, a model folder, or a hub id.
        base: of a run, the base model without the adapter.
        dtype: other than the recipe's.
        runs: where runs are, and where the results of other models go.
        trust_remote_code: whether the model's own Python code may run; no run's recipe can allow it.

    Raises:
        UsageError: it names nothing that can be evaluated.
    """
    changes = {"dtype": dtype} if dtype else {}
    path = Path(os.path.expanduser(target))
    # A misspelt run is still meant as one: it is no hub id.
    is_run = not (path / "config.json").is_file() if os.path.isdir(path) else path.parent == runs
    if not is_run:
        if not os.path.isdir(path) and os.path.isdir(runs / path):
            raise UsageError(f"{target}: no such folder or model; did you mean {runs / path}?")
        model = ModelSection(name=target, trust_remote_code=trust_remote_code).model_copy(update=changes)
        return Target(model, Request(), runs)
    run = open_adapter(locate_adapter(path), trust_remote_code=trust_remote_code)
    recipe = run.recipe
    own = {**recipe.evaluation.model_dump(), "format": recipe.data.format, "source": recipe.evaluation_source}
    checkpoint = f"-{run.path.name}" if run.path.parent.name == "checkpoints" else ""
    if not base and (remark := unfinished(path, run.path, doing="scoring")):
        note(remark)
    return Target(
        recipe.model.model_copy(update=changes),
        Request.model_validate(own),
        runs,
        run=run,
        adapter=None if base else run,
        suffix="-base" if base else checkpoint,
    )


def evaluate_target(target: Target, *, out: Path | None = None, **options: Unpack[Options]) -> tuple[Results, Path]:
    """Scores ``target`` as it asks, with the given options over that.

    Returns:
        The results and the folder they lie in.

    Raises:
        UsageError: the format's answers cannot be read by the protocol, or the folder holds something else.
        MosloraError: the GPU's memory does not suffice.
    """
    request = target.asked(**options)
    source, run = request.source, target.run
    if options.get("source") is None:
        _refuse_elsewhere(source)
    if run and source == run.recipe.data.source and os.path.isfile(os.path.expanduser(source)):
        raise UsageError(f"{source}: one file has no test rows, and this model was trained on it; give --source")
    if not run:  # a misspelt one is noticed before the data's download
        locate(target.model.name, revision=target.model.revision)
    for line in differences(source, [task for task in request.tasks if task == "hellaswag"]):
        note(line)
    trained = target.adapter.trained_tasks() if target.adapter else None
    # A note only: a recipe's evaluation has all eight sets unless told otherwise, and their other scores are good.
    if trained is not None and (others := [task for task in request.tasks if task not in trained]):
        note(
            f"the gate was never trained on {', '.join(others)} (but on {', '.join(trained)}): scored there with"
            " the embedding that was drawn at the start"
        )
    questions = {task: load_examples(task, "test", source=source) for task in request.tasks}
    out = out or target.folder(request)
    if not (out / SETTINGS).exists():
        refuse_used(out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with locked(out):
        model = target.load(device)
        batch_tokens = request.batch_tokens or batch_budget(device)
        with or_out_of_memory(
            f"out of GPU memory with batches of {batch_tokens:,} tokens; use a smaller --batch-tokens"
        ):
            results = evaluate(
                model,
                load_tokenizer(target.model),
                questions,
                request,
                out=out,
                metadata={**target.identity(device), "source": tested_on(source)},
                leaks=find_leaks(run, questions, source=source),
            )
    return results, out


@contextmanager
def or_out_of_memory(line: str) -> Iterator[None]:
    """An error of this ``line`` where the GPU's memory does not suffice."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise MosloraError(line) from None


def _refuse_elsewhere(source: str) -> None:
    """Refuses the relative source of a recipe that is not here, but where its run was trained."""
    path = Path(source).expanduser()
    if source not in ("wheel", "hub", MIXTURE) and not path.is_absolute() and not path.exists():
        raise UsageError(
            f"source {source!r}: no such file or folder here; the recipe means it relative to where the run was"
            " trained: start from there, or give --source"
        )
