"""The model card of a folder to publish, and the command that uploads it.

The card has the scores of the adapter, those of its base if it was asked the same questions, and the prompts of the
tasks with placeholders. It has no local paths and no rows, which may be private.
"""

import json
import os
import re
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCard, ModelCardData
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.base.resolve import BUILTIN, BUILTIN_ON_THE_HUB, looks_like_path
from moslora.data.hub import MIXTURE_ON_HUB
from moslora.data.sources import MIXTURE, named_on_hub
from moslora.download.wheels import DATA_WHEEL
from moslora.prompts.formats import FORMATS, Format, make_format
from moslora.prompts.instructions import wording
from moslora.prompts.protocols import PROTOCOLS
from moslora.recipe import Recipe, load_recipe
from moslora.runs.absolute_paths import last_part, local_files
from moslora.runs.adapter_folder import AdapterFolder
from moslora.runs.best import ending
from moslora.runs.conditions import Changes, differences
from moslora.runs.evaluation import is_evaluation, read_evaluation
from moslora.runs.evaluation_defaults import EVALUATION_DEFAULTS
from moslora.runs.manifest import RECIPE, WEIGHTS
from moslora.runs.origin import Origin
from moslora.runs.results import Results, results_of
from moslora.runs.run import base_of
from moslora.runs.scores import MACRO, Score
from moslora.tasks import INSTRUCTION, TASKS, Example, Hub, OpenEnded, Task

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
    """Write ``out/README.md``.

    Args:
        out: folder to publish.
        folder: adapter that ``out`` was made from.
        origin: public description of that adapter.
        proof: sentence on what was checked of ``out``.
        task: task that the gate was fixed at.
        tokenizer: tokenizer of the base, for a prompt in format ``chat``; ``None`` if it is not available.
    """
    recipe = folder.recipe
    manifest = folder.manifest
    name = recipe.model.name
    base = public_name(name)
    local = _is_local(name)
    revision = recipe.model.revision if local else manifest["base"].get("commit") or recipe.model.revision
    drawn = manifest.get("data", {}).get("tasks", {})  # up to this step
    tasks = [task] if task is not None else list(drawn or [entry.name for entry in recipe.questions.tasks])
    data = ModelCardData(
        base_model=None if local else base,
        library_name="peft" if (out / PEFT_CONFIG).exists() else "transformers",
        pipeline_tag="text-generation",
        tags=["moslora", *recipe.adapter.tags],
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
        revision=revision,
        place=f"path/to/{base.removeprefix('./')}" if local else base,
        built_in=name == BUILTIN,
        quoted=partial(json.dumps, ensure_ascii=False),
        protocol=PROTOCOLS[recipe.evaluation.protocol],
        joint=recipe.data.format in FORMATS and FORMATS[recipe.data.format].joint,
        prompts=prompts_of(recipe, tokenizer, tasks=tasks),
        drawn=drawn,
        source=partial(source_of, recipe=recipe, source=recipe.data.source),
        predecessor=folder.predecessor,
        ending=ending(manifest, recipe.training),
        scored=scores_of(folder, task=task),
    )
    card.save(out / CARD)


def how_to_use(out: Path, adapter: Path) -> str:
    """Lines that say where ``out`` is, how to load it and how to upload it; ``out`` was made from the folder
    ``adapter``."""
    recipe = load_recipe(adapter / RECIPE)
    allowed = "-".join(re.findall(r"\w+(?:\.\w+)*", recipe.name, re.ASCII)) or "NAME"
    command = f"hf upload OWNER/{allowed} {shlex.quote(str(out))} --private"
    sources = [section[key] for section, key in local_files(recipe.model_dump())]
    if any(os.path.isabs(source) for source in sources):  # it names the folders of this machine
        command += f" --exclude {EVALUATION_DEFAULTS}"
    config = out / PEFT_CONFIG
    first = "to upload it"
    if config.exists():
        base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
        if _is_local(base):
            first += f", change base_model_name_or_path in {config} to the base's hub id, then"
    return f"written to {out}\nto load it: the Python in {out / CARD}\n{first}: {command}"


def public_name(base: str) -> str:
    """Hub id of a base, or the last part of a local path."""
    if base == BUILTIN:
        return BUILTIN_ON_THE_HUB
    if _is_local(base):
        return last_part(base)
    return base


def _is_local(base: str) -> bool:
    """Whether a base is named by a local path."""
    return base != BUILTIN and (os.path.isdir(os.path.expanduser(base)) or looks_like_path(base))


def scores_of(folder: AdapterFolder, *, task: str | None) -> list[dict[str, Any]]:
    """Evaluations of this adapter, not of other checkpoints of its run; with ``task``, of that task alone.

    Each has ``conditions``, ``metric``, the ``sources`` of the questions, and ``rows``: task, number of questions,
    number of leaks, and the scores of adapter and base as text. The base's is empty if it was asked other questions.
    """
    adapter = folder.manifest["sha256"][WEIGHTS]
    base = folder.manifest["base"]["fingerprint"]
    scored = []
    for path in folder.run.evaluations:
        own = _results(path, model=(adapter, base), only=task)
        if own and own.tasks:
            plain = _results(base_of(path), model=(None, base), only=task)
            scored.append(_scored(own, plain, folder.recipe))
    return scored


