"""The model card that goes with what is given away: base, method, data, protocol, results."""

import json
import os
from pathlib import Path
from typing import Any

from moslora.checkpoint import AdapterFolder
from moslora.data.sources import MIXTURE
from moslora.errors import MosloraError
from moslora.locate import BUILTIN, BUILTIN_ON_THE_HUB, written_as_path
from moslora.recipe import Recipe
from moslora.runs import run_folder


def write_card(out: Path, folder: AdapterFolder, *, kind: str, use: str, proof: str) -> None:
    """Writes ``out/README.md``.

    Args:
        out: the exported folder.
        folder: the adapter it was made from.
        kind: what it is, for the first sentence.
        use: Python lines that load it.
        proof: what was measured on it.
    """
    recipe = folder.recipe
    base = folder.manifest["base"]
    lines = [
        "---",
        *([] if _is_local(base["name"]) else [f"base_model: {public_name(base['name'])}"]),
        *(["library_name: peft"] if (out / "adapter_config.json").exists() else ["library_name: transformers"]),
        "tags: [lora, moslora]",
        "---",
        f"# {recipe.name}",
        "",
        f"{kind} of `{public_name(base['name'])}`{_revision(base)}, fine-tuned with {_method(recipe)}.",
        "",
        "```python",
        use,
        "```",
        "",
        "## Training",
        "",
        *_training(folder),
        "",
        "## Evaluation",
        "",
        *_evaluation(folder),
        "",
        "## Check of this folder",
        "",
        proof,
        "",
    ]
    (out / "README.md").write_text("\n".join(lines), encoding="utf-8")


def public_name(base: str) -> str:
    """What others know a base by: the hub's name of the built-in model, and of a local folder its last component."""
    return BUILTIN_ON_THE_HUB if base == BUILTIN else _last(base) if _is_local(base) else base


def _is_local(base: str) -> bool:
    """Whether a base's name is a folder here (`moslora.locate.locate`), or was one."""
    return base != BUILTIN and (os.path.isdir(os.path.expanduser(base)) or written_as_path(base))


def _last(path: str) -> str:
    return Path(os.path.expanduser(path)).resolve().name


def _shown_source(source: str) -> str:
    """A source of rows as a recipe may name it; where a local one lies is nobody's business."""
    return source if source in ("wheel", "hub", MIXTURE) else f"./{_last(source)}"


def _shown_recipe(recipe: Recipe) -> str:
    name, data, evaluation = recipe.model.name, recipe.data, recipe.evaluation
    shown = {
        "model": recipe.model.model_copy(update={"name": f"./{_last(name)}" if _is_local(name) else name}),
        "data": data.model_copy(update={"source": _shown_source(data.source)}),
        "evaluation": evaluation.model_copy(update={"source": evaluation.source and _shown_source(evaluation.source)}),
    }
    return recipe.model_copy(update=shown).to_yaml().rstrip()


def _method(recipe: Recipe) -> str:
    return f"ΔW = s · B · M · A ({recipe.adapter.summary()})"


def _revision(base: dict[str, Any]) -> str:
    if base["name"] == BUILTIN:
        return " (its Q4_1 quantisation, dequantised)"
    return f" at revision `{base['revision']}`" if base["revision"] else ""


def _training(folder: AdapterFolder) -> list[str]:
    recipe, manifest = folder.recipe, folder.manifest
    if imported := manifest.get("imported"):
        files = ", ".join(f"`{name}` (sha256 `{digest}`)" for name, digest in imported["sha256"].items())
        return [f"Imported from {imported['format']}'s format: {files}. How it was trained is not recorded there."]
    training = recipe.training
    return [
        f"- data: {', '.join(recipe.data.tasks)} from `{_shown_source(recipe.data.source)}`,"
        f" format `{recipe.data.format}`, {manifest['trained_rows']:,} rows, sha256 `{manifest['data']['sha256']}`",
        *(f"- {note}" for note in manifest["data"]["notes"]),
        f"- {manifest['step']:,} steps of {training.global_batch_size} rows, learning rate"
        f" {training.learning_rate:g} ({training.schedule}), loss on {recipe.data.loss_on}, seed {recipe.seed}",
        f"- moslora {manifest['moslora']}; the whole recipe:",
        "",
        "```yaml",
        _shown_recipe(recipe),
        "```",
    ]


def _evaluation(folder: AdapterFolder) -> list[str]:
    """The results of this very adapter, not of the run's other checkpoints or its base."""
    lines: list[str] = []
    for path in sorted(run_folder(folder.path).glob("eval/*/results.json")):
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            settings = results["settings"]
            adapter = settings["metadata"].get("adapter")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MosloraError(f"{path}: not results ({error!r}); remove its folder, or evaluate again") from None
        if adapter != folder.manifest["sha256"]["adapter.safetensors"]:
            continue
        metric = settings["primary"]
        quantization = settings["metadata"].get("quantization")
        lines += [
            f"Protocol `{settings['protocol']}`, format `{settings['format']}`, {settings['dtype']}"
            f"{f' on the {quantization} base' if quantization else ''}, questions from"
            f" `{_shown_source(settings['metadata']['source'])}`, metric: {metric.replace('_', ' ')}.",
            "",
            "| task | n | majority class | score |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {task} | {score['n']:,} | {100 * score['majority_class']:.1f} % | {100 * score[metric]:.1f} % |"
            for task, score in {**results["tasks"], "macro average": results["macro"]}.items()
        ]
        lines.append("")
    return lines[:-1] or ["Not evaluated yet (`moslora eval`)."]
