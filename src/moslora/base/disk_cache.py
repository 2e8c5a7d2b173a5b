"""Hashes of files and verdicts of engine comparisons, cached on disk because they take long to compute.

A model is compared once on each machine. A verdict holds for the config, the adapters, the precision, the device, the
libraries, the model's own code, and our code that computes.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from moslora.adapters import context_of
from moslora.download.wheels import home
from moslora.errors import MosloraError
from moslora.files import once_per_machine, sha256, write_json
from moslora.processes.devices import gpu_module
from moslora.version import PACKAGE

COMPUTING = ("adapters", "base", "kernels")
"""Folders of our code that computes."""

LIBRARIES = ("torch", "transformers", "liger_kernel", "triton", "bitsandbytes")
"""Packages whose code computes, if they are installed."""

SETTINGS = ("MOSLORA_PLAIN", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "NVIDIA_TF32_OVERRIDE")
"""Environment variables that change what is computed."""


def cached(
    folder: str, key: str, find: Callable[[], Any], *, state: Any = None, keep: Callable[[Any], bool] = lambda _: True
) -> Any:
    """Return the JSON value of ``find()``, from the file for ``key`` in the cache's ``folder`` if that was written with
    the same ``state``. A value is written if ``keep(value)``; a cache that cannot be written only costs time."""
    file = home() / folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):  # there is none yet, or it is damaged
        entry = json.loads(file.read_text(encoding="utf-8"))
        if entry["state"] == state:
            return entry["found"]
    value = find()
    if not keep(value):
        return value
    with suppress(OSError, MosloraError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with once_per_machine(file):
            write_json(file, {"of": key, "state": state, "found": value})
    return value


def cached_verdict(model: PreTrainedModel, decide: Callable[[], Any], **how: Any) -> Any:
    """Return the JSON value of ``decide()``, which engine computes ``model``, from the cache if it holds one for these
    conditions. A fault of the installation is not cached, as it may be repaired without another version."""
    gpu = None if model.device.type in ("cpu", "meta") else gpu_module().get_device_name(model.device)
    facts = {
        "config": {**model.config.to_dict(), "_name_or_path": None},
        "adapters": context_of(model).options,  # without the seed: factors are compared off their start
        "peft": getattr(model, "peft_config", None),
        "dtypes": {str(weight.dtype) for weight in model.parameters()},
        "device": (model.device.type, torch.backends.cpu.get_cpu_capability(), gpu),
        "libraries": [_installed_version(name) for name in LIBRARIES],
        "code": [_code(), *_code_of(model)],
        "settings": [os.environ.get(name) for name in SETTINGS],
        **how,
    }
    return cached("engines", json.dumps(facts, sort_keys=True, default=_in_json), decide, keep=_is_no_fault)


def _is_no_fault(verdict: Any) -> bool:
    why_not_ours = verdict["refusal"]
    return why_not_ours is None or not why_not_ours.is_fault


def _in_json(value: Any) -> Any:
    """JSON value of an object: a set sorted, as its order differs between processes, and an object such as PEFT's
    config by its attributes."""
    if isinstance(value, set):
        return sorted(value)
    return getattr(value, "__dict__", str(value))


def _installed_version(name: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(name)
    return None


def _code_of(model: PreTrainedModel) -> list[str]:
    """Hashes of all Python files in the folder of the one that defines the model's class, this one included."""
    file = getattr(sys.modules.get(type(model).__module__), "__file__", None)
    return [sha256(path) for path in sorted(Path(file).parent.glob("*.py"))] if file else []


@cache
def _code() -> str:
    files = sorted(path for folder in COMPUTING for path in (Path(PACKAGE) / folder).rglob("*.py"))
    return hashlib.sha256("".join(sha256(path) for path in files).encode()).hexdigest()
