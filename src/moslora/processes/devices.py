"""The devices that the processes of a command work on, and what they can do: nobody else asks torch about a GPU.

Elsewhere a device is the CPU or it is not.
"""

import ctypes
import gc
import math
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import parse_flag_from_env

from moslora.ranks import local_rank

GPU = "cuda"
"""The kind of device that is used beside the CPU; AMD's GPUs have this name too."""

WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of ``ONEDNN_MAX_CPU_ISA`` under which torch's products of bfloat16 are emulated."""


def gpu_module() -> Any:
    """``torch.cuda``, or whatever torch has in its place for :data:`GPU`."""
    return torch.get_device_module(GPU)


def gpus() -> int:
    """GPUs of this machine that may be used."""
    usable = gpu_module().is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    return int(gpu_module().device_count()) if usable else 0


def device() -> torch.device:
    """This process's GPU, or else the CPU."""
    return torch.device(GPU, local_rank()) if gpus() else torch.device("cpu")


def as_current(device: torch.device) -> AbstractContextManager[None]:
    """Has ``device`` be the current GPU within the block: for kernels that are launched there, wherever their tensors
    are. torch's own are launched where these are."""
    return nullcontext() if device.type == "cpu" else cast(AbstractContextManager[None], gpu_module().device(device))


def total_memory(device: torch.device) -> int:
    """Bytes of a GPU, or of this machine, as far as this process may use them."""
    if device.type != "cpu":
        return int(gpu_module().get_device_properties(device).total_memory)
    return int(min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _cgroup_limit()))


def _cgroup_limit(root: Path = Path("/")) -> float:
    """The least memory limit of this process's control groups and those around them: a container's, or a job's."""
    groups, limits = root / "proc/self/cgroup", [math.inf]
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, kind, path = line.split(":", 2)  # of version 2 the kind is empty
        file = {"": "memory.max", "memory": "memory.limit_in_bytes"}.get(kind)
        group = root / "sys/fs/cgroup" / kind / path.lstrip("/")
        texts = [(at / file).read_text().strip() for at in (group, *group.parents) if file and (at / file).exists()]
        limits += [int(text) for text in texts if text != "max"]
    return min(limits)


def free_memory() -> None:
    """Gives back what the GPU keeps of models that nobody refers to any more, those in reference cycles included."""
    gc.collect()
    if gpus():
        gpu_module().empty_cache()


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether it multiplies bfloat16 itself: emulated products are slower than those of any other dtype."""
    if device.type != "cpu":
        return bool(gpu_module().is_bf16_supported(including_emulation=False))
    units = torch.cpu.get_capabilities()
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() not in WITHOUT_BFLOAT16
    return bool(allowed and (units.get("amx_bf16") or units.get("avx512_bf16")))


def wait_for(device: torch.device) -> None:
    """Returns when a GPU has done all that it was given, copies to the host among it."""
    if device.type != "cpu":
        gpu_module().synchronize(device)


@cache
def has_flash_attention(device: torch.device) -> bool:
    """Whether torch has flash attention for a GPU: NVIDIA's from Ampere on. The meta device stands for such a one."""
    built = torch.version.hip is None and torch.backends.cuda.is_flash_attention_available()
    return device.type == "meta" or (built and multiplies_bfloat16(device))


def keep_freed_memory() -> None:
    """Has glibc keep what tensors free, instead of giving it back to the system and asking for it again.

    A forward pass frees and takes the same megabytes in every layer, and the system empties each page that it gives: a
    tenth of an evaluation on a CPU, a sixteenth of a training. Thresholds of the environment stay (man 3 mallopt).
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in every C library
    if mallopt is not None:
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD in malloc.h
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
