"""Makes a run of an adapter that another program trained, and checks that it computes the same."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

import moslora
from moslora.adapters import AdapterLinear, inject
from moslora.base.load import load_base, load_tokenizer
from moslora.base.shapes import meta_model
from moslora.choices import DType
from moslora.convert.peft_adapter import PeftAdapter, read_adapter
from moslora.convert.verify import LogProbabilities, log_probabilities
from moslora.errors import MosloraError, UsageError
from moslora.files import new_folder, sha256, write_json, write_text, writing
from moslora.recipe import Recipe
from moslora.runs.adapter_folder import load_adapted, open_adapter, save_adapter
from moslora.runs.manifest import RECIPE
from moslora.runs.run import RESULT, RUN

Layers = Mapping[str, Mapping[str, Tensor]]

OURS = {"A": "lora_a", "AB": "mixer.weight", "B": "lora_b"}
"""The source's weights, in the order in which they are applied, and their names here."""

TOLERANCE = 1e-5
"""Largest accepted :attr:`ImportProof.error`: the two sides differ only in the order of float32 sums."""


@dataclass(frozen=True)
class ImportProof:
    """An imported adapter against its source's equations, in float32 over :data:`moslora.convert.verify.PROMPTS`.

    Attributes:
        layers: adapted layers.
        error: max |Δ log p| / max |log p|.
        effect: the same between the base and the source: what the adapter does.
    """

    layers: int
    error: float
    effect: float

    def __str__(self) -> str:
        return (
            f"{self.layers} layers imported; log p differs from the source's equations in float32 by"
            f" {self.error:.2g} of the largest, the adapter itself moves it by {self.effect:.2g}"
            + ("" if self.effect else "; WARNING: the adapter changes nothing; was it trained?")
        )


def import_adapter(
    source: Path, *, out: Path, base: str | None = None, dtype: DType = "bfloat16", trust_remote_code: bool = False
) -> ImportProof:
    """Writes a LoRA adapter of PEFT or of the MoSLoRA repository as a run, and checks what was written.

    ``base`` replaces the model that the settings name, and ``dtype`` goes into the run's recipe. The check loads the
    base in float32: 4 bytes of memory a parameter, one model at a time.

    Raises:
        UsageError: an adapter that moslora does not support; one line for each fault.
        MosloraError: a file cannot be read, or the run computes something else; nothing is written.
    """
    adapter = read_adapter(source)
    recipe = _recipe(adapter, base, name=source.resolve().name, dtype=dtype, trust_remote_code=trust_remote_code)
    facts = {
        "imported": {
            "format": "MoSLoRA" if adapter.settings.official else "PEFT",
            "sha256": {path.name: sha256(path) for path in (adapter.config_path, adapter.weights_path)},
        }
    }
    with new_folder(out) as scratch:
        model = _load_base(adapter, recipe)
        tokenizer = load_tokenizer(recipe.model)
        without = log_probabilities(model, tokenizer)
        with _applied(model, adapter.layers, scale=adapter.settings.scale):
            expected = log_probabilities(model, tokenizer)
        inject(model, **recipe.adapter_options(), state=_our_state(adapter.layers))
        with writing(out):
            save_adapter(scratch / RESULT, model, recipe, facts=facts)
            del model
            write_text(scratch / RECIPE, recipe.to_yaml())
            write_json(scratch / RUN, {**facts, "versions": {"moslora": moslora.__version__}})
        folder = open_adapter(scratch / RESULT, trust_remote_code=trust_remote_code)
        found = log_probabilities(load_adapted(folder, dtype="float32"), tokenizer)
        proof = ImportProof(
            layers=len(adapter.layers), error=_difference(found, expected), effect=_difference(without, expected)
        )
        if not proof.error <= TOLERANCE:
            raise MosloraError(f"{proof}: above the tolerance of {TOLERANCE:g}; nothing was written")
    return proof


def _recipe(adapter: PeftAdapter, base: str | None, *, name: str, dtype: DType, trust_remote_code: bool) -> Recipe:
    """The recipe that rebuilds ``adapter``, on ``base`` or what its settings name."""
    settings = adapter.settings
    if not (base or settings.base_model_name_or_path):
        raise UsageError(f"{adapter.config_path}: names no base model; set --base")
    whole = any("." in target for target in settings.target_modules)  # ours are last components or a pattern
    return Recipe.model_validate(
        {
            "name": re.sub(r"[^\w.-]", "-", name).lstrip(".-") or "imported",
            "model": {
                "name": base or settings.base_model_name_or_path,
                "revision": None if base else settings.revision,
                "dtype": dtype,
                "trust_remote_code": trust_remote_code,
            },
            "adapter": {
                "rank": settings.r,
                "alpha": settings.lora_alpha,
                "scaling": "rslora" if settings.use_rslora else "lora",
                "dropout": settings.lora_dropout,
                "target_modules": "|".join(map(re.escape, adapter.layers))
                if whole
                else sorted({layer.rpartition(".")[2] for layer in adapter.layers}),
                "mixer": {"kind": "dense" if settings.lora_use_mixer else "identity"},
            },
            "data": {"format": "llm-adapters"} if settings.official else {},
        }
    )


def _load_base(adapter: PeftAdapter, recipe: Recipe) -> PreTrainedModel:
    """The base in float32; a base that the adapter does not fit is refused before its weights are loaded."""
    try:
        shapes = meta_model(recipe.model)
        inject(shapes, **recipe.adapter_options(), state=_our_state(adapter.layers))
        if isinstance(shapes.get_output_embeddings(), AdapterLinear):
            raise ValueError("adapts the output layer, which moslora does not")
        return load_base(recipe.model.model_copy(update={"dtype": "float32"}))
    except ValueError as misfits:
        raise UsageError("\n".join(f"{adapter.weights_path}: {line}" for line in str(misfits).splitlines())) from None
    except MosloraError as error:  # there is no recipe yet in which to change `model.name`
        if (said := str(error)).startswith(key := "model.name = "):
            error.args = (f"{said.removeprefix(key)} (the adapter's base; --base names another)",)
        raise


def _our_state(layers: Layers) -> dict[str, Tensor]:
    """The weights under our names."""
    return {f"{name}.{OURS[part]}": value for name, parts in layers.items() for part, value in parts.items()}


@contextmanager
def _applied(model: nn.Module, layers: Layers, *, scale: float) -> Iterator[None]:
    """Adds the source's own equation, s · lora_B(lora_AB(lora_A(x))), to the base's layers."""

    def add(parts: Mapping[str, Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs[0]
            for part in OURS:
                x = F.linear(x, parts[part]) if part in parts else x
            return output + scale * x

        return hook

    handles = [model.get_submodule(name).register_forward_hook(add(parts)) for name, parts in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _difference(ours: list[LogProbabilities], theirs: list[LogProbabilities]) -> float:
    """max |Δ log p| / max |log p| over all prompts, positions and tokens."""
    differences = [float((one.all - other.all).abs().max()) for one, other in zip(ours, theirs, strict=True)]
    return max(differences) / max(float(one.all.abs().max()) for one in theirs)
