"""The rank of this process among those of its command, read from torch's environment variables without torch.

torchrun, `accelerate launch`, and `adopt_slurm` and `launch` of `moslora.processes.launch` set them.
"""

import os


def launched() -> bool:
    """Return whether a launcher has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """Number of this process among all of its command; 0 without a launcher."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Number of processes of the command; 1 without a launcher."""
    if not launched():
        return 1
    return int(os.environ["WORLD_SIZE"])


def local_rank() -> int:
    """Number of this process among those of its machine, which is also the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world_size() -> int:
    """Number of the command's processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or world_size())


def master_address() -> tuple[str, int]:
    """Host and port where the processes of a command meet.

    Raises:
        KeyError: the launcher has not set them.
        ValueError: the port is not a number.
    """
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def is_main_process() -> bool:
    """Return whether this is the one process of its command that prints and writes."""
    return rank() == 0
