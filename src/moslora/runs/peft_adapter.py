"""Reader of LoRA adapters that PEFT, or the MoSLoRA repository's patched PEFT 0.3, wrote.

    y = W x + s · lora_B(lora_AB(lora_A(x))),   s = lora_alpha / r, or lora_alpha / √r with use_rslora

``lora_AB`` is the patch's (github.com/wutaiqiang/MoSLoRA, ``commonsense_reasoning/peft``): a linear layer with the
weight M. Any setting or weight that is not understood is refused: ignoring it would make another adapter.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError
from pydantic_core import from_json
from torch import Tensor

from moslora.errors import MosloraError, UsageError, capped, first_line, some
from moslora.recipe.builtin import printable
from moslora.runs.adapter_folder import load_tensors
from moslora.runs.peft_files import CONFIG

_KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<part>AB|A|B)(\.default)?\.weight")
"""Pattern of the name of a LoRA weight."""

_HARMLESS = {
    *("auto_mapping", "eva_config", "inference_mode", "megatron_core", "merge_weights"),
    *("peft_version", "qalora_group_size"),
}
"""Settings that do not change what a trained adapter computes."""

_OFF: Mapping[str, tuple[Any, ...]] = {"bias": ("none",), "init_lora_weights": (True, "gaussian", "orthogonal", "eva")}
"""Values of settings that add nothing to B · M · A, besides ``None``, ``False`` and empty ones."""


Modules = list[str] | str
"""Layers as PEFT names them: ends of their names, or a regular expression for whole names."""


class LoraSettings(BaseModel):
    """Settings that are read from ``adapter_config.json``; every other setting must be off or harmless."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    peft_type: Literal["LORA"]
    task_type: Literal["CAUSAL_LM"] | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    r: int = Field(gt=0, le=2**16)
    lora_alpha: PositiveFloat
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Modules
    exclude_modules: Modules | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool = False
    lora_use_mixer: bool | None = None

    @property
    def official(self) -> bool:
        """Whether the MoSLoRA repository's PEFT wrote the adapter, be it MoSLoRA or its LoRA baseline."""
        return self.lora_use_mixer is not None

    @property
    def scale(self) -> float:
        """Scale s of the adapter."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


Layers = Mapping[str, Mapping[str, Tensor]]
"""Layer -> part (A, AB or B) -> float32 weight: A ``(r, in)``, AB ``(r, r)``, B ``(out, r)``."""

OURS = {"A": "lora_a", "AB": "mixer.weight", "B": "lora_b"}
"""Part -> parameter name in moslora's adapters, in the order in which the parts are applied."""


def read_settings(path: Path) -> LoraSettings:
    """Read ``adapter_config.json`` and refuse every setting that is not understood."""
    try:
        values = from_json(path.read_bytes())
        if not isinstance(values, dict):
            raise ValueError("not a mapping of settings")
    except (OSError, ValueError) as error:
        raise MosloraError(f"{path}: cannot be read ({first_line(error)})") from None
    kind = values.get("peft_type", "LORA")
    if kind != "LORA":
        raise UsageError(f"{path}: peft_type = {shortened(kind)}: only LORA can be imported")
    faults: list[tuple[str, str]] = []  # key, and what is wrong with it
    try:
        settings = LoraSettings.model_validate(values)
    except ValidationError as error:
        faults = [(str(fault["loc"][0]), fault["msg"]) for fault in error.errors()]
    understood = {*LoraSettings.model_fields, *_HARMLESS}
    for key, value in values.items():
        is_off = value is None or value is False or value in ("", [], {}, *_OFF.get(key, ()))
        if key not in understood and not is_off:
            faults.append((key, "not supported (docs/merging.md)"))
    if faults:
        said = [
            f"{path}: {printable(key)} = {shortened(values.get(key))}: {fault}" for key, fault in dict.fromkeys(faults)
        ]
        raise UsageError(capped(said))
    return settings


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights by the file's names, from safetensors or from a pickle of tensors alone.

    torch reads the pickle without running code. No other function opens a pickle.
    """
    if path.suffix == ".safetensors":
        return load_tensors(path)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        return {key: value.float() for key, value in values.items()}
    except Exception as error:  # torch's own message advises to run the code
        raise MosloraError(
            f"{path}: not a file of tensors only ({type(error).__name__}); no code in it was run. Save its weights as"
            " safetensors"
        ) from None


def read_layers(path: Path, settings: LoraSettings) -> Layers:
    """Read the weights by layer and part.

    Raises:
        UsageError: the settings leave out a layer with weights, or give it another rank or scale.
    """
    tensors = load_weights(path)
    layers: dict[str, dict[str, Tensor]] = {}
    faults = [] if tensors else ["contains no LoRA weights; import a checkpoint of the Trainer"]
    for key, value in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            faults.append(f"{key}: unexpected; not a LoRA weight that moslora knows")
        else:
            layers.setdefault(match["layer"], {})[match["part"]] = value.float()
    try:
        faults += _misfits(settings, layers)
    except re.error as error:
        raise UsageError(f"{CONFIG} of {path}: {error.pattern!r} is no regular expression ({error})") from None
    if faults:
        raise UsageError(capped([f"{path}: {fault}" for fault in faults]))
    return layers


def _misfits(settings: LoraSettings, layers: Collection[str]) -> Iterator[str]:
    """Lines that say which layers with weights contradict the settings. Layers are matched as PEFT matches them."""

    def is_named(layer: str, modules: Modules | None) -> bool:
        if isinstance(modules, str):
            return re.fullmatch(modules, layer) is not None
        return f".{layer}".endswith(tuple(f".{name}" for name in modules or ()))

    surplus = [layer for layer in layers if not is_named(layer, settings.target_modules)]
    if surplus:
        yield f"weights on {some(surplus)}, which target_modules in {CONFIG} does not name"
    excluded = [layer for layer in layers if is_named(layer, settings.exclude_modules)]
    if excluded:
        yield f"weights on {some(excluded)}, which exclude_modules in {CONFIG} names"
    for key, of_all in (("rank_pattern", settings.r), ("alpha_pattern", settings.lora_alpha)):
        for pattern, value in (getattr(settings, key) or {}).items():
            matched = [layer for layer in layers if re.match(rf"(.*\.)?({pattern})$", layer)]
            if matched and value != of_all:
                yield f"{key} in {CONFIG} gives {value} to {some(matched)}: not supported (docs/merging.md)"


def own_section(settings: LoraSettings, layers: Collection[str]) -> dict[str, Any]:
    """Section ``adapter`` of a recipe for an adapter with these settings on these layers."""
    targets: Modules = sorted({layer.rpartition(".")[2] for layer in layers})
    if isinstance(settings.target_modules, str):
        targets = settings.target_modules
    elif any("." in target for target in settings.target_modules):  # ours are last components or a pattern
        targets = "|".join(re.escape(layer) for layer in layers)
    return {
        "rank": settings.r,
        "alpha": settings.lora_alpha,
        "scaling": "rslora" if settings.use_rslora else "lora",
        "dropout": settings.lora_dropout,
        "target_modules": targets,
        "mixer": {"kind": "dense" if settings.lora_use_mixer else "identity"},
    }


def own_state(layers: Layers) -> dict[str, Tensor]:
    """Weights by the parameter names of moslora's adapters."""
    state: dict[str, Tensor] = {}
    for name, parts in layers.items():
        state |= {f"{name}.{OURS[part]}": value for part, value in parts.items()}
    return state
