"""Versions and facts of a machine that results depend on, for a report of a fault."""

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from moslora.version import __version__, git_state
from moslora.versions import tested

DRIVER = Path("/proc/driver/nvidia/version")


def environment() -> Iterator[tuple[str, str]]:
    """Yield name and value of each fact. torch is imported after the packages' versions, in case it is broken."""
    yield "moslora", __version__
    for name, value in (git_state() or {}).items():
        yield name, str(value)
    yield "python", platform.python_version()
    yield "system", platform.platform()
    for package in tested():
        yield package.name, str(package)

    import torch

    from moslora.processes.devices import GPU, device_name, gpus

    yield "torch is built for", f"CUDA {torch.version.cuda}, ROCm {torch.version.hip}"
    driver = re.search(r"\d+(\.\d+)+", DRIVER.read_text("utf-8")) if DRIVER.exists() else None
    yield "NVIDIA driver", driver[0] if driver else "none"
    yield "GPUs", ", ".join(device_name(torch.device(GPU, index)) for index in range(gpus())) or "none"
    yield "CPU", device_name(torch.device("cpu"))
    has = torch.cpu.get_capabilities()
    sets = " ".join(sorted(name for name, present in has.items() if present is True))
    yield "instruction sets", f"{sets}; torch uses {torch.backends.cpu.get_cpu_capability()}"
    yield "threads", f"{torch.get_num_threads()} of {os.cpu_count()}"
