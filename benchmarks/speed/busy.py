"""Training on a machine that others use: how OpenMP's threads wait for each other decides its speed.

    python -m benchmarks.speed.busy                             # a table of docs/speed.md
    python -m benchmarks.speed.busy work GOMP_SPINCOUNT=10000    # one worker: seconds in, tokens per second out

Every contestant has two processes with the environment that it is named by, in which the model is loaded once. They
take turns of some seconds: one process alone; beside other jobs, each of which keeps a core busy; and both at once,
whose tokens are added. The setting is ``paper`` of ``training.py``.

    GOMP_SPINCOUNT=10000    what the command ``moslora`` sets
    default                 what torch does by itself
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import cycle
from subprocess import PIPE

from benchmarks import DOCS, ROOT
from benchmarks.commands import command
from benchmarks.speed.contestants import our_step
from benchmarks.speed.training import STEP, rows
from benchmarks.tables import machine, markdown, publish, ratios, spread

CONTESTANTS = ("GOMP_SPINCOUNT=10000", "default", "OMP_WAIT_POLICY=PASSIVE")
SITUATIONS = {"alone": (1, 0), "beside a job": (1, 1), "beside two": (1, 2), "two trainings, together": (2, 0)}
"""Name -> number of processes that train, and number of other jobs."""


def work(contestant: str) -> None:
    """Train for the seconds of each line of the standard input, and print the tokens per second."""
    from moslora.base.adapted import with_adapters
    from moslora.base.load import load_base

    encoded, recipe = rows("paper", 8)
    step = our_step(with_adapters(load_base(recipe.model), recipe), recipe.training)
    steps = [encoded[at : at + STEP] for at in range(0, len(encoded), STEP)]
    step(steps[0])
    print("ready", flush=True)
    drawn = cycle(steps)
    for line in sys.stdin:
        began = time.perf_counter()
        tokens = 0
        while time.perf_counter() - began < float(line):
            of_step = next(drawn)
            step(of_step)
            tokens += sum(len(row.input_ids) for row in of_step)
        print(tokens / (time.perf_counter() - began), flush=True)


def started(contestant: str) -> "subprocess.Popen[str]":
    """Start a process that trains on request, with the environment variable that ``contestant`` names."""
    environment = dict(os.environ)
    environment.pop("GOMP_SPINCOUNT", None)
    environment.pop("OMP_WAIT_POLICY", None)
    if "=" in contestant:
        key, _, value = contestant.partition("=")
        environment[key] = value
    command = [sys.executable, "-m", "benchmarks.speed.busy", "work", contestant]
    process = subprocess.Popen(command, env=environment, stdin=PIPE, stdout=PIPE, text=True, cwd=ROOT)
    assert said(process) == "ready"
    return process


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def turn(workers: Sequence["subprocess.Popen[str]"], *, jobs: int, seconds: float) -> float:
    """Tokens per second of all ``workers`` together, while ``jobs`` other jobs run."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(jobs)]
    try:
        for worker in workers:
            print(seconds, file=worker.stdin, flush=True)
        return sum(float(said(worker)) for worker in workers)
    finally:
        for job in busy:
            job.kill()
            job.wait()


def main(
    *,
    repetitions: int = 5,
    seconds: float = 8,
    contestants: tuple[str, ...] = CONTESTANTS,
    print_only: bool = False,
) -> None:
    workers = {who: [started(who), started(who)] for who in contestants}
    found: dict[str, dict[str, list[float]]] = {who: {name: [] for name in SITUATIONS} for who in contestants}
    for number in range(repetitions):
        for name, (training, jobs) in SITUATIONS.items():
            for who in sorted(workers, reverse=number % 2 == 0):
                rate = turn(workers[who][:training], jobs=jobs, seconds=seconds)
                print(json.dumps({"who": who, "at": name, "tokens_per_second": round(rate)}), flush=True)
                found[who][name].append(rate)
    for both in workers.values():
        for worker in both:
            worker.communicate()
    table = [["OpenMP", *SITUATIONS]]
    for who, rates in found.items():
        table.append([f"`{who}`", *(spread(rate, digits=0) for rate in rates.values())])
    first, other, *_ = ([statistics.median(rate) for rate in rates.values()] for rates in found.values())
    table.append(["ratio of the first to the second", *(f"{gain:.2f} ×" for gain in ratios(first, other))])
    text = f"{machine()}; {repetitions} turns each\n\n{markdown(table)}"
    publish(text, DOCS / "speed.md", "busy table", print_only=print_only)


if __name__ == "__main__":
    command(main, work)
