"""The model card of a folder to publish, which names no local paths, and the command that uploads it."""

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.base.resolve import BUILTIN, BUILTIN_ON_THE_HUB, looks_like_path
from moslora.convert import card_prompts, card_scores
from moslora.recipe import Recipe, load_recipe
from moslora.recipe.yaml_text import render
from moslora.runs.absolute_paths import local_files
from moslora.runs.adapter_folder import AdapterFolder
from moslora.runs.best import ending
from moslora.runs.evaluation_defaults import EVALUATION_DEFAULTS
from moslora.runs.lineage import predecessor_of
from moslora.runs.manifest import RECIPE
from moslora.runs.origin import Origin

CARD = "README.md"

THIS_FOLDER = "this folder, or its id on the hub"


@dataclass(frozen=True)
class Made:
    """What a card says of how its folder was made, and of how it is used."""

    kind: str  # opens its first sentence
    scored: str  # what its scores were measured on
    use: str  # Python
    proof: str  # what was measured of the folder itself
    origin: Origin  # what it was made of
    task: str | None = None  # whose mixer a task gate was fixed at


def write_card(
    out: Path, folder: AdapterFolder, made: Made, *, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Writes ``out/README.md``. ``tokenizer``: for the prompt, where the format is the tokenizer's own."""
    recipe = folder.recipe
    base = public_name(recipe.model.name)
    at = ""
    if recipe.model.name == BUILTIN:
        at = " (its Q4_1 quantisation, dequantised)"
    elif recipe.model.revision:
        at = f" at revision `{recipe.model.revision}`"
    method = recipe.adapter.summary()
    if made.task:
        method += f"; its gate fixed at task `{made.task}`"
    card = f"""---
{_metadata(out, base_name=recipe.model.name, lora=not recipe.adapter.needs_peft)}
---
# {recipe.name}

{made.kind} of `{base}`{at}, fine-tuned with {recipe.adapter.equation} ({method}).
No licence is set here: the terms of `{base}` apply to what is made of it.

```python
{made.use}
```

## Prompt

{card_prompts.section(recipe, tokenizer, tasks=tasks_of(folder.manifest, recipe, made.task))}

With moslora, `moslora ask` and `moslora eval` ask so by themselves.

## Training

{_training(folder.manifest, recipe, made.origin)}

## Evaluation

{card_scores.section(folder.run, folder.manifest, made.scored, task=made.task)}

## Check of this folder

{made.proof}
"""
    (out / CARD).write_text(card, encoding="utf-8")


def _metadata(out: Path, *, base_name: str, lora: bool) -> ModelCardData:
    """What the hub reads of a card."""
    base = None
    if not _is_local(base_name):
        base = public_name(base_name)
    library = "transformers"
    if (out / "adapter_config.json").exists():
        library = "peft"
    tags = ["moslora"]
    if lora:
        tags.append("lora")
    return ModelCardData(base_model=base, library_name=library, tags=tags)


def tasks_of(manifest: Mapping[str, Any], recipe: Recipe, task: str | None) -> Sequence[str]:
    """The tasks that the adapter is for: those of its training, or if they are not recorded its recipe's; ``task``
    alone where a gate was fixed at it."""
    if task is not None:
        return [task]
    drawn = manifest.get("data", {}).get("tasks")
    if drawn:
        return list(drawn)
    return [entry.name for entry in recipe.questions.tasks]


def how_to_upload(out: Path, adapter: Path) -> str:
    """The command that uploads ``out``, made from ``adapter``, and what to change first if it names a local base."""
    recipe = load_recipe(adapter / RECIPE, written=True)
    allowed = "-".join(re.findall(r"\w+(?:\.\w+)*", recipe.name, re.ASCII)) or "NAME"
    command = f"hf upload OWNER/{allowed} {shlex.quote(str(out))} --private"
    if any(local_files(recipe.model_dump())):  # then it names the folders of this machine
        command += f" --exclude {EVALUATION_DEFAULTS}"
    config = out / "adapter_config.json"
    if config.exists():
        base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
        if _is_local(base):
            return f"to upload it, change base_model_name_or_path in {config} to the base's hub id, then: {command}"
    return f"to upload it: {command}"


def public_name(base: str) -> str:
    """A base's hub id; of a local folder only the last part of its path."""
    if base == BUILTIN:
        return BUILTIN_ON_THE_HUB
    if _is_local(base):
        return card_scores.last_part(base)
    return base


def base_in_code(base: str) -> str:
    """The argument of ``from_pretrained`` for a base: its hub id, or a place to put its path into."""
    if _is_local(base):
        name = card_scores.last_part(base).removeprefix("./")
        return f'"path/to/{name}"'
    return f'"{public_name(base)}"'


def _is_local(base: str) -> bool:
    """Whether a base is named by a path of this machine."""
    return base != BUILTIN and (os.path.isdir(os.path.expanduser(base)) or looks_like_path(base))


def _training(manifest: Mapping[str, Any], recipe: Recipe, origin: Origin) -> str:
    """How the adapter was trained: facts, and the recipe without local paths."""
    if "imported" in manifest:
        imported = manifest["imported"]
        files = ", ".join(f"`{name}` (sha256 `{digest}`)" for name, digest in imported["sha256"].items())
        return f"Imported from {imported['format']}'s format: {files}. How and on what it was trained is not recorded."
    if "trained_rows" not in manifest:
        return "Trained by a program of its own (`moslora.save`), which recorded no more."
    facts = []
    if origin.unfinished:
        facts.append(f"unfinished: {origin}")
    drawn = manifest["data"]["tasks"]  # up to this step
    facts.append(
        f"{manifest['step']:,} steps by moslora {manifest['moslora']}: {sum(drawn.values()):,} rows, repeats included,"
        f" of {manifest['trained_rows']:,} (sha256 `{manifest['data']['sha256']}`)"
    )
    predecessor = predecessor_of(manifest)
    if predecessor is not None:
        facts.append(f"continued from {predecessor}")
    facts += ending(manifest, recipe.training)
    facts += [f"{task}: {n:,} rows from {card_scores.origin(task, recipe.data.source)}" for task, n in drawn.items()]
    facts += manifest["data"]["notes"]
    values = recipe.model_dump(mode="json")
    if _is_local(recipe.model.name):
        values["model"]["name"] = card_scores.last_part(recipe.model.name)
    for section, key in local_files(values):
        section[key] = card_scores.last_part(section[key])
    if recipe.adapter.continue_from is not None:
        values["adapter"]["continue_from"] = card_scores.last_part(recipe.adapter.continue_from)
    listed = "".join(f"- {fact}\n" for fact in facts)
    return f"{listed}\n```yaml\n{render(values).rstrip()}\n```"
