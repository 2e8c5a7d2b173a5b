"""Adapters in the formats of others: written for them, and read from them."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from moslora.adapters import LoraPair, inject
from moslora.card import public_name, write_card
from moslora.checkpoint import load_adapted, open_adapter, save_adapter
from moslora.data.fetch import sha256
from moslora.errors import MosloraError, UsageError, capped
from moslora.files import new_folder, write_json, write_text, writing
from moslora.foreign import CONFIG, Factors, ForeignAdapter, read_adapter
from moslora.llama import meta_model
from moslora.locate import BUILTIN, BUILTIN_ON_THE_HUB
from moslora.manifest import RECIPE
from moslora.model import DTYPES, load_base, load_tokenizer
from moslora.pairs import fixed_task, lora_pairs
from moslora.recipe import ModelSection, Recipe
from moslora.runs import RUN
from moslora.verify import LogProbabilities, log_probabilities

TOLERANCE = 1e-5
"""Largest accepted :attr:`ImportProof.error`; the two sides differ in the order of float32 sums only."""


OTHER_WEIGHTS = (
    " The hub's weights are not the ones it was trained on, their Q4_1 quantisation: the same logits come over the"
    f" folder that `python -c \"from moslora.locate import locate; print(locate('{BUILTIN}'))\"` names."
)
"""Of an export whose base the hub has in another precision only."""


@dataclass(frozen=True)
class ImportProof:
    """An imported adapter against its source's equations, in float32 over :data:`moslora.verify.PROMPTS`.

    Attributes:
        layers: adapted layers.
        error: max |Δ log p| / max |log p|.
        effect: the same between the base alone and the source: what there was to import.
    """

    layers: int
    error: float
    effect: float

    def __str__(self) -> str:
        return (
            f"{self.layers} layers imported; against the source's equations in float32: log p differ by"
            f" {self.error:.2g} of the largest, the adapter itself moves them by {self.effect:.2g}"
            + ("" if self.effect else "; WARNING: it changes nothing, so was it trained?")
        )


def export_peft(
    adapter: Path,
    *,
    out: Path,
    task: str | None = None,
    compact: bool = False,
    trust_remote_code: bool = False,
) -> Path:
    """Writes the adapter as a plain LoRA in PEFT's format, with the mixer folded in: B · (M · A) is the same ΔW.

    Whatever reads PEFT adapters (PEFT, vLLM, converters) reads it; nothing in it tells of a mixer. The rank is M's
    rank_out, r/k for a butterfly, 2r for a PiSSA start (whose part of the base is taken off again), and ``lora_alpha``
    is set so that lora_alpha / r stays the scale s. DoRA's magnitudes are written as PEFT has them.

    Args:
        adapter: an adapter folder.
        out: must not exist yet, or be empty.
        task: the one that a task gate is fixed to.
        compact: leave out rows that are zero, such as AdaLoRA's dropped ones, each layer by itself; the ranks then
            stand in PEFT's ``rank_pattern`` and ``alpha_pattern``, which not every reader knows.
        trust_remote_code: whether the base's own Python code may be run.

    Raises:
        UsageError: ``out`` is in use, the base is not the adapter's, the mixer is no single matrix, or its gate was not
            trained on the task.
    """
    folder = open_adapter(adapter, trust_remote_code=trust_remote_code)
    task = fixed_task(folder, task)
    base = folder.recipe.model.name
    with new_folder(out) as scratch:
        model = load_adapted(folder)
        pairs = lora_pairs(model, task=task)
        if compact:
            pairs = {name: pair.compact() for name, pair in pairs.items()}
        save_file(_peft_tensors(pairs), scratch / "adapter_model.safetensors", metadata={"format": "pt"})
        settings = _peft_settings(pairs, folder.recipe, target_modules=_target_modules(model, list(pairs)))
        write_json(scratch / "adapter_config.json", settings)
        use = (
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
            f'base = AutoModelForCausalLM.from_pretrained("{public_name(base)}")\n'
            f'model = PeftModel.from_pretrained(base, "{out.resolve().name}")'
        )
        proof = "The mixer is folded into `lora_A` exactly (B · (M · A)); the scale is unchanged."
        proof += OTHER_WEIGHTS if base == BUILTIN else ""
        write_card(scratch, folder, kind="A LoRA adapter", use=use, proof=proof)
    return out


def _peft_tensors(pairs: Mapping[str, LoraPair]) -> dict[str, Tensor]:
    tensors = {}
    for name, pair in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = pair.a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = pair.b.contiguous()
        if pair.magnitude is not None:
            tensors[f"base_model.model.{name}.lora_magnitude_vector"] = pair.magnitude
    return tensors


def _peft_settings(pairs: Mapping[str, LoraPair], recipe: Recipe, *, target_modules: list[str]) -> dict[str, Any]:
    """PEFT's ``adapter_config.json``: the largest rank for all layers, and others where layers have their own."""
    first = next(iter(pairs.values()))
    ranks = {name: len(pair.a) for name, pair in pairs.items()}
    rank = max(ranks.values())
    others = {name: own for name, own in ranks.items() if own != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BUILTIN_ON_THE_HUB if recipe.model.name == BUILTIN else recipe.model.name,
        "revision": recipe.model.revision,
        "r": rank,
        "lora_alpha": first.scale * rank,
        "rank_pattern": others,
        "alpha_pattern": {name: first.scale * own for name, own in others.items()},
        "use_dora": first.magnitude is not None,
        "lora_dropout": recipe.adapter.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": target_modules,
    }


