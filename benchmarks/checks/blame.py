"""Names the package whose newest release breaks the tests.

    make blame                              # the core of the tests
    make blame TESTS=tests/base             # these alone
    make blame HELD=torch                   # also with torch's newest

All newest releases are installed over `constraints.txt` first. If tests fail with them, those tests are run again for
each package alone, in its newest release and with the other packages that this release moves. Exits with 1 if tests
fail.
"""

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement

from benchmarks import ROOT
from benchmarks.commands import command

PINNED = ROOT / "constraints.txt"

OF_TORCH = ("cuda", "nvidia", "triton")
"""Beginnings of the packages that torch's builds for GPUs bring, each in versions of its own."""

RERUN = 50
"""Maximum number of failed tests that are run again for each package."""


def main(tests: tuple[str, ...], *, resolver: str, held: str) -> int:
    """Install the newest releases together, then one at a time, and run ``tests``.

    Args:
        tests: files, folders or names, as pytest takes them.
        resolver: uv's command that resolves pyproject.toml.
        held: requirement that no release may leave.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        before = versions(PINNED)
        pins = folder / "constraints.txt"

        def resolve(*upgrade: str) -> dict[str, str]:
            """Resolve with ``upgrade``, uv's option, into ``pins``; return the versions that differ from the pinned."""
            shutil.copy(PINNED, pins)
            words = [*shlex.split(resolver), *upgrade, "--constraints", "-", "--output-file", str(pins)]
            subprocess.run(words, input=held, text=True, check=True, cwd=ROOT)
            lines = pins.read_text(encoding="utf-8").splitlines()
            pins.write_text("\n".join(line for line in lines if not line.startswith(OF_TORCH)), encoding="utf-8")
            return {name: version for name, version in versions(pins).items() if before.get(name) != version}

        newest = resolve("--upgrade")
        print(f"newer than pinned: {' '.join(f'{name}=={version}' for name, version in newest.items()) or 'none'}")
        install(newest, pins)
        code, failed = run(tests, folder / "together")
        restore(newest, before)
        if code == 0:
            print(f"{len(newest)} newer packages together: no test fails")
            return 0
        print(f"{len(newest)} newer packages together: {len(failed)} tests fail")
        broken = []
        for name in newest:
            moved = resolve("--upgrade-package", name)
            if name not in moved:
                continue  # only together with a package that requires it
            install(moved, pins)
            code, _ = run(failed[:RERUN] or tests, folder / name)
            restore(moved, before)
            words = " ".join(f"{other}=={version}" for other, version in moved.items())
            print(f"{'BREAKS' if code else 'works'}: {words}", flush=True)
            if code:
                broken.append(name)
        print(f"moved and broke: {', '.join(broken) or 'no package alone'}")
        return 1


def versions(pins: Path) -> dict[str, str]:
    """Versions of a constraints file that apply here, by the package's name."""
    found = {}
    for line in pins.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate():
            found[pin.name] = next(iter(pin.specifier)).version
    return found


def install(packages: dict[str, str], pins: Path) -> None:
    """Install ``packages`` in these versions into this environment, within ``pins``."""
    if packages:
        words = [f"{name}=={version}" for name, version in packages.items()]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "-c", str(pins)]
        subprocess.run([*pip, *words], check=True)


def restore(moved: dict[str, str], before: dict[str, str]) -> None:
    """Install the pinned versions of ``moved`` packages again."""
    install({name: before[name] for name in moved if name in before}, PINNED)


def run(tests: Sequence[str], cache: Path) -> tuple[int, list[str]]:
    """Run ``tests``; return pytest's exit code and the tests that failed."""
    words = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", "-o", f"cache_dir={cache}", *tests]
    ran = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print("\n".join(ran.stdout.splitlines()[-15:]), file=sys.stderr)
    failed = cache / "v" / "cache" / "lastfailed"
    return ran.returncode, list(json.loads(failed.read_text(encoding="utf-8"))) if failed.exists() else []


if __name__ == "__main__":
    command(main)
