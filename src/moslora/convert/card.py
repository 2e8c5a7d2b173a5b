"""The model card of a folder to publish, which names no local paths, and the command that uploads it.

The card has the scores of the adapter, beside its base's where that was asked the same, and the prompts of its tasks
with placeholders for a question's own texts. No row is shown: those of a local file may be nobody's business.
"""

import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
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
from moslora.tasks import INSTRUCTION, TASKS, Example, OpenEnded, Task

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
    """Where ``out`` is, made from ``adapter``, how it is loaded, and the command that uploads it, with what to change
    first if it names a local base."""
    recipe = load_recipe(adapter / RECIPE)
    allowed = "-".join(re.findall(r"\w+(?:\.\w+)*", recipe.name, re.ASCII)) or "NAME"
    command = f"hf upload OWNER/{allowed} {shlex.quote(str(out))} --private"
    if any(local_files(recipe.model_dump())):  # then it names the folders of this machine
        command += f" --exclude {EVALUATION_DEFAULTS}"
    config = out / PEFT_CONFIG
    first = "to upload it"
    if config.exists():
        base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
        if _is_local(base):
            first += f", change base_model_name_or_path in {config} to the base's hub id, then"
    return f"written to {out}\nto load it: the Python in {out / CARD}\n{first}: {command}"


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


def scores_of(folder: AdapterFolder, *, task: str | None) -> list[dict[str, Any]]:
    """The evaluations of this adapter, not of its run's other checkpoints; of ``task`` alone, if it is given.

    Of each its ``conditions``, the ``metric``, the ``sources`` of the questions, and ``rows``: a task, the number of
    its questions, how many of them are among the training rows, and the scores of the adapter and of its base in words,
    the latter empty where the base was not asked the same.
    """
    adapter = folder.manifest["sha256"][WEIGHTS]
    base = folder.manifest["base"]["fingerprint"]
    found = []
    for path in folder.run.evaluations:
        own = _results(path, model=(adapter, base), only=task)
        if own and own.tasks:
            plain = _results(base_of(path), model=(None, base), only=task)
            found.append(_scored(own, plain, folder.recipe))
    return found


def _results(path: Path, *, model: tuple[str | None, str], only: str | None) -> Results | None:
    """Return the results of an evaluation, of the task ``only`` if it is given; ``None`` if it is of another model, or
    not there."""
    if not is_evaluation(path):
        return None
    found = read_evaluation(path).complete
    if found.weights is None or (found.weights.adapter, found.weights.fingerprint) != model:
        return None
    return results_of(found if only is None else found.restricted_to({only}))


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
    """Whether two models were asked the same of ``task``; with another limit in tokens only if neither question was
    cut."""
    one, other = own.tasks[task], plain.tasks[task]
    asked, before = (results.conditions.of_tasks([task]) for results in (own, plain))
    if not (one.truncated or other.truncated):
        asked = replace(asked, max_length=before.max_length)
    return one.n == other.n and not differences(asked, before, Changes.ASKED, Changes.QUESTIONS, Changes.BASE)


def source_of(task: str, *, recipe: Recipe, source: str) -> str:
    """Where the rows of ``task`` are from: ``source`` has those of the eight sets, and the bare instructions."""
    own = recipe.own_tasks.get(task)
    entry = own or TASKS.get(task)
    if entry and entry.hub and (own or source == "hub"):
        return f"`{entry.hub.path}` on the hub"
    if own or (not entry and task != INSTRUCTION):
        return "a set of its own"
    named = named_on_hub(source)
    if named:
        return f"`{named.path}` on the hub"
    public = {"wheel": f"PyPI's `{DATA_WHEEL.name}`", MIXTURE: f"`{MIXTURE_ON_HUB.path}` on the hub"}
    return public.get(source, f"`{last_part(source)}`")


USUAL_OPTIONS = 4
"""Number of options shown where only the rows tell it."""

FREE = "rows without a task"


class Prompt(NamedTuple):
    """How a question is asked."""

    prompts: tuple[str, ...]  # one; of WinoGrande's as cloze, whose prompt has the option in it, one for each
    answers: tuple[str, ...]  # that are scored; none where the model writes
    words: OpenEnded | None = None  # how an answer in words ends and counts


def prompts_of(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None, *, tasks: Sequence[str]
) -> dict[Prompt, list[str]]:
    """Prompt -> the names of those of ``tasks`` that are asked by it; empty where the prompt is a chat template's, and
    the ``tokenizer`` is not at hand."""
    if tokenizer is not None:
        format = make_format(recipe.data.format, tokenizer)
    elif recipe.data.format in FORMATS:
        format = FORMATS[recipe.data.format]
    else:
        return {}
    known = {**TASKS, **recipe.own_tasks}
    found: dict[Prompt, list[str]] = {}
    for name in tasks:
        if name == INSTRUCTION:
            title, example = FREE, Example("card", name, "<instruction>", ("<response>",), 0)
        elif name in known and not known[name].is_text:
            title, example = name, _example(known[name])
        else:
            continue
        found.setdefault(_prompt(format, example), []).append(title)
    return found


def _example(task: Task) -> Example:
    question, context = task.placeholders
    if task.columns.context is None:
        context = None
    options = _options(task.columns.options)
    return Example("card", task.name, question, options, 0, context=context, wording=task.wording)


def _options(listed: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The options themselves where all rows have the same; otherwise placeholders."""
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
