"""Import of an adapter that another program trained, as a run that is checked to compute the same."""

import re
import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from moslora.adapters import AdapterLinear
from moslora.base.adapted import with_adapters
from moslora.base.identity import fingerprint, packages
from moslora.base.load import load_tokenizer, read_base
from moslora.base.resolve import BUILTIN, BUILTIN_ON_THE_HUB, locate
from moslora.base.shapes import meta_model
from moslora.choices import DType
from moslora.console import note
from moslora.convert.proof import log_probabilities
from moslora.data.encode import Encoder, encoding
from moslora.errors import MosloraError, UsageError
from moslora.files import new_folder, sha256
from moslora.prompts.protocols import DEFAULT_PROTOCOL
from moslora.recipe import Recipe
from moslora.runs.adapted_model import save_adapter, with_adapters_of
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.evaluation_defaults import read_evaluation_defaults
from moslora.runs.manifest import WEIGHTS
from moslora.runs.origin import Origin, read_origin
from moslora.runs.peft_adapter import OURS, Layers, LoraSettings, own_section, own_state, read_layers, read_settings
from moslora.runs.peft_files import adapter_files
from moslora.runs.run import Run
from moslora.version import __version__

TOLERANCE = 1e-5
"""Largest accepted max |Δ log p| / max |log p|. Run and source differ only in the order of float32 sums."""


def import_adapter(
    source: Path, *, out: Path, base: str | None = None, dtype: DType = "bfloat16", trust_remote_code: bool = False
) -> str:
    """Write a LoRA adapter of PEFT or of the MoSLoRA repository as a run, and check what was written.

    ``base`` replaces the model that the settings name, and ``dtype`` goes into the run's recipe. The check compares
    with the source's equations on a few prompts, in float32, over one base: 4 bytes of memory a parameter.

    Returns:
        A line with max |Δ log p| / max |log p| between run and source, and between base and source.

    Raises:
        UsageError: moslora does not support the adapter; one line for each fault.
        MosloraError: a file cannot be read, or the run computes something else; nothing is written.
    """
    config, weights = adapter_files(source)
    settings = read_settings(config)
    layers = read_layers(weights, settings)
    origin = read_origin(source)
    model = {
        "name": base or _base_of(config, settings, origin),
        "revision": None if base else settings.revision,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
    }
    recipe = _recipe(source.resolve(), settings, model=model, layers=list(layers))
    try:
        locate(recipe.model.name, revision=recipe.model.revision)
    except MosloraError as fault:
        another = shlex.join(["moslora", "import", str(source), "--base", "MODEL"])
        raise type(fault)(f"{fault}; over another base: {another}") from None
    imported = {
        "format": "MoSLoRA" if settings.official else "PEFT",
        "sha256": {path.name: sha256(path) for path in (config, weights)},
    }
    with new_folder(out) as scratch:
        _refuse_misfits(recipe, layers, weights)
        base_model = read_base(recipe.model.model_copy(update={"dtype": "float32"}))
        if origin and origin.fingerprint != fingerprint(recipe.model.name, revision=recipe.model.revision):
            # The import is as the source says, and not as the run was.
            note(f"{source} was exported from {origin.base}; {recipe.model.name} has other weights or another config")
        tokenizer = load_tokenizer(recipe.model)
        of_base = log_probabilities(base_model, tokenizer)
        with ExitStack() as hooks:
            for name, parts in layers.items():
                hook = base_model.get_submodule(name).register_forward_hook(partial(_add, parts, settings.scale))
                hooks.callback(hook.remove)
            of_source = log_probabilities(base_model, tokenizer)
        run = Run(scratch)
        run.begin(recipe, {"imported": imported, "versions": {"moslora": __version__}})
        encoded_by = encoding(Encoder(tokenizer, max_length=None), recipe.data.format)
        facts = {"imported": imported, "encoding": encoded_by, "packages": packages(quantized=False)}
        save_adapter(run.result, {WEIGHTS: own_state(layers)}, recipe, facts=facts)
        folder = open_adapter(run.result, trust_remote_code=trust_remote_code)
        of_run = log_probabilities(with_adapters_of(folder, base_model), tokenizer)
        error = _distance(of_run, of_source)
        effect = _distance(of_base, of_source)
        said = (
            f"{len(layers)} layers imported; in float32 log p differs from the source's equations by {error:.2g} of the"
            f" largest, and the adapter itself moves it by {effect:.2g}"
        )
        if not error <= TOLERANCE:
            raise MosloraError(f"{said}: above the tolerance of {TOLERANCE:g}; nothing was written")
    if not effect:
        said += "; WARNING: the adapter changes nothing; was it trained?"
    if read_evaluation_defaults(source) is None and not settings.official:
        said += (
            f"\nthe prompt that it was trained with is not known: moslora eval asks by protocol {DEFAULT_PROTOCOL};"
            " compare its scores with those by --protocol cloze or --format chat"
        )
    return said


def _distance(log_p: Tensor, expected: Tensor) -> float:
    """max |log_p − expected| / max |expected|; both are log-probabilities ``(tokens,)``."""
    return float((log_p - expected).abs().max() / expected.abs().max())


def _base_of(config: Path, settings: LoraSettings, origin: Origin | None) -> str:
    """Base that the ``settings`` in ``config`` name.

    An export over the built-in base names the model on the hub, whose weights differ; its ``origin`` has the right one.
    """
    named = settings.base_model_name_or_path
    if not named:
        raise UsageError(f"{config}: names no base model; set --base")
    if named == BUILTIN_ON_THE_HUB and origin and origin.base == BUILTIN:
        return BUILTIN
    return named


def _recipe(source: Path, settings: LoraSettings, *, model: dict[str, Any], layers: list[str]) -> Recipe:
    """Recipe that rebuilds the adapter of ``layers``, with the evaluation settings of ``source`` if it is an export."""
    # The wheel's questions need no hub.
    defaults: dict[str, Any] = {"evaluation": {"source": "wheel"}}
    if settings.official:
        defaults["data"] = {"format": "llm-adapters"}
    exported = read_evaluation_defaults(source)
    if exported is not None:
        defaults |= exported.model_dump(include={"data", "evaluation", "tasks"})
    adapter = own_section(settings, layers)
    name = re.sub(r"[^\w.-]", "-", source.name).lstrip(".-") or "imported"
    return Recipe.model_validate({**defaults, "name": name, "model": model, "adapter": adapter})


def _refuse_misfits(recipe: Recipe, layers: Layers, weights: Path) -> None:
    """Refuse an adapter that does not fit its base, before the base is loaded."""
    try:
        model = meta_model(recipe.model)
        with_adapters(model, recipe, state=own_state(layers))
        if isinstance(model.get_output_embeddings(), AdapterLinear):
            raise ValueError("adapts the output layer, which moslora does not support")
    except ValueError as misfits:
        raise UsageError("\n".join(f"{weights}: {line}" for line in str(misfits).splitlines())) from None


def _add(
    parts: Mapping[str, Tensor], scale: float, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    """Add s · lora_B(lora_AB(lora_A(x))) to a layer's ``output`` ``(…, out)``; x is ``inputs[0]`` ``(…, in)``.

    ``lora_AB`` is the mixer of the MoSLoRA repository's PEFT; plain LoRA has none.
    """
    x = inputs[0]
    for part in OURS:
        if part in parts:
            x = F.linear(x, parts[part])
    return output + scale * x