def _target_modules(model: nn.Module, adapted: list[str]) -> list[str]:
    """The adapted layers' last name components, which every reader knows, or their whole names if those say more."""
    components = {name.rpartition(".")[2] for name in adapted}
    meant = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in components]
    return sorted(components if len(meant) == len(adapted) else adapted)


def import_adapter(
    source: Path,
    *,
    out: Path,
    base: str | None = None,
    dtype: str = "bfloat16",
    trust_remote_code: bool = False,
) -> ImportProof:
    """Writes a foreign LoRA adapter as a run with an adapter folder, and proves what was written.

    The proof takes the base in float32: 4 bytes of memory a parameter, one model at a time.

    Args:
        source: a folder with ``adapter_config.json`` and the weights (`moslora.foreign`).
        out: the run folder; must not exist yet, or be empty.
        base: the base model, where it is not the one that the settings name.
        dtype: what the run's recipe loads the base in.
        trust_remote_code: whether the base's own Python code may be run.

    Raises:
        UsageError: ``out`` is in use, or the adapter is none that moslora can hold; one line for each fault.
        MosloraError: a file cannot be read, or what was written computes something else; ``out`` is then not written.
    """
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: none of {', '.join(DTYPES)}")
    adapter = read_adapter(source)
    with new_folder(out) as scratch:
        section, meta = _base(adapter, base, trust_remote_code=trust_remote_code)
        layers = adapter.layers()
        recipe = Recipe.model_validate(
            {
                "name": re.sub(r"[^\w.-]", "-", source.resolve().name).lstrip(".-") or "imported",
                "model": {**section.model_dump(), "dtype": dtype},
                "adapter": {
                    "rank": adapter.config["r"],
                    "alpha": adapter.scale * adapter.config["r"],
                    "dropout": float(adapter.config.get("lora_dropout") or 0),
                    "target_modules": _targets_of_inject(meta, list(layers)),
                    "mixer": {"kind": "dense" if adapter.mixed else "identity"},
                },
                "data": {"format": "llm-adapters"} if adapter.official else {},
            }
        )
        with _opening_base(named=base is not None):
            tokenizer = load_tokenizer(recipe.model)
            model = load_base(recipe.model.model_copy(update={"dtype": "float32"}))
        without = log_probabilities(model, tokenizer)
        with _applied(model, layers, scale=adapter.scale):
            expected = log_probabilities(model, tokenizer)
        inject(model, **recipe.adapter.model_dump(), state=_our_state(layers))
        facts = {
            "imported": {
                "format": "MoSLoRA" if adapter.official else "PEFT",
                "sha256": {path.name: sha256(path) for path in (adapter.config_path, adapter.weights_path)},
            }
        }
        with writing(out):
            save_adapter(scratch / "adapter", model, recipe, facts=facts)
            del model
            write_text(scratch / RECIPE, recipe.to_yaml())
            write_json(scratch / RUN, {**facts, "moslora": version("moslora")})
            folder = open_adapter(scratch / "adapter", trust_remote_code=trust_remote_code)
            written = load_adapted(folder, dtype="float32")
            found = log_probabilities(written, tokenizer)
            proof = ImportProof(
                layers=len(layers), error=_difference(found, expected), effect=_difference(without, expected)
            )
            if not proof.error <= TOLERANCE:
                raise MosloraError(f"{proof}: beyond the tolerance of {TOLERANCE:g}; nothing was written")
    return proof


