"""Kills commands at each of their writes, and a run at random moments, and damages its checkpoints: all must end as if
nothing had happened, bit for bit.

    make soak                                              # this, and more random input than in the tests
    python -m benchmarks.checks.soak --kills 200 --damages 1000 --seed 5
    python -m benchmarks.checks.soak --kills 0 --damages 0 --commands eval merge    # the writes of these commands alone

Writes: each command of `tests/kits/commands_kit.py` is killed before each change that it makes to the disk, and within
each file that it writes, at half of its bytes. The same command is then given again, and must go on; of a new
training, the one that its refusal names. All files in the working folder and in the cache are compared with those of a
command that nothing stopped. Left out is what is measured: times and memory in metrics.jsonl and run.json.

Then the tests' small model is trained with a checkpoint after every second step, and scored.

Kills: SIGKILL after a random time, or before a random one of the process's changes to the disk, in turns. The same run
is then resumed, and may be killed again, until it ends.
Damages: a file of the newest checkpoint, or of the result, is cut at a random place, or has a few bits flipped.

Exits with 1 after the writes if a command did not go on or a byte differs, at the first run that ends otherwise, and at
the first damage that is not noticed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import ROOT

sys.path.append(str(ROOT / "tests" / "kits"))

from commands_kit import commands
from kill_kit import Findings, kill_everywhere, ready_to_fork
from moslora.errors import MosloraError
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.recipe import Recipe, load_recipe
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.manifest import MANIFEST, WEIGHTS
from moslora.runs.resuming import newest_saved
from moslora.runs.run import PREDICTIONS, RESULT, RESULTS, Run
from moslora.training import train_recipe
from training_kit import steps_logged
from world_kit import make_world

KEPT = 2
"""Checkpoints, by the recipe's default."""

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod")
"""Audit events of changes to the disk; besides "open" for writing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="one write in N; default: %(default)s")
    parser.add_argument("--commands", nargs="*", metavar="NAME", help="those killed at their writes; default: all")
    parser.add_argument("--kills", type=int, default=60, metavar="N", help="default: %(default)s")
    parser.add_argument("--damages", type=int, default=300, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="default: another one each time")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    ready_to_fork()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["MOSLORA_HOME"] = str(folder / "home")
        make_world(folder)
        kill_at_writes(folder, names=options.commands, every=options.every)
        if not (options.kills or options.damages):
            return
        recipe = load_recipe(folder / "recipe.yaml", ["training.checkpoint_every=2", "training.validate_every=4"])
        kill(recipe, folder, kills=options.kills, draw=random.Random(options.seed))
        damage(recipe, folder, damages=options.damages, draw=random.Random(options.seed))


def kill_at_writes(folder: Path, *, names: Sequence[str] | None, every: int) -> None:
    """Kills each command, or those of these ``names``, at one write in ``every``."""
    began = time.monotonic()
    known = commands(folder)
    chosen = names
    if chosen is None:
        chosen = list(known)
    unknown = {*chosen} - known.keys()
    if unknown:
        fail(f"no such command: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    findings = []
    print(Findings.header(), flush=True)
    for number, name in enumerate(chosen):
        found = kill_everywhere(known[name], folder / f"command-{number}", every=every)
        print(found.line(), *found.stuck, *found.lost, sep="\n", flush=True)
        findings.append(found)
    total = Findings.of_all(findings)
    print(f"{total.line()}\n{time.monotonic() - began:.0f} s", flush=True)
    if total.stuck or total.lost:
        fail("a kill was not survived; the lines above say where")


def kill(recipe: Recipe, folder: Path, *, kills: int, draw: random.Random) -> None:
    """Kills runs until there are so many ``kills``, and compares each run that ends with an uninterrupted one."""
    began = time.monotonic()
    reference = folder / "reference"
    ended(begin(recipe, reference), reference)
    seconds = time.monotonic() - began
    changes = len((reference / "changes").read_bytes())
    wanted = outcome(reference)
    places: Counter[str] = Counter()
    runs = 0
    while places.total() < kills:
        run = folder / f"run-{runs}"
        runs += 1
        places.update(kill_until_it_ends(recipe, run, seconds=seconds, changes=changes, draw=draw))
        different = [name for name, content in outcome(run).items() if content != wanted[name]]
        if different:
            fail(f"{run.name}: after its kills other than the uninterrupted run: {', '.join(different)}")
        shutil.rmtree(run)
    print(f"{places.total()} kills of {runs} runs, each of which then ended bit for bit as the uninterrupted one")
    print("".join(f"{count:6} {place}\n" for place, count in places.most_common()), end="")
    print(f"{time.monotonic() - began:.0f} s", flush=True)


def kill_until_it_ends(
    recipe: Recipe, run: Path, *, seconds: float, changes: int, draw: random.Random
) -> Iterator[str]:
    """Kills a run within as many ``seconds``, or before one of as many ``changes`` to the disk, and resumes it until
    it ends. Yields where it was at each kill."""
    while True:
        timed = draw.random() < 0.5
        until = None
        if not timed:
            until = draw.randrange(changes)
        process = begin(recipe, run, until=until)
        if timed:
            time.sleep(draw.uniform(0, seconds))
            os.kill(process, signal.SIGKILL)
        if ended(process, run):
            return
        yield moment(run)


def begin(recipe: Recipe, run: Path, *, until: int | None = None) -> int:
    """Trains and scores ``run`` in a forked process, resuming what is there. Returns the process's id.

    Args:
        until: the process kills itself before this change to the disk; ``None`` for never.
    """
    process = os.fork()
    if process:
        return process
    try:
        log = os.open(run.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        count = count_changes(run, until=until)
        train_recipe(recipe, out=run, resuming=True)
        evaluate_target(open_target(str(run)))
        (run / "changes").write_bytes(b"." * count())
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def count_changes(run: Path, *, until: int | None) -> Callable[[], int]:
    """Counts this process's changes to the disk from now on, and kills it before number ``until``."""
    seen = 0

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = False
        if event == "open":
            path, _, flags = arguments
            writes = str(path).startswith(str(run)) and bool(flags & (os.O_WRONLY | os.O_RDWR))
        if event in CHANGES or writes:
            if seen == until:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(note)
    return lambda: seen


