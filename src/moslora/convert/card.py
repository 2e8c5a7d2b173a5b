"""What others see of a folder that is given away: its model card, without the places of local files, and its upload."""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from moslora.base.resolve import BUILTIN, BUILTIN_ON_THE_HUB, written_as_path
from moslora.data.sources import MIXTURE
from moslora.errors import MosloraError
from moslora.recipe import Recipe, load_recipe
from moslora.runs.adapter_folder import AdapterFolder
from moslora.runs.find import run_folder
from moslora.runs.manifest import RECIPE, WEIGHTS


def write_card(out: Path, folder: AdapterFolder, *, kind: str, use: str, proof: str) -> None:
    """Writes ``out/README.md``.

    Args:
        out: the exported folder.
        folder: the adapter it was made from.
        kind: what it is, for the first sentence.
        use: Python lines that load it.
        proof: what was measured on it.
    """
    name, revision = folder.recipe.model.name, folder.recipe.model.revision
    data = ModelCardData(
        base_model=None if _is_local(name) else public_name(name),
        library_name="peft" if (out / "adapter_config.json").exists() else "transformers",
        tags=["lora", "moslora"],
    )
    at = f" at revision `{revision}`" if revision else ""
    if name == BUILTIN:
        at = " (its Q4_1 quantisation, dequantised)"
    card = f"""---
{data}
---
# {folder.recipe.name}

{kind} of `{public_name(name)}`{at}, fine-tuned with ΔW = s · B · M · A ({folder.recipe.adapter.summary()}).

```python
{use}
```

## Training

{_training(folder)}

## Evaluation

{_evaluation(folder)}

## Check of this folder

{proof}
"""
    (out / "README.md").write_text(card, encoding="utf-8")


def how_to_upload(out: Path, adapter: Path) -> str:
    """The command that uploads ``out``, made from ``adapter``; what to change first, where it names a local base."""
    name = load_recipe(adapter / RECIPE, written=True).name
    allowed = "-".join(re.findall(r"\w+(?:\.\w+)*", name, re.ASCII)) or "NAME"
    command = f"hf upload OWNER/{allowed} {shlex.quote(str(out))} --private"
    config = out / "adapter_config.json"
    if config.exists() and _is_local(json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]):
        return f"to upload it, change base_model_name_or_path in {config} to the base's hub id, then: {command}"
    return f"to upload it: {command}"


def public_name(base: str) -> str:
    """What others know a base by: the hub's name of the built-in model; of a local folder no more than its own name."""
    return BUILTIN_ON_THE_HUB if base == BUILTIN else _own_name(base) if _is_local(base) else base


def _is_local(base: str) -> bool:
    """Whether a base's name is a folder here (`moslora.base.resolve.locate`), or was one."""
    return base != BUILTIN and (os.path.isdir(os.path.expanduser(base)) or written_as_path(base))


def _own_name(path: str) -> str:
    return f"./{Path(os.path.expanduser(path)).resolve().name}"


def _public_source(source: str) -> str:
    return source if source in ("wheel", "hub", MIXTURE) else _own_name(source)


def _public_recipe(recipe: Recipe) -> Recipe:
    model, data, evaluation = recipe.model, recipe.data, recipe.evaluation
    name = _own_name(model.name) if _is_local(model.name) else model.name
    source = evaluation.source and _public_source(evaluation.source)
    return recipe.model_copy(
        update={
            "model": model.model_copy(update={"name": name}),
            "data": data.model_copy(update={"source": _public_source(data.source)}),
            "evaluation": evaluation.model_copy(update={"source": source}),
        }
    )


def _training(folder: AdapterFolder) -> str:
    manifest = folder.manifest
    if imported := manifest.get("imported"):
        files = ", ".join(f"`{name}` (sha256 `{digest}`)" for name, digest in imported["sha256"].items())
        return f"Imported from {imported['format']}'s format: {files}. How it was trained is not recorded there."
    facts = (
        f"{manifest['step']:,} steps by moslora {manifest['moslora']}",
        f"{manifest['trained_rows']:,} rows from `{_public_source(folder.recipe.data.source)}`,"
        f" sha256 `{manifest['data']['sha256']}`",
        *manifest["data"]["notes"],
    )
    recipe = _public_recipe(folder.recipe).to_yaml()
    return "".join(f"- {fact}\n" for fact in facts) + f"\n```yaml\n{recipe.rstrip()}\n```"


def _evaluation(folder: AdapterFolder) -> str:
    """The results of this very adapter, not of the run's other checkpoints or its base."""
    tables = []
    for path in sorted(run_folder(folder.path).glob("eval/*/results.json")):
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            if results["settings"]["metadata"].get("adapter") == folder.manifest["sha256"][WEIGHTS]:
                tables.append(_table(results))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MosloraError(f"{path}: not results ({error!r}); remove its folder, or evaluate again") from None
    return "\n\n".join(tables) or "Not evaluated yet (`moslora eval`)."


def _table(results: dict[str, Any]) -> str:
    settings, metric = results["settings"], results["settings"]["primary"]
    facts = settings["metadata"]
    over = f" on the {facts['quantization']} base" if facts.get("quantization") else ""
    rows = [
        f"| {task} | {score['n']:,} | {score['majority_class']:.1%} | {score[metric]:.1%} |"
        for task, score in {**results["tasks"], "macro average": results["macro"]}.items()
    ]
    head = (
        f"Protocol `{settings['protocol']}`, format `{settings['format']}`, {settings['dtype']}{over}, questions from"
        f" `{_public_source(facts['source'])}`, metric: {metric.replace('_', ' ')}.\n"
    )
    return "\n".join([head, "| task | n | majority class | score |", "|---|---|---|---|", *rows])
