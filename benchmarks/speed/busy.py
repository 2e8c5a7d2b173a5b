"""Training on a machine that others use: how OpenMP's threads wait for each other decides its speed.

    python -m benchmarks.speed.busy                             # a table of docs/speed.md
    python -m benchmarks.speed.busy work GOMP_SPINCOUNT=10000    # one worker: seconds in, tokens per second out

Every contestant has two processes with the environment that it is named by, in which the model is loaded once. They
take turns of some seconds: one process alone; beside other jobs, each of which keeps a core busy; and both at once,
whose tokens are added. The setting is ``paper`` of ``training.py``.

    GOMP_SPINCOUNT=10000    what the command ``moslora`` sets
    default                 what torch does by itself
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import chain, cycle
from subprocess import PIPE

from benchmarks import DOCS, ROOT
from benchmarks.speed.contestants import our_step
from benchmarks.speed.training import STEP, rows
from benchmarks.tables import machine, markdown, publish, spread

PAGE = DOCS / "speed.md"
CONTESTANTS = ("GOMP_SPINCOUNT=10000", "default", "OMP_WAIT_POLICY=PASSIVE")
SITUATIONS = {"alone": (1, 0), "beside a job": (1, 1), "beside two": (1, 2), "two trainings, together": (2, 0)}
"""Name -> processes that train, and other jobs."""


def work(steps: int = 8) -> None:
    """Answers each line of the standard input, seconds, with the tokens per second of training for about so long."""
    from moslora.base.adapted import with_adapters
    from moslora.base.load import load_base

    encoded, recipe = rows("paper", steps)
    step = our_step(with_adapters(load_base(recipe.model), recipe), recipe.training)
    step(encoded[:STEP])
    print("ready", flush=True)
    turns = cycle(range(steps))
    for line in sys.stdin:
        began = time.perf_counter()
        tokens = 0
        while time.perf_counter() - began < float(line):
            number = next(turns)
            drawn = encoded[STEP * number : STEP * (number + 1)]
            step(drawn)
            tokens += sum(len(row.input_ids) for row in drawn)
        print(tokens / (time.perf_counter() - began), flush=True)


class Worker:
    """A process that trains when it is asked to, under the environment that ``contestant`` names."""

    def __init__(self, contestant: str) -> None:
        environment = dict(os.environ)
        environment.pop("GOMP_SPINCOUNT", None)
        environment.pop("OMP_WAIT_POLICY", None)
        if "=" in contestant:
            key, _, value = contestant.partition("=")
            environment[key] = value
        command = [sys.executable, "-m", "benchmarks.speed.busy", "work", contestant]
        self._process = subprocess.Popen(command, env=environment, stdin=PIPE, stdout=PIPE, text=True, cwd=ROOT)
        assert self._said() == "ready"

    def begin(self, seconds: float) -> None:
        assert self._process.stdin
        print(seconds, file=self._process.stdin, flush=True)

    def tokens_per_second(self) -> float:
        return float(self._said())

    def end(self) -> None:
        self._process.communicate()

    def _said(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


def turn(workers: Sequence[Worker], *, jobs: int, seconds: float) -> float:
    """Tokens per second of all ``workers`` together, beside so many ``jobs``."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(jobs)]
    try:
        for worker in workers:
            worker.begin(seconds)
        return sum(worker.tokens_per_second() for worker in workers)
    finally:
        for job in busy:
            job.kill()
            job.wait()


Found = dict[str, dict[str, list[float]]]
"""Contestant -> situation -> tokens per second of each turn."""


def measure(options: argparse.Namespace) -> Found:
    most = max(SITUATIONS[situation][0] for situation in options.situations)
    workers: dict[str, list[Worker]] = {}
    found: Found = {}
    for who in options.contestants:
        workers[who] = [Worker(who) for _ in range(most)]
        found[who] = {situation: [] for situation in options.situations}
    for number in range(options.repetitions):
        contestants = sorted(workers, reverse=number % 2 == 0)
        for situation in options.situations:
            training, jobs = SITUATIONS[situation]
            for who in contestants:
                rate = turn(workers[who][:training], jobs=jobs, seconds=options.seconds)
                print(json.dumps({"who": who, "at": situation, "tokens_per_second": round(rate)}), flush=True)
                found[who][situation].append(rate)
    for worker in chain.from_iterable(workers.values()):
        worker.end()
    return found


def table_of(found: Found, situations: Sequence[str]) -> list[list[str]]:
    """A row for each contestant, and the first beside the default."""
    table = [["OpenMP", *situations]]
    for who, rates in found.items():
        cells = [spread(rates[situation], digits=0) for situation in situations]
        table.append([f"`{who}`", *cells])
    if "default" in found:
        first = next(iter(found.values()))
        cells = []
        for situation in situations:
            gain = statistics.median(first[situation]) / statistics.median(found["default"][situation])
            cells.append(f"{gain:.2f} ×")
        table.append(["ratio of the first to the default", *cells])
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="of a turn, which ends with a step")
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS))
    parser.add_argument("--situations", nargs="+", default=list(SITUATIONS), choices=list(SITUATIONS))
    parser.add_argument("--print-only", action="store_true")
    options = parser.parse_args(arguments)
    table = table_of(measure(options), options.situations)
    text = f"{machine()}; {options.repetitions} turns each\n\n{markdown(table)}"
    publish(text, PAGE, "busy table", print_only=options.print_only)


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work()
    else:
        main()