def _results(path: Path, *, model: tuple[str | None, str], only: str | None) -> Results | None:
    """Results of an evaluation, of the task ``only`` if given; ``None`` if it is missing or of another model."""
    if not is_evaluation(path):
        return None
    evaluation = read_evaluation(path).complete
    answered_by = evaluation.weights
    if answered_by is None or (answered_by.adapter, answered_by.fingerprint) != model:
        return None
    return results_of(evaluation if only is None else evaluation.restricted_to({only}))


def _scored(own: Results, plain: Results | None, recipe: Recipe) -> dict[str, Any]:
    conditions = own.conditions
    sources = dict.fromkeys(source_of(task, recipe=recipe, source=conditions.source) for task in own.tasks)
    leaks = own.without_leaks.leaks if own.without_leaks else {}
    scores = dict(own.tasks)
    base: dict[str, Score] = {}
    if plain is not None:
        base = {task: score for task, score in plain.tasks.items() if task in scores and _alike(own, plain, task)}
        if plain.macro and base.keys() == scores.keys() == plain.tasks.keys():
            base[MACRO] = plain.macro
    if own.macro and len(scores) > 1:
        scores[MACRO] = own.macro
    rows = []
    for task, score in scores.items():
        beside = str(base[task].main) if task in base else ""
        rows.append((task, score.n, leaks.get(task, 0), str(score.main), beside))
    return {"conditions": conditions, "metric": own.metric, "sources": list(sources), "rows": rows}


def _alike(own: Results, plain: Results, task: str) -> bool:
    """Whether adapter and base were asked the same questions of ``task`` in the same way."""
    conditions, of_base = (results.conditions.of_tasks([task]) for results in (own, plain))
    same_number = own.tasks[task].n == plain.tasks[task].n
    return same_number and not differences(conditions, of_base, Changes.ASKED, Changes.QUESTIONS, Changes.BASE)


def source_of(task: str, *, recipe: Recipe, source: str) -> str:
    """Public name of the source of the rows of ``task``.

    ``source`` is where rows of the eight commonsense sets and rows without a task come from. A user's task names its
    own source.
    """
    own = recipe.own_tasks.get(task)
    entry = own or TASKS.get(task)
    if entry and entry.hub and (own or source == "hub"):
        return _on_hub(entry.hub)
    if own or (not entry and task != INSTRUCTION):
        return "a set of its own"
    named = named_on_hub(source)
    if named:
        return _on_hub(named)
    public = {"wheel": f"PyPI's `{DATA_WHEEL.name}`", MIXTURE: _on_hub(MIXTURE_ON_HUB)}
    return public.get(source, f"`{last_part(source)}`")


def _on_hub(data: Hub) -> str:
    """Public name of a data set of the hub, with its revision if one is named."""
    return f"`{data.path}` on the hub" + (f" at revision `{data.revision}`" if data.revision else "")


USUAL_OPTIONS = 4
"""Number of options shown if it depends on the row."""

FREE = "rows without a task"


class Prompt(NamedTuple):
    """Prompt of a question, and the answers that are scored."""

    prompts: tuple[str, ...]  # one; of WinoGrande's as cloze, whose prompt has the option in it, one for each
    answers: tuple[str, ...]  # that are scored; none where the model writes
    words: OpenEnded | None = None  # how an answer in words ends and counts


def prompts_of(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None, *, tasks: Sequence[str]
) -> dict[Prompt, list[str]]:
    """Prompt -> names of the ``tasks`` that use it; empty for format ``chat`` without a ``tokenizer``."""
    if tokenizer is not None:
        format = make_format(recipe.data.format, tokenizer)
    elif recipe.data.format in FORMATS:
        format = FORMATS[recipe.data.format]
    else:
        return {}
    known = {**TASKS, **recipe.own_tasks}
    prompts: dict[Prompt, list[str]] = {}
    for name in tasks:
        if name == INSTRUCTION:
            title, example = FREE, Example("card", name, "<instruction>", ("<response>",), 0)
        elif name in known and not known[name].is_text:
            title, example = name, _example(known[name])
        else:
            continue
        prompts.setdefault(_prompt(format, example), []).append(title)
    return prompts


def _example(task: Task) -> Example:
    question, context = task.placeholders
    if task.columns.context is None:
        context = None
    options = _options(task.columns.options)
    return Example("card", task.name, question, options, 0, context=context, wording=task.wording)


def _options(listed: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Options of the card's example prompt: those that all rows have, or placeholders if they differ."""
    if listed is None:
        return ("<answer>",)
    if isinstance(listed, str):
        count = listed.count(",") + 1 if listed.startswith("[") else USUAL_OPTIONS
        listed = ("{{ of the row }}",) * count
    return tuple(f"<option {number}>" if "{{" in text else text for number, text in enumerate(listed, start=1))


def _prompt(format: Format, example: Example) -> Prompt:
    options = format.options(example)
    prompts = tuple(dict.fromkeys(option.prompt for option in options))
    words = wording(example)
    answers = tuple(dict.fromkeys(option.answer for option in options)) if words.has_options else ()
    return Prompt(prompts, answers, words if isinstance(words, OpenEnded) else None)
