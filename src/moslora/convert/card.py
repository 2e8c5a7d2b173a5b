"""The model card of a folder to publish, which names no local paths, and the command that uploads it."""

import json
import os
import re
import shlex
from pathlib import Path

from huggingface_hub import ModelCardData

from moslora.base.resolve import BUILTIN, BUILTIN_ON_THE_HUB, written_as_path
from moslora.data.sources import MIXTURE
from moslora.errors import MosloraError
from moslora.recipe import load_recipe
from moslora.recipe.yaml_text import render
from moslora.runs.adapter_folder import AdapterFolder
from moslora.runs.manifest import RECIPE, WEIGHTS
from moslora.runs.run import EVALUATIONS, run_of


def write_card(out: Path, folder: AdapterFolder, *, kind: str, task: str | None, use: str, proof: str) -> None:
    """Writes ``out/README.md``.

    ``kind`` opens its first sentence, ``task`` is the one whose mixer a task gate was fixed at, ``use`` is Python and
    ``proof`` what was measured.
    """
    recipe = folder.recipe
    name, revision = recipe.model.name, recipe.model.revision
    data = ModelCardData(
        base_model=None if _is_local(name) else public_name(name),
        library_name="peft" if (out / "adapter_config.json").exists() else "transformers",
        tags=["lora", "moslora"],
    )
    at = f" at revision `{revision}`" if revision else ""
    if name == BUILTIN:
        at = " (its Q4_1 quantisation, dequantised)"
    at_task = f"; its gate fixed at task `{task}`" if task else ""
    card = f"""---
{data}
---
# {recipe.name}

{kind} of `{public_name(name)}`{at}, fine-tuned with ΔW = s · B · M · A ({recipe.adapter.summary()}{at_task}).

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
    """The command that uploads ``out``, made from ``adapter``, and what to change first if it names a local base."""
    name = load_recipe(adapter / RECIPE, written=True).name
    allowed = "-".join(re.findall(r"\w+(?:\.\w+)*", name, re.ASCII)) or "NAME"
    command = f"hf upload OWNER/{allowed} {shlex.quote(str(out))} --private"
    config = out / "adapter_config.json"
    if config.exists() and _is_local(json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]):
        return f"to upload it, change base_model_name_or_path in {config} to the base's hub id, then: {command}"
    return f"to upload it: {command}"


def public_name(base: str) -> str:
    """A base's hub id; of a local folder only the last part of its path."""
    return BUILTIN_ON_THE_HUB if base == BUILTIN else _last_part(base) if _is_local(base) else base


def _is_local(base: str) -> bool:
    return base != BUILTIN and (os.path.isdir(os.path.expanduser(base)) or written_as_path(base))


def _public_source(source: str) -> str:
    return source if source in ("wheel", "hub", MIXTURE) else _last_part(source)


def _last_part(path: str) -> str:
    return f"./{Path(os.path.expanduser(path)).resolve().name}"


def _training(folder: AdapterFolder) -> str:
    """How the adapter was trained: facts, and the recipe without local paths."""
    manifest, recipe = folder.manifest, folder.recipe
    if imported := manifest.get("imported"):
        files = ", ".join(f"`{name}` (sha256 `{digest}`)" for name, digest in imported["sha256"].items())
        return f"Imported from {imported['format']}'s format: {files}. How it was trained is not recorded there."
    rows = f"{manifest['trained_rows']:,} rows from `{_public_source(recipe.data.source)}`"
    facts = (
        f"{manifest['step']:,} steps by moslora {manifest['moslora']}",
        f"{rows}, sha256 `{manifest['data']['sha256']}`",
        *manifest["data"]["notes"],
    )
    values = recipe.model_dump(mode="json")
    if _is_local(recipe.model.name):
        values["model"]["name"] = _last_part(recipe.model.name)
    for section in (values["data"], values["evaluation"]):
        section["source"] = section["source"] and _public_source(section["source"])
    for task in values["tasks"].values():
        if task["hub"] is None:
            task |= {split: _last_part(task[split]) for split in ("train", "test") if task[split]}
    return "".join(f"- {fact}\n" for fact in facts) + f"\n```yaml\n{render(values).rstrip()}\n```"


def _evaluation(folder: AdapterFolder) -> str:
    """The results of this adapter, not of the run's other checkpoints or its base."""
    lines = []
    for path in sorted(run_of(folder.path).path.glob(f"{EVALUATIONS}/*/results.json")):
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            settings, facts = results["settings"], results["settings"]["metadata"]
            if facts.get("adapter") != folder.manifest["sha256"][WEIGHTS]:
                continue
            metric = settings["primary"]
            over = f" on the {facts['quantization']} base" if facts.get("quantization") else ""
            scores = {**results["tasks"], "macro average": results["macro"]}
            lines.append(
                f"- Protocol `{settings['protocol']}`, format `{settings['format']}`, {settings['dtype']}{over},"
                f" questions from `{_public_source(facts['source'])}`, {metric.replace('_', ' ')}: "
                + ", ".join(f"{task} {score[metric]:.1%} of {score['n']:,}" for task, score in scores.items())
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MosloraError(f"{path}: not an evaluation's results ({error!r}); remove its folder") from None
    return "\n".join(lines) or "Not evaluated yet (`moslora eval`)."
