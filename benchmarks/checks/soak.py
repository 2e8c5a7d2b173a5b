"""Kills commands at each of their writes, and damages a run's checkpoints: all must end as if nothing had happened, bit
for bit.

    make soak                                              # this, and more random input than in the tests
    python -m benchmarks.checks.soak --damages 1000 --seed 5
    python -m benchmarks.checks.soak --damages 0 --commands eval merge    # the writes of these commands alone

Writes: each command of `tests/kits/commands_kit.py` is killed before each change that it makes to the disk, and within
each file that it writes, at half of its bytes. The same command is then given again, and must go on; of a new
training, the one that its refusal names. All files in the working folder and in the cache are compared with those of a
command that nothing stopped. Left out is what is measured: times and memory in metrics.jsonl and run.json.

Damages: the tests' small model is trained with a checkpoint after every second step. A file of the newest, or of the
result, is cut at a random place, or has a few bits flipped. It must be named, and the checkpoint before it used.

Exits with 1 after the writes if a command did not go on or a byte differs, and at the first damage that is not noticed.
"""

import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from benchmarks import ROOT
from benchmarks.commands import command

sys.path.append(str(ROOT / "tests" / "kits"))

from commands_kit import commands
from kill_kit import Findings, kill_everywhere, ready_to_fork
from moslora.errors import MosloraError
from moslora.recipe import Recipe, load_recipe
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.manifest import MANIFEST
from moslora.runs.resuming import newest_saved
from moslora.runs.run import Run
from moslora.training import train_recipe
from world_kit import make_world


def main(
    *, every: int = 1, commands: tuple[str, ...] = (), damages: int = 300, seed: int = random.randrange(10**6)
) -> None:
    print(f"seed {seed}", flush=True)
    ready_to_fork()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["MOSLORA_HOME"] = str(folder / "home")
        make_world(folder)
        kill_at_writes(folder, commands, every=every)
        if damages:
            recipe = load_recipe(folder / "recipe.yaml", ["training.checkpoint_every=2", "training.validate_every=4"])
            damage(recipe, folder, damages=damages, draw=random.Random(seed))


def kill_at_writes(folder: Path, names: tuple[str, ...], *, every: int) -> None:
    """Kills the commands of these ``names``, or without any all, at one write in ``every``."""
    began = time.monotonic()
    known = commands(folder)
    if names:
        known = {name: known[name] for name in names}
    findings = []
    print(Findings.header(), flush=True)
    for number, killed in enumerate(known.values()):
        found = kill_everywhere(killed, folder / f"command-{number}", every=every)
        print(found.line(), *found.stuck, *found.lost, sep="\n", flush=True)
        findings.append(found)
    total = Findings.of_all(findings)
    print(f"{total.line()}\n{time.monotonic() - began:.0f} s", flush=True)
    if total.stuck or total.lost:
        sys.exit("FAILED: a kill was not survived; the lines above say where")


def damage(recipe: Recipe, folder: Path, *, damages: int, draw: random.Random) -> None:
    """Trains, and damages a file of the newest checkpoint, or of the result."""
    run = Run(folder / "reference")
    train_recipe(recipe, out=run.path)
    away = folder / "away"
    kinds: Counter[str] = Counter()
    before, last = run.checkpoints[-2:]
    files = [*sorted(last.iterdir()), *sorted(run.result.iterdir())]
    for number in range(damages):
        path = files[number % len(files)]
        whole = path.read_bytes()
        how, content = spoil(whole, draw)
        while path.name == MANIFEST and says_the_same(whole, content):
            how, content = spoil(whole, draw)
        path.write_bytes(content)
        if path.parent == last:
            run.result.rename(away)
            check_noticed(run, recipe, path, how, expected=before)
            away.rename(run.result)
        else:
            check_noticed(run, recipe, path, how, expected=last)
        path.write_bytes(whole)
        kinds[f"{path.name} {how.split()[0]}"] += 1
    print(f"{kinds.total()} damages, all noticed and named, none loaded, the good checkpoint before it used")
    for kind, count in sorted(kinds.items()):
        print(f"{count:6} {kind}")


def check_noticed(run: Run, recipe: Recipe, path: Path, how: str, *, expected: Path) -> None:
    """A damaged file is named, the run goes on from ``expected``, and the file's folder cannot be loaded."""
    said = StringIO()
    with redirect_stdout(said):
        found = newest_saved(run, recipe)
    if found is None or found.path != expected or f"skipped {path.parent}: {path}: " not in said.getvalue():
        sys.exit(f"FAILED: {path} {how}: {found and found.path} is used; said: {said.getvalue()}")
    try:
        open_adapter(path.parent).weights()
    except MosloraError:
        return
    sys.exit(f"FAILED: {path} {how}: loaded")


def spoil(whole: bytes, draw: random.Random) -> tuple[str, bytes]:
    """``whole`` cut at a random place, or with up to three bits flipped; and which of the two."""
    if draw.random() < 0.5:
        cut = draw.randrange(len(whole))
        return f"cut to {cut} of {len(whole)} bytes", whole[:cut]
    content = bytearray(whole)
    bits = draw.sample(range(8 * len(whole)), k=draw.randint(1, 3))
    for bit in bits:
        content[bit // 8] ^= 1 << bit % 8
    return f"flipped in bits {bits}", bytes(content)


def says_the_same(whole: bytes, content: bytes) -> bool:
    """Whether a damaged manifest is the same JSON, as without its last line break."""
    try:
        return bool(json.loads(content) == json.loads(whole))
    except ValueError:
        return False


if __name__ == "__main__":
    command(main)
