"""The devices of the processes of a command, and what they can do. Only this file asks torch about a GPU.

In all other files a device is the CPU, or it is not.
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

from moslora.console import note, say
from moslora.errors import MosloraError, first_line
from moslora.process_rank import local_rank

GPU = "cuda"
"""The kind of device that is used beside the CPU; AMD's GPUs have this name too."""

WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of ``ONEDNN_MAX_CPU_ISA`` under which torch's products of bfloat16 are emulated."""


def gpu_module() -> Any:
    """torch's module for :data:`GPU`, such as ``torch.cuda``."""
    return torch.get_device_module(GPU)


def gpus() -> int:
    """Number of this machine's GPUs that may be used."""
    if not gpu_module().is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"):
        return 0
    return int(gpu_module().device_count())


def device() -> torch.device:
    """This process's GPU, or else the CPU."""
    if gpus():
        return torch.device(GPU, local_rank())
    return torch.device("cpu")


@cache
def say_device(kind: str) -> None:
    """Prints, once per process, which device of this ``kind`` computes, and what is to be known of this machine's."""
    if kind != "cpu":
        say(f"device: {device_name(device())}")
        if torch.version.hip:
            note("this is an AMD GPU (ROCm), on which nothing was tried; attention pads its rows there")
        return
    say(f"device: CPU, {device_name(torch.device('cpu'))}")
    remark = unused_gpu()
    if remark:
        note(remark)


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's, or at least its kind."""
    if device.type != "cpu":
        return str(gpu_module().get_device_name(device))
    cpus = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", cpus.read_text("utf-8")) if cpus.exists() else None
    return found[1] if found else platform.machine()


def unused_gpu(nvidia: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Why a GPU of this machine is not used; ``None`` where it is, where it is hidden on purpose, or without one."""
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
    """Makes ``device`` the current GPU within the block: Triton launches kernels on the current GPU, and torch on that
    of the tensors."""
    if device.type == "cpu":
        return nullcontext()
    return cast(AbstractContextManager[None], gpu_module().device(device))


def total_memory(device: torch.device) -> int:
    """Bytes of a GPU, or of this machine, as far as this process may use them."""
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
    """Bytes of a GPU's memory that nothing uses."""
    return int(gpu_module().mem_get_info(device)[0])


def _cgroup_limit(root: Path = Path("/")) -> float:
    """Smallest memory limit in bytes of this process's control groups and those around them: a container's, or a job's;
    infinite without one."""
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
    """Frees the GPU's memory of models that nobody refers to any more, also of those in reference cycles."""
    gc.collect()
    if gpus():
        gpu_module().empty_cache()


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself: emulated products are slower than those of any other dtype."""
    if device.type != "cpu":
        return bool(gpu_module().is_bf16_supported(including_emulation=False))
    units = torch.cpu.get_capabilities()
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() not in WITHOUT_BFLOAT16
    return bool(allowed and (units.get("amx_bf16") or units.get("avx512_bf16")))


def wait_for(device: torch.device) -> None:
    """Waits until a GPU has finished all its work, also copies to the host."""
    if device.type != "cpu":
        gpu_module().synchronize(device)


def try_kernel(device: torch.device) -> None:
    """Computes a sum on ``device``, and waits for it.

    Raises:
        MosloraError: the GPU computes nothing, such as one that is older than this torch's kernels.
    """
    try:
        torch.ones(1, device=device).add_(1)
        wait_for(device)
    except RuntimeError as error:
        fix = "nvidia-smi shows its state and who uses it, and CUDA_VISIBLE_DEVICES chooses another"
        if "no kernel image" in str(error):
            fix = (
                f"torch {torch.__version__} has no kernels for this GPU; install a torch for CUDA 12.6, which has those"
                " of older GPUs: pip install torch --index-url https://download.pytorch.org/whl/cu126"
            )
        raise MosloraError(f"{device_name(device)} computes nothing: {first_line(error)}; {fix}") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU is out of memory, by torch's error or by the text of CUDA's, cuBLAS's, Triton's or NCCL's."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "_STATUS_ALLOC_FAILED" in text


@cache
def has_flash_attention(device: torch.device) -> bool:
    """Whether torch has flash attention for the device: NVIDIA's GPUs from Ampere on, for which meta stands, too."""
    built = torch.version.hip is None and torch.backends.cuda.is_flash_attention_available()
    return device.type == "meta" or (built and multiplies_bfloat16(device))


def keep_freed_memory() -> None:
    """Makes glibc keep the memory that tensors free, instead of returning it to the system and asking for it again.

    A forward pass frees and takes the same megabytes in every layer, and the system clears each page that it gives: a
    tenth of the time of an evaluation on a CPU, a sixteenth of a training's. Thresholds that the environment sets stay
    (man 3 mallopt).
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in every C library
    if mallopt is not None:
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD in malloc.h
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
