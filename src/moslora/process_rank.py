"""Which of a command's processes this one is, as its launcher says in torch's environment variables.

torchrun and `accelerate launch` set them, as do `adopt_slurm` and `launch` of `moslora.processes.launch`; only this
file reads them. Does not load torch.
"""

import os


def launched() -> bool:
    """Whether a launcher has started this process."""
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
    """Number of this process among those of its machine, which is also that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world_size() -> int:
    """Number of the command's processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or world_size())


def master_address() -> tuple[str, int]:
    """Host and port where the processes meet.

    Raises:
        KeyError, ValueError: the launcher has not set them, or not to a number.
    """
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def is_main_process() -> bool:
    """Whether this is the one process that prints and writes."""
    return rank() == 0
