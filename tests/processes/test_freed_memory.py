"""What is freed stays in the process, by the system's own count of pages."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from moslora.processes.devices import keep_freed_memory
keep_freed_memory()
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def take():
    for _ in range(3):
        torch.ones(2**21) + 1  # 8 MB, twice
for _ in range(3):
    take()
before = pages()
take()
print(pages() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_reused():
    """4,096 pages of 4 kB a time, unless thresholds in the environment, which stay, say otherwise."""

    def found(**environment):
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        )
        return int(ran.stdout)

    assert found() < 100
    assert found(MALLOC_MMAP_THRESHOLD_="131072") > 10_000
