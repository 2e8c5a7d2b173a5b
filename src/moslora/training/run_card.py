"""What ``run.json``, the card of a run, says of the machine, the code and the kernels that trained it."""

import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

import moslora
from moslora.adapters import shares_beginnings
from moslora.kernels import attention, linear, norm
from moslora.kernels.dropout import Dropout
from moslora.kernels.mlp import GatedMLP
from moslora.processes.devices import gpu_module, total_memory


def packages(*, quantized: bool) -> dict[str, str]:
    """The versions of the packages that compute."""
    names = ["torch", "transformers", "accelerate"] + ["bitsandbytes"] * quantized
    return {"moslora": moslora.__version__, **{name: version(name) for name in names}}


def versions(*, quantized: bool) -> dict[str, str]:
    """Of Python and of `packages`."""
    return {"python": platform.python_version(), **packages(quantized=quantized)}


def hardware(device: torch.device) -> dict[str, Any]:
    """The device of one process; memory in GB."""
    on_gpu = device.type != "cpu"
    return {
        "device": gpu_module().get_device_name(device) if on_gpu else processor(),
        "memory_gb": round(total_memory(device) / 1e9, 1),
        **({"cuda": torch.version.cuda} if on_gpu else {"threads": torch.get_num_threads()}),
        "system": platform.platform(),
    }


def processor() -> str:
    """The processor's name, or at least its kind."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def git_state() -> dict[str, Any] | None:
    """The commit of this code, and whether the code differs from it; ``None`` outside a checkout."""
    package = Path(moslora.__file__).parent

    def git(*arguments: str) -> str:
        asked = subprocess.run(["git", "-C", package, *arguments], capture_output=True, text=True, check=True)
        return asked.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # fails for a copy in the environment of another checkout
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "."))}
    except (OSError, subprocess.CalledProcessError):
        return None


def kernels(model: PreTrainedModel, device: torch.device) -> dict[str, str | None]:
    """Which of the equal ways to compute was chosen; ``None`` for what the model does not have."""
    modules = list(model.modules())
    kinds = {type(module) for module in modules}
    dropping = any(isinstance(module, Dropout) and module.p for module in modules)
    return {
        "attention": attention.kernel(device),
        "frozen layers": linear.kernel(device, model.dtype),
        "norm": norm.kernel(device) if norm.RMSNorm in kinds else "transformers'",
        "MLP": "activation computed again" if GatedMLP in kinds else "transformers'",
        "dropout": Dropout.kernel(device) if dropping else None,
        "common beginning of rows": "once" if shares_beginnings(model, training=True) else "in each row",
    }
