"""Asks servers with a planted fault: each must be named or refused by `moslora eval --server` and `moslora verify`.

    make soak                                              # this, and more
    python -m benchmarks.checks.faulty_servers --rounds 5  # other parameters of each fault

Each fault of `tests/kits/faulty_servers_kit.py` is planted into a server over a small run, for each way in which
servers tell log-probabilities, and for tokens and texts. What `eval` takes from the server must be what the run
computes, unless the fault is one that only `verify` can see. `verify` calls none of them the run.

Exits with 1 if a wrong answer was taken, or a faulty server was called the run.
"""

import os
import sys
import tempfile
from itertools import product
from pathlib import Path
from random import Random

from benchmarks import ROOT
from benchmarks.commands import command

sys.path.append(str(ROOT / "tests" / "kits"))

from faulty_servers_kit import FAULTS, UNSEEN_BY_EVAL, faulty
from moslora.errors import MosloraError, first_line
from moslora.evaluation import reading, server
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.server import open_server
from moslora.evaluation.target import open_target
from moslora.runs.evaluation import read_predictions
from moslora.runs.run import Run
from moslora.verify.verification import verify
from served_kit import Served, make_served
from server_kit import Pretended, serving
from world_kit import make_world

WAYS = ("echo", "forced", "allowed", "likeliest")
CLOSE = 1e-3  # nats


def asked(served: Served, pretended: Pretended, folder: Path) -> tuple[int, str, bool]:
    """Number of wrong answers that `eval` takes, what `verify` calls the server, and whether no answer is missing."""
    own = {one.id: one.scores for one in read_predictions(Run(served.path).evaluation_folder())}
    wrong = 0
    answered = 0
    with serving(pretended) as address:
        try:
            target = open_target(str(served.path))
            evaluate_target(target, server=open_server(address), at_once=1, out=folder / "eval")
            for one in read_predictions(folder / "eval"):
                answered += not one.refused
                distances = [abs(a - b) for a, b in zip(one.scores, own[one.id], strict=False)]
                wrong += max(distances, default=0) > CLOSE
        except MosloraError as refusal:
            print(f"    eval: {first_line(refusal)}")
        try:
            verdict: str = verify(served.path, address, at_once=1, out=folder / "verify").verdict.kind
        except MosloraError as refusal:
            verdict = f"refused: {first_line(refusal)}"
    return wrong, verdict, answered == len(own)


def main(*, rounds: int = 1) -> None:
    """Plants each fault in every way, ``rounds`` times."""
    server.WAITS = (0.001, 0, 0, 0, 0, 0)
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["MOSLORA_HOME"] = str(folder / "home")
        make_world(folder)
        served = make_served(folder, folder / "served")
        reading.LIKELIEST = (len(served.tokenizer), 5)
        ways = product(range(rounds), FAULTS, WAYS, (True, False))
        for number, (seed, fault, tells, takes_tokens) in enumerate(ways):
            pretended = faulty(served, fault, Random(seed), tells=tells, takes_tokens=takes_tokens)
            wrong, verdict, is_whole = asked(served, pretended, folder / str(number))
            is_harmless = is_whole and not wrong  # in this way the fault is not there, or was worked around
            name = f"{fault}, {tells}, {'tokens' if takes_tokens else 'text'}, {seed}"
            print(f"{name}: {wrong} wrong, {verdict}", flush=True)
            if (wrong and fault not in UNSEEN_BY_EVAL) or (verdict == "run" and not is_harmless):
                failed.append(name)
    if failed:
        sys.exit("FAILED: taken for the run, or wrong answers taken:\n" + "\n".join(failed))


if __name__ == "__main__":
    command(main)
