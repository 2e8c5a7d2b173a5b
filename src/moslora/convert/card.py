"""The model card of a folder to publish, which names no local paths, and the command that uploads it."""

import json
import os
import re
import shlex
from functools import partial
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.base.resolve import BUILTIN, BUILTIN_ON_THE_HUB, looks_like_path
from moslora.convert.card_prompts import prompts_of
from moslora.convert.card_scores import scores_of, source_of
from moslora.prompts.formats import FORMATS
from moslora.prompts.protocols import PROTOCOLS
from moslora.recipe import load_recipe
from moslora.runs.absolute_paths import last_part, local_files
from moslora.runs.adapter_folder import AdapterFolder
from moslora.runs.best import ending
from moslora.runs.evaluation_defaults import EVALUATION_DEFAULTS
from moslora.runs.manifest import RECIPE
from moslora.runs.origin import Origin

CARD = "README.md"
PEFT_CONFIG = "adapter_config.json"
TEMPLATE = Path(__file__).with_name("card.md.jinja")


def write_card(
    out: Path,
    folder: AdapterFolder,
    *,
    origin: Origin,
    proof: str,
    task: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Writes ``out/README.md``.

    Args:
        folder: the adapter that ``out`` was made of.
        origin: the same for others.
        proof: what was measured of ``out`` itself.
        task: the one that its gate was fixed at.
        tokenizer: for the prompt, where the format is the tokenizer's own; ``None`` if it is not at hand.
    """
    recipe = folder.recipe
    manifest = folder.manifest
    name = recipe.model.name
    base = public_name(name)
    local = _is_local(name)
    drawn = manifest.get("data", {}).get("tasks", {})  # up to this step
    tasks = [task] if task is not None else list(drawn or [entry.name for entry in recipe.questions.tasks])
    data = ModelCardData(
        base_model=None if local else base,
        library_name="peft" if (out / PEFT_CONFIG).exists() else "transformers",
        pipeline_tag="text-generation",
        tags=["moslora"] if recipe.adapter.needs_peft else ["moslora", "lora"],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        recipe=recipe,
        manifest=manifest,
        origin=origin,
        proof=proof,
        task=task,
        base=base,
        place=f"path/to/{base.removeprefix('./')}" if local else base,
        built_in=name == BUILTIN,
        quoted=partial(json.dumps, ensure_ascii=False),
        protocol=PROTOCOLS[recipe.evaluation.protocol],
        joint=recipe.data.format in FORMATS and FORMATS[recipe.data.format].joint,
        prompts=prompts_of(recipe, tokenizer, tasks=tasks),
        layers=recipe.adapter.target_modules,
        imported=manifest.get("imported"),
        drawn=drawn,
        source=partial(source_of, recipe=recipe, source=recipe.data.source),
        predecessor=folder.predecessor,
        ending=ending(manifest, recipe.training),
        scored=scores_of(folder, task=task),
    )
    card.save(out / CARD)


def how_to_upload(out: Path, adapter: Path) -> str:
    """The command that uploads ``out``, made from ``adapter``, and what to change first if it names a local base."""
    recipe = load_recipe(adapter / RECIPE)
    allowed = "-".join(re.findall(r"\w+(?:\.\w+)*", recipe.name, re.ASCII)) or "NAME"
    command = f"hf upload OWNER/{allowed} {shlex.quote(str(out))} --private"
    if any(local_files(recipe.model_dump())):  # then it names the folders of this machine
        command += f" --exclude {EVALUATION_DEFAULTS}"
    config = out / PEFT_CONFIG
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
        return last_part(base)
    return base


def _is_local(base: str) -> bool:
    """Whether a base is named by a path of this machine."""
    return base != BUILTIN and (os.path.isdir(os.path.expanduser(base)) or looks_like_path(base))
