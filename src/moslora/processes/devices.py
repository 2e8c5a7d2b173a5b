"""Devices of a command's processes and their abilities. Only this file asks torch about a GPU.

All other files only distinguish the CPU from other devices.
"""

import ctypes
import gc
import math
import os
import platform
import re
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import parse_flag_from_env

from moslora.borrowed import borrowed
from moslora.console import note, say
from moslora.errors import MosloraError, first_line
from moslora.process_rank import local_rank
from moslora.versions import untested

GPU = "cuda"
"""Torch's name for GPUs of NVIDIA and AMD, the only devices besides the CPU."""

WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of ``ONEDNN_MAX_CPU_ISA`` with which torch emulates products in bfloat16."""


def gpu_module() -> Any:
    """Torch's module for :data:`GPU`, such as ``torch.cuda``."""
    return torch.get_device_module(GPU)


def gpus() -> int:
    """Number of this machine's GPUs that may be used."""
    if not gpu_module().is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"):
        return 0
    return int(gpu_module().device_count())


def device() -> torch.device:
    """GPU of this process, or the CPU without one."""
    if gpus():
        return torch.device(GPU, local_rank())
    return torch.device("cpu")


@cache
def say_device(kind: str) -> None:
    """Print, once per process, which device of this ``kind`` computes, and a note about an unused or untested GPU or an
    untested package."""
    remark = untested()
    if remark:
        note(remark)
    if kind != "cpu":
        say(f"device: {device_name(device())}")
        if torch.version.hip:
            note("this is an AMD GPU (ROCm), on which moslora was never run; attention pads its rows there")
        return
    say(f"device: CPU, {device_name(torch.device('cpu'))}")
    remark = unused_gpu()
    if remark:
        note(remark)


def device_name(device: torch.device) -> str:
    """Name of the GPU or of the processor, or the processor's architecture if it has no name."""
    if device.type != "cpu":
        return str(gpu_module().get_device_name(device))
    cpus = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.+)", cpus.read_text("utf-8")) if cpus.exists() else None
    return name[1] if name else platform.machine()


def unused_gpu(nvidia: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Reason why this machine's GPU is not used; ``None`` if it is used, hidden on purpose, or missing."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or parse_flag_from_env("ACCELERATE_USE_CPU")
    if gpus() or hidden:
        return None
    if nvidia.exists():
        if torch.version.cuda is None:
            return "the NVIDIA GPU is not used, as this torch is built without CUDA; install one with it (pytorch.org)"
        return (
            f"the NVIDIA GPU is not used, as torch sees none: its driver may be too old for CUDA {torch.version.cuda};"
            " update it, or install torch for an older CUDA"
        )
    if torch.backends.mps.is_available():
        return "this Mac's GPU (MPS) is not used; the CPU computes"
    if torch.xpu.is_available():
        return "Intel's GPU (XPU) is not used; the CPU computes"
    return None


def as_current(device: torch.device) -> AbstractContextManager[None]:
    """Make ``device`` the current GPU within the block.

    Triton launches kernels on the current GPU, torch on the GPU of the tensors.
    """
    if device.type == "cpu":
        return nullcontext()
    return cast(AbstractContextManager[None], gpu_module().device(device))


def total_memory(device: torch.device) -> int:
    """Memory in bytes of a GPU, or of this machine within the limit of this process."""
    if device.type != "cpu":
        return int(gpu_module().get_device_properties(device).total_memory)
    return int(min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _cgroup_limit()))


@cache
def multiprocessors(device: torch.device) -> int:
    """Number of a GPU's multiprocessors; 1 for a CPU."""
    if device.type == "cpu":
        return 1
    return int(gpu_module().get_device_properties(device).multi_processor_count)


def unused_memory(device: torch.device) -> int:
    """Free memory of a GPU in bytes."""
    return int(gpu_module().mem_get_info(device)[0])


def _cgroup_limit(root: Path = Path("/")) -> float:
    """Smallest memory limit in bytes of this process's control groups and their parents, as set for a container or a
    job; infinite without a limit."""
    smallest = math.inf
    groups = root / "proc/self/cgroup"
    if not groups.exists():
        return smallest
    file_of_kind = {"": "memory.max", "memory": "memory.limit_in_bytes"}  # version 2, whose kind is empty; version 1
    for line in groups.read_text().splitlines():
        _, kind, path = line.split(":", 2)
        if kind not in file_of_kind:
            continue
        group = root / "sys/fs/cgroup" / kind / path.lstrip("/")
        for folder in (group, *group.parents):
            limit = folder / file_of_kind[kind]
            if not limit.exists():
                continue
            text = limit.read_text().strip()
            if text != "max":
                smallest = min(smallest, int(text))
    return smallest


def free_memory() -> None:
    """Free the GPU's memory of unreferenced models, including models in reference cycles."""
    gc.collect()
    if gpus():
        gpu_module().empty_cache()


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware; emulated products are slower than those of other dtypes."""
    if device.type != "cpu":
        return bool(gpu_module().is_bf16_supported(including_emulation=False))
    units = torch.cpu.get_capabilities()
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() not in WITHOUT_BFLOAT16
    return bool(allowed and (units.get("amx_bf16") or units.get("avx512_bf16")))


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished all its work, including copies to the host."""
    if device.type != "cpu":
        gpu_module().synchronize(device)


def try_kernel(device: torch.device) -> None:
    """Compute a sum on ``device`` and wait for it.

    Raises:
        MosloraError: the GPU cannot compute, for example because it is older than this torch's kernels.
    """
    try:
        torch.ones(1, device=device).add_(1)
        wait_for(device)
    except RuntimeError as error:
        fix = "nvidia-smi shows its state and its users; CUDA_VISIBLE_DEVICES chooses another GPU"
        if "no kernel image" in str(error):
            fix = (
                f"torch {torch.__version__} has no kernels for this GPU; install a torch for CUDA 12.6, which"
                " has kernels for older GPUs: pip install torch --index-url https://download.pytorch.org/whl/cu126"
            )
        raise MosloraError(f"{device_name(device)} cannot compute: {first_line(error)}; {fix}") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, CUDA, cuBLAS, Triton or NCCL says that a GPU is out of memory."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "_STATUS_ALLOC_FAILED" in text


@cache
def has_flash_attention(device: torch.device) -> bool:
    """Whether torch has flash attention for the device: NVIDIA GPUs from Ampere on, and meta, which stands for them."""
    names = ("torch.ops.aten._flash_attention_forward", "torch.ops.aten._flash_attention_backward")
    if any(borrowed(name) is None for name in names):
        return False
    built = torch.version.hip is None and torch.backends.cuda.is_flash_attention_available()
    return device.type == "meta" or (built and multiplies_bfloat16(device))


def keep_freed_memory() -> None:
    """Make glibc keep the memory that tensors free, instead of returning it to the system.

    A forward pass frees and allocates the same megabytes in every layer, and the system clears each page: a tenth of
    the time of an evaluation on a CPU, a sixteenth of a training's. Thresholds set by the environment stay (man 3
    mallopt).
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in every C library
    if mallopt is not None:
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD in malloc.h
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
