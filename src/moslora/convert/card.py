"""The model card of a folder to publish, which names no local paths, and the command that uploads it."""

import json
import os
import re
import shlex
from pathlib import Path

from huggingface_hub import ModelCardData

from moslora.base.resolve import BUILTIN, BUILTIN_ON_THE_HUB, written_as_path
from moslora.data.hub import MIXTURE as MIXED
from moslora.data.sources import MIXTURE
from moslora.download.wheels import DATA_WHEEL
from moslora.errors import MosloraError
from moslora.recipe import PeftSection, load_recipe
from moslora.recipe.yaml_text import render
from moslora.runs.adapter_folder import AdapterFolder
from moslora.runs.asking import ASKING, local_files
from moslora.runs.manifest import RECIPE, WEIGHTS
from moslora.runs.run import EVALUATIONS, run_of
from moslora.tasks import INSTRUCTION, TASKS


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
        tags=["moslora", *([] if isinstance(recipe.adapter, PeftSection) else ["lora"])],
    )
    at = f" at revision `{revision}`" if revision else ""
    if name == BUILTIN:
        at = " (its Q4_1 quantisation, dequantised)"
    at_task = f"; its gate fixed at task `{task}`" if task else ""
    card = f"""---
{data}
---
# {recipe.name}

{kind} of `{public_name(name)}`{at}, fine-tuned with {recipe.adapter.equation} ({recipe.adapter.summary()}{at_task}).
No licence is set here: the terms of `{public_name(name)}` apply to what is made of it.

```python
{use}
```

## Training

{_training(folder)}

## Evaluation

{_evaluation(folder, task)}

## Check of this folder

{proof}
"""
    (out / "README.md").write_text(card, encoding="utf-8")


def how_to_upload(out: Path, adapter: Path) -> str:
    """The command that uploads ``out``, made from ``adapter``, and what to change first if it names a local base."""
    recipe = load_recipe(adapter / RECIPE, written=True)
    allowed = "-".join(re.findall(r"\w+(?:\.\w+)*", recipe.name, re.ASCII)) or "NAME"
    private = any(local_files(recipe.model_dump()))  # which name the folders of this machine
    command = f"hf upload OWNER/{allowed} {shlex.quote(str(out))} --private" + f" --exclude {ASKING}" * private
    config = out / "adapter_config.json"
    if config.exists() and _is_local(json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]):
        return f"to upload it, change base_model_name_or_path in {config} to the base's hub id, then: {command}"
    return f"to upload it: {command}"


def public_name(base: str) -> str:
    """A base's hub id; of a local folder only the last part of its path."""
    return BUILTIN_ON_THE_HUB if base == BUILTIN else _last_part(base) if _is_local(base) else base


def _is_local(base: str) -> bool:
    return base != BUILTIN and (os.path.isdir(os.path.expanduser(base)) or written_as_path(base))


def _last_part(path: str) -> str:
    return f"./{Path(os.path.expanduser(path)).resolve().name}"


def _origin(task: str, source: str) -> str:
    """Where the rows of ``task`` are from: ``source`` has those of the eight sets, and the bare instructions."""
    entry = TASKS.get(task)
    if not entry and task != INSTRUCTION:
        return "its own source, named in the recipe below"
    if entry and entry.hub and source == "hub":
        return f"`{entry.hub.path}` on the hub"
    public = {"wheel": f"PyPI's `{DATA_WHEEL.name}`", MIXTURE: f"`{MIXED.path}` on the hub"}
    return public.get(source, f"`{_last_part(source)}`")


def _training(folder: AdapterFolder) -> str:
    """How the adapter was trained: facts, and the recipe without local paths."""
    manifest, recipe = folder.manifest, folder.recipe
    if imported := manifest.get("imported"):
        files = ", ".join(f"`{name}` (sha256 `{digest}`)" for name, digest in imported["sha256"].items())
        return f"Imported from {imported['format']}'s format: {files}. How and on what it was trained is not recorded."
    if "trained_rows" not in manifest:
        return "Trained by a program of its own (`moslora.save`), which recorded no more."
    drawn = manifest["data"]["tasks"]  # up to this step
    facts = (
        f"{manifest['step']:,} steps by moslora {manifest['moslora']}: {sum(drawn.values()):,} rows, repeats included,"
        f" of {manifest['trained_rows']:,} (sha256 `{manifest['data']['sha256']}`)",
        *(f"{task}: {n:,} rows from {_origin(task, recipe.data.source)}" for task, n in drawn.items()),
        *manifest["data"]["notes"],
    )
    values = recipe.model_dump(mode="json")
    if _is_local(recipe.model.name):
        values["model"]["name"] = _last_part(recipe.model.name)
    for section, key in local_files(values):
        section[key] = _last_part(section[key])
    return "".join(f"- {fact}\n" for fact in facts) + f"\n```yaml\n{render(values).rstrip()}\n```"


def _evaluation(folder: AdapterFolder, only: str | None) -> str:
    """The results of this adapter, not of the run's other checkpoints or its base; of ``only`` one task, if given."""
    lines = []
    made_of = folder.manifest["sha256"][WEIGHTS], folder.manifest["base"]["fingerprint"]
    for path in sorted(run_of(folder.path).path.glob(f"{EVALUATIONS}/*/results.json")):
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            settings, facts = results["settings"], results["settings"]["metadata"]
            scores = {task: score for task, score in results["tasks"].items() if only in (None, task)}
            if made_of != (facts.get("adapter"), facts.get("fingerprint")) or not scores:
                continue
            over = f" on the {facts['quantization']} base" if facts.get("quantization") else ""
            metric, leaks = settings["primary"], (results.get("without_leaks") or {}).get("leaks", {})
            origins = dict.fromkeys(_origin(task, facts["source"]) for task in scores)
            scores |= {"macro average": results["macro"]} if len(scores) > 1 else {}
            said = []
            for name, score in scores.items():
                ends = score.get(metric.replace("accuracy", "interval"))  # none in old files
                interval = f" ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})" if ends else ""
                among = f" ({leaks[name]:,} of them training rows)" if leaks.get(name) else ""
                said.append(f"{name} {100 * score[metric]:.1f}{interval} of {score['n']:,}{among}")
            lines.append(
                f"- Protocol `{settings['protocol']}`, format `{settings['format']}`, {settings['dtype']}{over},"
                f" questions from {', '.join(origins)}, {metric.replace('_', ' ')}: {', '.join(said)}"
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MosloraError(f"{path}: not an evaluation's results ({error!r}); remove its folder") from None
    told = "The adapter over its base, in percent, with 95 % intervals:\n\n" + "\n".join(lines)
    return told if lines else "Not evaluated yet (`moslora eval`)."
