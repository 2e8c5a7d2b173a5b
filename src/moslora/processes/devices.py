"""The devices that the processes of a command work on."""

import os

import torch
from accelerate.utils import parse_flag_from_env


def gpus() -> int:
    """GPUs of this machine that may be used."""
    usable = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    return torch.cuda.device_count() if usable else 0


def device() -> torch.device:
    """This process's GPU, or else the CPU."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if gpus() else torch.device("cpu")


def total_memory(device: torch.device) -> int:
    """Bytes of a GPU, or of this machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
