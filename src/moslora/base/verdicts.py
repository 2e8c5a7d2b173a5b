"""What comparing the engines has told, kept in the cache: a model is compared once on a machine.

A verdict holds for the config, the adapters, the precision, the device, the libraries, and our code that computes.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from moslora.adapters import adapter_options
from moslora.download.wheels import home
from moslora.files import once_per_machine, sha256, write_json
from moslora.processes.devices import gpu_module
from moslora.version import PACKAGE

COMPUTING = ("adapters", "base", "kernels")
"""Our folders whose code computes."""

SETTINGS = ("MOSLORA_PLAIN", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "NVIDIA_TF32_OVERRIDE")
"""Variables of the environment that change what is computed."""


def read_verdict(model: PreTrainedModel, **how: Any) -> Mapping[str, Any] | None:
    """The verdict on ``model``, compared in this way; ``None`` if there is none."""
    with suppress(OSError, ValueError):
        found: Mapping[str, Any] = json.loads(_file(model, how).read_text(encoding="utf-8"))
        return found
    return None


def keep_verdict(model: PreTrainedModel, verdict: Mapping[str, Any], **how: Any) -> None:
    """Keeps a verdict, JSON values; not in a cache that cannot be written."""
    file = _file(model, how)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with once_per_machine(file):
            write_json(file, verdict)


def _file(model: PreTrainedModel, how: Mapping[str, Any]) -> Path:
    config = model.config.to_dict()
    config.pop("_name_or_path", None)
    device: dict[str, Any] = {"type": model.device.type, "cpu": torch.backends.cpu.get_cpu_capability()}
    if model.device.type not in ("cpu", "meta"):
        device["name"] = gpu_module().get_device_name(model.device)
    facts = {
        "config": config,
        "adapters": adapter_options(model) or getattr(model, "peft_config", None),
        "dtypes": sorted({str(weight.dtype) for weight in model.parameters()}),
        "device": device,
        "libraries": {name: version(name) for name in ("torch", "transformers")},
        "code": _code(),
        "settings": {name: os.environ.get(name) for name in SETTINGS},
        **how,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    return home() / "engines" / f"{digest[:32]}.json"


@cache
def _code() -> str:
    files = sorted(path for folder in COMPUTING for path in (Path(PACKAGE) / folder).rglob("*.py"))
    return hashlib.sha256("".join(sha256(path) for path in files).encode()).hexdigest()
