"""Wrong use of the command line: each test brings a situation about and gives one command.

`pytest -rP tests/wrong_turns` prints every command with its message.
"""

import functools
import itertools
import pkgutil
import resource
import shutil
from pathlib import Path

import pytest

from cli_kit import run
from importing_kit import altered_source
from moslora.base.identity import fingerprint
from moslora.base.resolve import _ask_hub
from moslora.download.hub import prefer_cache_if_unreachable


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    for remembered in (fingerprint, _ask_hub, prefer_cache_if_unreachable):
        remembered.cache_clear()
    return tmp_path


@pytest.fixture
def a_run(here, trained):
    """A finished run, which may be changed."""
    return Path(shutil.copytree(trained, "runs/one"))


@pytest.fixture
def a_model(here, world):
    """The run's base, which may be changed."""
    return Path(shutil.copytree(world / "model", "model"))


@pytest.fixture
def source(here, world):
    """``source(alter)``: a LoRA of another program in ``source``, over the world's model, with something changed."""
    return lambda alter=lambda config, state: None: altered_source(here / "source", world, alter)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refused(here, world, trained, capsys):
    """Gives a command and expects its refusal.

    ``refused(command, *names, code=2, leaves=False)`` types ``command``, in which ``{world}`` is the folder of
    `conftest.world` and ``{run}`` a finished run. The message must contain all ``names``: keys, paths and values. No
    file is touched, and none is new unless the command ``leaves`` some because it had begun its work.
    """

    def check(command, *names, code=2, leaves=False):
        before = files(here)
        run_before = files(trained)
        words = [word.format(world=world, run=trained) for word in command.split(" ")]
        found, _, errors = run(capsys, *words)
        # Beside the error there may be other output, of pip or of a progress bar.
        lines = [line for line in errors.splitlines() if line.lower().startswith("error: ")]
        said = errors
        if lines:
            said = "\n".join(lines)
        print(f"moslora {command}\n{said}")
        assert (found, [name for name in names if name not in said]) == (code, []), said
        after = files(here)
        assert {path: after.get(path) for path in before} == before and files(trained) == run_before
        new = sorted(after.keys() - before.keys())
        assert leaves or not new
        assert not [path for path in new if ".writing" in path or ".lock" in path or ".download" in path], new
        return said

    return check


@pytest.fixture
def before_call(monkeypatch):
    """``before_call(target, act, call=1)``: ``act`` runs right before that call of what ``target`` names."""

    def patch(target, act, *, call=1):
        real = pkgutil.resolve_name(target)
        calls = itertools.count(1)

        @functools.wraps(real)
        def wrapper(*arguments, **options):
            if next(calls) == call:
                act()
            return real(*arguments, **options)

        monkeypatch.setattr(target, wrapper)

    return patch


@pytest.fixture
def disk_full(before_call):
    """``disk_full(target, size=…, call=1)``: from that call on, no file can grow beyond ``size`` bytes, for real."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def patch(target, *, size, call=1):
        before_call(target, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1])), call=call)

    yield patch
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
