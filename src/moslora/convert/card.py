"""The model card of a folder to publish, which names no local paths, and the command that uploads it."""

import json
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCardData
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.base.resolve import BUILTIN, BUILTIN_ON_THE_HUB, written_as_path
from moslora.convert import asked, scores
from moslora.recipe import PeftSection, load_recipe
from moslora.recipe.yaml_text import render
from moslora.runs.absolute_paths import local_files
from moslora.runs.adapter_folder import AdapterFolder
from moslora.runs.evaluation_defaults import EVALUATION_DEFAULTS
from moslora.runs.manifest import RECIPE
from moslora.runs.origin import origin_of

THIS_FOLDER = "this folder, or its id on the hub"


@dataclass(frozen=True)
class Made:
    """What a card says of how its folder was made, and of how it is used."""

    kind: str  # opens its first sentence
    scored: str  # what its scores were measured on
    use: str  # Python
    proof: str  # what was measured of the folder itself
    task: str | None = None  # whose mixer a task gate was fixed at


def write_card(
    out: Path, folder: AdapterFolder, made: Made, *, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Writes ``out/README.md``. ``tokenizer``: for the prompt, where the format is the tokenizer's own."""
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
    method = recipe.adapter.summary()
    if made.task:
        method += f"; its gate fixed at task `{made.task}`"
    card = f"""---
{data}
---
# {recipe.name}

{made.kind} of `{public_name(name)}`{at}, fine-tuned with {recipe.adapter.equation} ({method}).
No licence is set here: the terms of `{public_name(name)}` apply to what is made of it.

```python
{made.use}
```

## Prompt

{asked.section(folder, tokenizer, task=made.task)}

With moslora, `moslora ask` and `moslora eval` ask so by themselves.

## Training

{_training(folder)}

## Evaluation

{scores.section(folder, made.scored, task=made.task)}

## Check of this folder

{made.proof}
"""
    (out / "README.md").write_text(card, encoding="utf-8")


def how_to_upload(out: Path, adapter: Path) -> str:
    """The command that uploads ``out``, made from ``adapter``, and what to change first if it names a local base."""
    recipe = load_recipe(adapter / RECIPE, written=True)
    allowed = "-".join(re.findall(r"\w+(?:\.\w+)*", recipe.name, re.ASCII)) or "NAME"
    command = f"hf upload OWNER/{allowed} {shlex.quote(str(out))} --private"
    if any(local_files(recipe.model_dump())):  # which name the folders of this machine
        command += f" --exclude {EVALUATION_DEFAULTS}"
    config = out / "adapter_config.json"
    if config.exists() and _is_local(json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]):
        return f"to upload it, change base_model_name_or_path in {config} to the base's hub id, then: {command}"
    return f"to upload it: {command}"


def public_name(base: str) -> str:
    """A base's hub id; of a local folder only the last part of its path."""
    return BUILTIN_ON_THE_HUB if base == BUILTIN else scores.last_part(base) if _is_local(base) else base


def base_in_code(base: str) -> str:
    """The argument of ``from_pretrained`` for a base: its hub id, or a place to put its path into."""
    return f'"path/to/{scores.last_part(base)[2:]}"' if _is_local(base) else f'"{public_name(base)}"'


def _is_local(base: str) -> bool:
    return base != BUILTIN and (os.path.isdir(os.path.expanduser(base)) or written_as_path(base))


def _training(folder: AdapterFolder) -> str:
    """How the adapter was trained: facts, and the recipe without local paths."""
    manifest, recipe = folder.manifest, folder.recipe
    if imported := manifest.get("imported"):
        files = ", ".join(f"`{name}` (sha256 `{digest}`)" for name, digest in imported["sha256"].items())
        return f"Imported from {imported['format']}'s format: {files}. How and on what it was trained is not recorded."
    if "trained_rows" not in manifest:
        return "Trained by a program of its own (`moslora.save`), which recorded no more."
    drawn = manifest["data"]["tasks"]  # up to this step
    facts = [
        f"{manifest['step']:,} steps by moslora {manifest['moslora']}: {sum(drawn.values()):,} rows, repeats included,"
        f" of {manifest['trained_rows']:,} (sha256 `{manifest['data']['sha256']}`)",
        *(f"{task}: {n:,} rows from {scores.origin(task, recipe.data.source)}" for task, n in drawn.items()),
        *manifest["data"]["notes"],
    ]
    made_of = origin_of(folder, base="")
    if made_of.unfinished:
        facts.insert(0, f"unfinished: {made_of}")
    values = recipe.model_dump(mode="json")
    if _is_local(recipe.model.name):
        values["model"]["name"] = scores.last_part(recipe.model.name)
    for section, key in local_files(values):
        section[key] = scores.last_part(section[key])
    return "".join(f"- {fact}\n" for fact in facts) + f"\n```yaml\n{render(values).rstrip()}\n```"
