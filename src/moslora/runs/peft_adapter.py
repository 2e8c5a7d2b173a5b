"""A LoRA adapter's folder as written by PEFT, or by the MoSLoRA repository's patched PEFT 0.3.

    y = W x + s · lora_B(lora_AB(lora_A(x))),   s = lora_alpha / r, or lora_alpha / √r with use_rslora

``lora_AB`` is the patch's (github.com/wutaiqiang/MoSLoRA, ``commonsense_reasoning/peft``): a linear layer with the
weight M. Any setting or weight that is not understood is refused: ignoring it would make another adapter.
"""

import math
import re
from collections.abc import Collection, Mapping
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
"""The name of a LoRA weight."""

_HARMLESS = {
    *("auto_mapping", "eva_config", "inference_mode", "megatron_core", "merge_weights"),
    *("peft_version", "qalora_group_size"),
}
"""Settings that do not change what a trained adapter computes."""

_OFF: Mapping[str, tuple[Any, ...]] = {"bias": ("none",), "init_lora_weights": (True, "gaussian", "orthogonal", "eva")}
"""Values that add nothing to B · M · A, besides those that are false or empty."""


class LoraSettings(BaseModel):
    """The settings of ``adapter_config.json`` that are read; any other must be off or harmless."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    peft_type: Literal["LORA"]
    task_type: Literal["CAUSAL_LM"] | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    r: int = Field(gt=0, le=2**16)
    lora_alpha: PositiveFloat
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: list[str]
    use_rslora: bool = False
    lora_use_mixer: bool | None = None

    @property
    def official(self) -> bool:
        """Whether the MoSLoRA repository's PEFT wrote it, which also sets this for its LoRA baselines."""
        return self.lora_use_mixer is not None

    @property
    def scale(self) -> float:
        """s."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


Layers = Mapping[str, Mapping[str, Tensor]]
"""The float32 weights A, AB and B of each layer, as far as it has them."""

OURS = {"A": "lora_a", "AB": "mixer.weight", "B": "lora_b"}
"""These weights in the order in which they are applied, and their names in an adapter of ours."""


def read_settings(path: Path) -> LoraSettings:
    """The settings, of which any that is not understood is refused."""
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
        if value and key not in understood and value not in _OFF.get(key, ()):
            faults.append((key, "not supported (docs/merging.md)"))
    if faults:
        said = [
            f"{path}: {printable(key)} = {shortened(values.get(key))}: {fault}" for key, fault in dict.fromkeys(faults)
        ]
        raise UsageError(capped(said))
    return settings


def load_weights(path: Path) -> dict[str, Tensor]:
    """The weights as the file names them: safetensors, or a pickle of tensors alone, by torch's reader that runs no
    code. Nothing else here opens a pickle."""
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


def read_layers(path: Path, *, targets: list[str]) -> Layers:
    """The weights by layer and part, where ``targets`` are the ends of their names; any other weight is refused."""
    tensors = load_weights(path)
    layers: dict[str, dict[str, Tensor]] = {}
    faults = [] if tensors else ["contains no LoRA weights; import a checkpoint of the Trainer"]
    for key, value in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            faults.append(f"{key}: unexpected; not a LoRA weight that moslora knows")
        else:
            layers.setdefault(match["layer"], {})[match["part"]] = value.float()
    ends = tuple(f".{target}" for target in targets)
    surplus = [name for name in layers if not f".{name}".endswith(ends)]
    if surplus:
        faults.append(f"weights on {some(surplus)}, which target_modules in {CONFIG} does not list")
    if faults:
        raise UsageError(capped([f"{path}: {fault}" for fault in faults]))
    return layers


def own_section(settings: LoraSettings, layers: Collection[str]) -> dict[str, Any]:
    """The section ``adapter`` of a recipe whose adapter of ours has these settings and is on these layers."""
    targets: str | list[str] = sorted({layer.rpartition(".")[2] for layer in layers})
    if any("." in target for target in settings.target_modules):  # ours are last components or a pattern
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
    """The weights under the names that they have in an adapter of ours."""
    state: dict[str, Tensor] = {}
    for name, parts in layers.items():
        state |= {f"{name}.{OURS[part]}": value for part, value in parts.items()}
    return state
