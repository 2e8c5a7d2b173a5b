"""What ``moslora eval`` is pointed at, and what it does with it: a run, an adapter folder, or any model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.checkpoint import load_adapted, locate_adapter, open_adapter, run_folder
from moslora.data.sources import differences, load_examples
from moslora.errors import UsageError
from moslora.evaluation.results import Results
from moslora.evaluation.run import Progress, evaluate
from moslora.model import fingerprint, load_base, load_tokenizer
from moslora.prompts import FORMATS
from moslora.recipe import PROTOCOLS, EvaluationSection, ModelSection, Recipe

RANK = ("rank", "label")


@dataclass(frozen=True)
class Target:
    """A model to be scored.

    Attributes:
        model: in evaluation mode.
        tokenizer: its own.
        identity: what tells it from other models, for the results.
        recipe: of the run; ``None`` for a model that is nobody's run.
        folder: where its results go.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, Any]
    recipe: Recipe | None
    folder: Path


def open_target(target: str, *, base: bool = False, dtype: str | None = None, runs: Path = Path("runs")) -> Target:
    """Loads what ``target`` names.

    Args:
        target: a run, an adapter folder, a model folder, or a hub id.
        base: of a run, the base model without the adapter.
        dtype: other than the recipe's.
        runs: where results of models that are no runs go.

    Raises:
        UsageError: it names nothing that can be evaluated.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    path = Path(target).expanduser()
    if not _is_run(path):
        if base:
            raise UsageError(f"--base goes with a run; {target} has no adapter to leave out")
        model = load_base(name=target, dtype=dtype or ModelSection(name=target).dtype, device=device)
        return Target(
            model=model,
            tokenizer=load_tokenizer(target),
            identity={"base": target, "fingerprint": fingerprint(model), "adapter": None},
            recipe=None,
            folder=runs / f"eval-{path.name}",
        )
    folder = open_adapter(locate_adapter(path))
    recipe = folder.recipe
    loading = {"dtype": dtype or recipe.model.dtype}
    if base:
        model = load_base(**{**recipe.model.model_dump(), **loading}, device=device)
    else:
        model = load_adapted(folder, device=device, **loading)
    return Target(
        model=model,
        tokenizer=load_tokenizer(**recipe.model.model_dump(include={"name", "revision", "trust_remote_code"})),
        identity={
            "base": recipe.model.name,
            "fingerprint": folder.manifest["base"]["fingerprint"],
            "adapter": None if base else folder.manifest["sha256"]["adapter.safetensors"],
        },
        recipe=recipe,
        folder=run_folder(folder.path) / "eval",
    )


def evaluate_target(
    target: Target,
    *,
    tasks: tuple[str, ...] | None = None,
    protocol: str | None = None,
    format: str | None = None,
    limit: int | None = None,
    source: str | None = None,
    batch_size: int | None = None,
    beams: int | None = None,
    max_length: int | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> tuple[Results, Path]:
    """Scores ``target``; whatever is ``None`` comes from its recipe, or else has the recipes' default.

    Returns:
        The results and the folder they lie in.

    Raises:
        UsageError: the format's answers cannot be read by the protocol.
    """
    recipe = target.recipe
    section = recipe.evaluation if recipe else EvaluationSection()
    protocol, format = _reading(recipe, protocol, format)
    tasks = tasks or section.tasks
    source = source or (recipe.evaluation_source if recipe else "wheel")
    if recipe and source == recipe.data.source and Path(source).expanduser().is_file():
        raise UsageError(
            f"{source}: one file has no test rows, and this model was trained on it; name others with --source"
        )
    dtype = str(target.model.dtype).removeprefix("torch.")
    out = out or target.folder / "-".join([protocol, format, dtype, *([] if target.identity["adapter"] else ["base"])])
    for line in differences(source, [task for task in tasks if task == "hellaswag"]):
        say(f"note: {line}")
    results = evaluate(
        target.model,
        target.tokenizer,
        {task: load_examples(task, "test", source=source) for task in tasks},
        protocol=protocol,
        format=format,
        out=out,
        limit=limit or section.limit,
        batch_size=batch_size or section.batch_size,
        beams=beams or section.beams,
        max_length=max_length or (recipe.data.max_length if recipe else None),
        metadata={**target.identity, "source": source},
        progress=progress,
    )
    return results, out


def _is_run(path: Path) -> bool:
    """Whether ``path`` was meant as a run: it is a folder, and not that of a model."""
    return path.is_dir() and not (path / "config.json").is_file()


def _reading(recipe: Recipe | None, protocol: str | None, format: str | None) -> tuple[str, str]:
    """Protocol and format that go together, completed from each other and from the recipe."""
    if format is not None and format not in FORMATS:
        raise UsageError(f"--format {format}: none of {', '.join(FORMATS)}")
    if protocol is None and format is None:
        return (recipe.evaluation.protocol, recipe.data.format) if recipe else RANK
    if protocol is None:
        assert format is not None
        own = recipe.evaluation.protocol if recipe else RANK[0]
        return (own if own in PROTOCOLS[format] else PROTOCOLS[format][0]), format
    if format is None:
        own = recipe.data.format if recipe else RANK[1]
        fitting = [own] if protocol in PROTOCOLS[own] else [f for f in FORMATS if protocol in PROTOCOLS[f]]
        if not fitting:
            raise UsageError(f"--protocol {protocol}: none of rank, cloze, generate")
        return protocol, fitting[0]
    if protocol not in PROTOCOLS[format]:
        raise UsageError(
            f"--protocol {protocol} cannot read the answers of --format {format};"
            f" take --protocol {' or '.join(PROTOCOLS[format])}"
        )
    return protocol, format