def ended(process: int, run: Path) -> bool:
    """Waits for ``process``: whether it ended by itself, and not by a kill. Any fault is a failure."""
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if status:
        fail(f"{run.name}: ended with {status}:\n{run.with_suffix('.log').read_text(encoding='utf-8')[-3000:]}")
    return True


def outcome(run: Path) -> dict[str, Any]:
    """All that a run must end with, up to what is measured. A kill may leave an empty folder, or half of an older
    checkpoint that was being deleted: these are in nobody's way."""
    open_adapter(run / RESULT)
    (scores,) = (run / "eval").iterdir()
    return {
        "the adapter": (run / RESULT / WEIGHTS).read_bytes(),
        "the checkpoints": [
            (path.name, open_adapter(path).manifest["sha256"]) for path in Run(run).checkpoints[-KEPT:]
        ],
        "the metrics": steps_logged(run),
        "the answers": (scores / PREDICTIONS).read_bytes(),
        "the scores": json.loads((scores / RESULTS).read_bytes())["tasks"],
    }


def moment(run: Path) -> str:
    """Where a killed run was."""
    if list((run / "eval").glob(f"*/{RESULTS}")):
        return "with its scores written"
    if (run / "eval").exists():
        return "while it was scored"
    if (run / RESULT).exists():
        return "after its result was written"
    if list(run.glob(f".{RESULT}.*.writing")):
        return "while its result was written"
    if list((run / "checkpoints").glob(".*.writing")):
        return "while a checkpoint was written"
    if Run(run).checkpoints:
        return "between two checkpoints"
    return "before the first checkpoint"


def damage(recipe: Recipe, folder: Path, *, damages: int, draw: random.Random) -> None:
    """Damages a file of the newest checkpoint, or of the result: the run must go on from the one before."""
    began = time.monotonic()
    run = folder / "reference"
    result = run / RESULT
    away = folder / "away"
    kinds: Counter[str] = Counter()
    before, last = Run(run).checkpoints[-2:]
    files = [*sorted(last.iterdir()), *sorted(result.iterdir())]
    for number in range(damages):
        path = files[number % len(files)]
        whole = path.read_bytes()
        how, content = spoil(whole, draw)
        while path.name == MANIFEST and says_the_same(whole, content):
            how, content = spoil(whole, draw)
        path.write_bytes(content)
        expected = last
        if path.parent == last:
            result.rename(away)
            expected = before
        check_noticed(run, recipe, path, how, expected=expected)
        if path.parent == last:
            away.rename(result)
        path.write_bytes(whole)
        kinds[f"{path.name} {how.split()[0]}"] += 1
    print(f"{kinds.total()} damages, all noticed and named, none loaded, the good checkpoint before it used")
    print("".join(f"{count:6} {kind}\n" for kind, count in sorted(kinds.items())), end="")
    print(f"{time.monotonic() - began:.0f} s", flush=True)


def check_noticed(run: Path, recipe: Recipe, path: Path, how: str, *, expected: Path) -> None:
    """A damaged file is named, the run goes on from ``expected``, and the file's folder cannot be loaded."""
    said = StringIO()
    with redirect_stdout(said):
        found = newest_saved(Run(run), recipe)
    used = None
    name = None
    if found is not None:
        used = found.path
        name = used.name
    if used != expected or f"skipped {path.parent}: {path}: " not in said.getvalue():
        fail(f"{path.parent.name}/{path.name} {how}: {name} is used; said: {said.getvalue()}")
    try:
        open_adapter(path.parent).weights()
    except MosloraError:
        return
    fail(f"{path.parent.name}/{path.name} {how}: loaded")


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


def fail(line: str) -> NoReturn:
    print(f"FAILED: {line}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
