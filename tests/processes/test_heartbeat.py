"""A process that is gone without closing its connections: the others end soon, and never because of long work."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from torch.distributed.elastic.utils.distributed import get_free_port

from forked_kit import Forked, python

SILENCE = 5.0
WORK = """
import os, signal, sys, time
from moslora.processes import heartbeat
heartbeat.BEAT, heartbeat.SILENCE, heartbeat.TICK = 0.3, float(sys.argv[1]), 0.1
from moslora.processes.group import end, all_gather, process_group

rank = int(os.environ["RANK"])
try:
    with process_group({}, then="resume: it"):
        for turn in range(2):
            all_gather(turn)
        print("met", flush=True)
        exec(sys.argv[2])
    print("done", flush=True)
except Exception as error:
    end(error)
"""
"""A group in which each process does what the second argument says."""


def started(work: str, *, processes: int) -> list[Forked | subprocess.Popen[str]]:
    """The processes, once they have met. As `srun` starts them: rank 0 has the store in which they give signs."""
    shared = {"WORLD_SIZE": f"{processes}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{get_free_port()}"}
    shared |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    places = [os.environ | shared | {"RANK": str(rank)} for rank in range(processes)]
    them = [python("-c", WORK, SILENCE, work, env=place) for place in places]
    for process in them:
        line = ""
        while line != "met\n":
            assert process.stdout
            line = process.stdout.readline()
            assert line, process.communicate()
    return them


def finish(them: list[Forked | subprocess.Popen[str]]) -> None:
    for process in them:
        with suppress(ProcessLookupError):
            process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [1, 0])
@pytest.mark.parametrize("processes", [2, 3])
def test_a_stopped_process_ends_the_others_and_one_of_them_says_so(processes: int, stopped: int) -> None:
    """Rank 0 has the store: when it is stopped the others have no sign of anybody."""
    them = started("while True: all_gather(rank)", processes=processes)
    try:
        them[stopped].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        others = [process for process in them if process is not them[stopped]]
        said = [process.communicate(timeout=60)[1] for process in others]
        assert SILENCE - 1 < time.monotonic() - began < 40
        assert all(process.returncode == 1 for process in others)
        lines = [line for text in said for line in text.splitlines()]
        named = f"rank {stopped} on " if stopped or processes == 2 else "any other process"
        assert any(named in line for line in lines) and all("resume: it" in line for line in lines), lines
        # On a busy machine one may see the other end before it has counted the silence itself.
        assert len(lines) <= len(others), lines
    finally:
        finish(them)


@pytest.mark.slow
def test_long_work_of_one_and_an_early_end_of_another_are_no_loss() -> None:
    """Rank 0 works while rank 1 waits for it, longer than a silence may last, and again after rank 1 has gone."""
    work = f"time.sleep({2 * SILENCE} * (rank == 0)); all_gather(rank); time.sleep({2 * SILENCE} * (rank == 0))"
    them = started(work, processes=2)
    try:
        found = [process.communicate(timeout=90) for process in them]
        assert [process.returncode for process in them] == [0, 0], found
        assert all(out.endswith("done\n") and not errors for out, errors in found)
    finally:
        finish(them)


@pytest.mark.slow
def test_all_of_them_stopped_and_continued_are_no_loss(tmp_path: Path) -> None:
    """As a batch system suspends a job: nobody counts the time in which it did not run itself."""
    work = f"while not os.path.exists({str(tmp_path / 'go')!r}): all_gather(rank); time.sleep(0.05)"
    them = started(work.replace(": all_gather", ":\n    all_gather").replace("; time", "\n    time"), processes=2)
    try:
        for number, pause in ((signal.SIGSTOP, 2 * SILENCE), (signal.SIGCONT, SILENCE)):
            for process in them:
                process.send_signal(number)
            time.sleep(pause)
        assert all(process.poll() is None for process in them), [process.communicate() for process in them]
    finally:
        finish(them)


@pytest.mark.slow
def test_a_killed_process_ends_the_others_at_once() -> None:
    them = started("while True: all_gather(rank)", processes=2)
    try:
        began = time.monotonic()
        them[1].kill()
        _, said = them[0].communicate(timeout=60)
        assert time.monotonic() - began < SILENCE and them[0].returncode == 1
        assert said.count("\n") == 1 and "another process has ended" in said and "resume: it" in said
    finally:
        finish(them)
