"""LoRA adapters of others, read strictly: PEFT's, and those of the MoSLoRA repository's patched PEFT 0.3.

    y = W x + s · lora_B(lora_AB(lora_A(x))),   s = lora_alpha / r, or lora_alpha / √r with use_rslora

``lora_AB`` is the patch's (github.com/wutaiqiang/MoSLoRA, ``commonsense_reasoning/peft``): a linear layer, so that
its weight is M as it stands. Stock PEFT has no such layer. Whatever is not read is a fault: a weight or a setting
passed over in silence would be another adapter.
"""

import json
import math
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moslora.checkpoint import load_tensors
from moslora.errors import MosloraError, UsageError, first_line
from moslora.manifest import MANIFEST
from moslora.peft_settings import adapts, malformed, unsupported
from moslora.runs import RUN

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_model.bin")
"""The weights' file, the first that is there; the last is a checkpoint of transformers' Trainer."""

_KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<part>AB|A|B)(\.default)?\.weight")


class Factors(NamedTuple):
    """One layer's ``a (r, in_features)``, ``b (out_features, r)`` and, with a mixer, ``m (r, r)``, in float32."""

    a: Tensor
    m: Tensor | None
    b: Tensor


@dataclass(frozen=True)
class ForeignAdapter:
    """A foreign adapter's settings and tensors as they were read; :meth:`faults` says whether they make one."""

    config_path: Path
    weights_path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def official(self) -> bool:
        """Whether the MoSLoRA repository's PEFT wrote it; its LoRA baselines have the setting as well."""
        return "lora_use_mixer" in self.config

    @property
    def mixed(self) -> bool:
        """Whether there is an M between the factors."""
        return bool(self.config.get("lora_use_mixer"))

    @property
    def scale(self) -> float:
        """s."""
        rank = self.config["r"]
        return float(self.config["lora_alpha"] / (math.sqrt(rank) if self.config.get("use_rslora") else rank))

    @property
    def base(self) -> dict[str, str | None]:
        """Name and revision of the base, as far as the settings name it."""
        keys = {"name": "base_model_name_or_path", "revision": "revision"}
        values = {name: self.config.get(key) for name, key in keys.items()}
        return {
            name: value if isinstance(value, str) and value.isprintable() else None for name, value in values.items()
        }

    def layers(self) -> dict[str, Factors]:
        """Every adapted layer of the base, by name. For an adapter without faults."""
        return {
            name: Factors(
                parts["A"].float(),
                parts["AB"].float() if self.mixed else None,
                parts["B"].float(),
            )
            for name, parts in self._parts().items()
        }

    def faults(self) -> list[str]:
        """A line for everything that is wrong with the settings, or else with the weights, whatever the base."""
        return self._setting_faults() or [f"{self.weights_path}: {fault}" for fault in self._weight_faults()]

    def faults_on(self, base: PreTrainedModel) -> list[str]:
        """A line for everything in which the adapter does not fit ``base``, which may lie on the meta device.

        None where the settings are refused: most of these would only say so again, weight by weight.
        """
        if self._setting_faults():
            return []
        linear = {
            name: (module.in_features, module.out_features)
            for name, module in base.named_modules()
            if hasattr(module, "in_features") and hasattr(module, "out_features")
        }
        head = base.get_output_embeddings()
        rank = self.config["r"]
        faults = []
        parts = self._parts()
        for name, found in parts.items():
            if name not in linear:
                faults.append(f"{self.weights_path}: {name}: the base has no such linear layer")
                continue
            if base.get_submodule(name) is head:
                faults.append(f"{self.weights_path}: {name}: the output layer, which moslora does not adapt")
            inputs, outputs = linear[name]
            wanted = {"A": (rank, inputs), "AB": (rank, rank), "B": (outputs, rank)}
            faults += [
                f"{self.weights_path}: {name}.lora_{part}: shape {tuple(found[part].shape)}, but r and the base make it"
                f" {shape}"
                for part, shape in wanted.items()
                if part in found and tuple(found[part].shape) != shape
            ]
        if parts:
            chosen = {name for name in linear if adapts(self.config, name, official=self.official)}
            faults += [
                f"{self.weights_path}: {name}: {CONFIG} adapts it, but it has no weights"
                for name in chosen - parts.keys()
            ]
            faults += [
                f"{self.weights_path}: {name}: has weights, but {CONFIG} does not adapt it"
                for name in parts.keys() & linear.keys() - chosen
            ]
        return sorted(faults)

    def _setting_faults(self) -> list[str]:
        return [f"{self.config_path}: {fault}" for fault in (*malformed(self.config), *unsupported(self.config))]

    def _parts(self) -> dict[str, dict[str, Tensor]]:
        """layer -> "A", "AB", "B" -> weight, as far as they are there."""
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in self.tensors.items():
            if match := _KEY.fullmatch(key):
                parts.setdefault(match["layer"], {})[match["part"]] = value
        return parts

    def _weight_faults(self) -> Iterator[str]:
        seen: set[tuple[str, str]] = set()
        for key, value in self.tensors.items():
            match = _KEY.fullmatch(key)
            if not match:
                yield f"{key}: no weight of a LoRA layer that moslora knows"
            elif (which := (match["layer"], match["part"])) in seen:
                yield f"{key}: comes twice, with and without .default"
            else:
                seen.add(which)
                if not (value.is_floating_point() and value.isfinite().all()):
                    yield f"{key}: holds NaN, infinities or no floating-point numbers"
        parts = self._parts()
        if not parts:
            yield "no LoRA weight in it: an empty adapter was saved; take a checkpoint of the trainer"
            return
        for name, found in parts.items():
            for part in {"A", "B"} - found.keys():
                yield f"{name}: lora_{part} is missing beside its lora_{', lora_'.join(sorted(found))}"
        without = [name for name, found in parts.items() if "AB" not in found]
        if 0 < len(without) < len(parts):
            yield f"lora_AB is missing on {len(without)} of {len(parts)} layers, first {without[0]}"
        elif self.mixed and without:
            yield f"no lora_AB, but {CONFIG} has lora_use_mixer = true; if it was trained without, set it to false"
        elif not self.mixed and not without:
            yield f"has lora_AB, but {CONFIG} no lora_use_mixer = true; if it was trained with a mixer, set it"