def _base(
    adapter: ForeignAdapter, base: str | None, *, trust_remote_code: bool
) -> tuple[ModelSection, PreTrainedModel]:
    """How ``base``, or what the settings name, is loaded, and its modules on the meta device.

    Raises:
        UsageError: the adapter is none that moslora can hold, or none of this base; one line for each fault.
    """
    faults = adapter.faults()
    named = adapter.base if base is None else {"name": base, "revision": None}
    if not named["name"]:
        raise UsageError(capped([*faults, f"{adapter.config_path}: names no base model; name it with --base"]))
    section = ModelSection.model_validate({**named, "trust_remote_code": trust_remote_code})
    try:
        with _opening_base(named=base is not None):
            meta = meta_model(section)
    except MosloraError as error:
        if not faults:
            raise
        raise UsageError(capped([*faults, str(error)])) from None
    if getattr(meta.config, "quantization_config", None) is not None:
        faults.append(f"{section.name}: its weights are quantised already; name the original with --base ORIGINAL")
    if faults := [*faults, *adapter.faults_on(meta)]:
        raise UsageError(capped(faults))
    return section, meta


@contextmanager
def _opening_base(*, named: bool) -> Iterator[None]:
    """Says what is wrong with the base in terms of ``--base``, as no recipe is there whose ``model.name`` could change.

    Args:
        named: by the user, and not by the settings.
    """
    try:
        yield
    except MosloraError as error:
        said = str(error).removeprefix("model.name = ")
        error.args = (said if named else f"{said} ({CONFIG} names this base; --base names another)",)
        raise


def _our_state(layers: Mapping[str, Factors]) -> dict[str, Tensor]:
    """The factors under the names that they have here."""
    state: dict[str, Tensor] = {}
    for name, (a, m, b) in layers.items():
        state |= {f"{name}.lora_a": a, f"{name}.lora_b": b}
        if m is not None:
            state[f"{name}.mixer.weight"] = m
    return state


@contextmanager
def _applied(model: nn.Module, layers: Mapping[str, Factors], *, scale: float) -> Iterator[None]:
    """Adds the source's own equation, s · lora_B(lora_AB(lora_A(x))), to the base's layers, without our adapters."""

    def add(factors: Factors) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        weights = [weight for weight in factors if weight is not None]

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs[0]
            for weight in weights:
                x = F.linear(x, weight)
            return output + scale * x

        return hook

    handles = [model.get_submodule(name).register_forward_hook(add(factors)) for name, factors in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _difference(ours: list[LogProbabilities], theirs: list[LogProbabilities]) -> float:
    """max |Δ log p| / max |log p| over all prompts, positions and tokens."""
    differences = [float((one.all - other.all).abs().max()) for one, other in zip(ours, theirs, strict=True)]
    return max(differences) / max(float(one.all.abs().max()) for one in theirs)


def _targets_of_inject(model: nn.Module, adapted: list[str]) -> list[str] | str:
    """The ``target_modules`` by which `moslora.adapters.inject` finds exactly these layers."""
    targets = _target_modules(model, adapted)
    return "|".join(map(re.escape, targets)) if any("." in target for target in targets) else targets