def read_adapter(folder: Path) -> ForeignAdapter:
    """The adapter in ``folder``; a trainer's checkpoint has its settings in the folder above.

    Raises:
        UsageError: there is none.
        MosloraError: a file cannot be read, or holds anything but tensors.
    """
    if not folder.is_dir():
        of_the_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder))
        mend = f"; if it is on the hub, fetch it first: hf download {folder} --local-dir FOLDER" if of_the_hub else ""
        raise UsageError(f"{folder}: no such folder{mend}")
    if any((folder / name).is_file() for name in (RUN, MANIFEST)):
        raise UsageError(f"{folder}: is a run of moslora already; evaluate, merge or export it as it is")
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise UsageError(f"{folder}: none of {', '.join(WEIGHTS)} in it, so no LoRA adapter")
    config = next((path for path in (folder / CONFIG, folder.resolve().parent / CONFIG) if path.is_file()), None)
    if config is None:
        raise UsageError(f"{folder}: no {CONFIG}, here or in the folder above; copy the one of the training run here")
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except RecursionError:  # whose own words depend on where it struck
        raise MosloraError(f"{config}: cannot be read (its brackets are nested too deeply)") from None
    except (OSError, ValueError) as error:
        raise MosloraError(f"{config}: cannot be read ({first_line(error)})") from None
    if not isinstance(values, dict):
        raise MosloraError(f"{config}: holds no settings")
    return ForeignAdapter(config, weights, values, _load(weights))


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. The one place where a pickle is opened, by torch's reader that runs no code of it."""
    if path.suffix == ".safetensors":
        return load_tensors(path)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise MosloraError(
            f"{path}: refused, nothing of it was run: it holds more than tensors"
            f" ({named[1] if named else 'no pickle that torch knows'}); save the weights as safetensors"
        ) from None
    except Exception as error:  # broken bytes end the reader in whatever way they lead it
        raise MosloraError(f"{path}: cannot be read ({type(error).__name__}); is the file whole?") from None
    if not isinstance(values, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in values.items()
    ):
        raise MosloraError(f"{path}: holds no dictionary of tensors")
    return values
