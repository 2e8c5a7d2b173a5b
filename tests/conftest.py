"""The small world, its recipe and a finished run of it.

What starts the workers of `pytest -n` loads this file, too, and needs nothing that loads torch.
"""

import shutil
import signal

import pytest

from moslora.console import note_once
from moslora.download.wheels import home
from moslora.recipe import load_recipe

# A parent that ignores Ctrl-C (`nohup make test &`, or a job in the background) hands that on to Python and to all that
# it starts. The tests send SIGINT to themselves and to their children.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def nothing_said_yet():
    """What is said once per process is said once per test."""
    note_once.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def own_rows(tmp_path_factory):
    """The user's cache, but for the prepared rows: those of the tests would take their place."""
    users, own = home(), tmp_path_factory.mktemp("home")
    for name in ("data", "llama.cpp", "models", "tests", "wheels"):
        (users / name).mkdir(parents=True, exist_ok=True)
        (own / name).symlink_to(users / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOSLORA_HOME", str(own))
        patch.setattr("os.fsync", lambda _: None)  # no test cuts the power
        yield


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with ``model/``, ``data/`` and ``recipe.yaml``. Read only."""
    from world_kit import make_world

    root = tmp_path_factory.mktemp("world")
    make_world(root)
    return root


@pytest.fixture
def recipe(world):
    """The world's recipe, with overrides."""
    return lambda *overrides: load_recipe(world / "recipe.yaml", overrides)


@pytest.fixture(scope="session")
def trained(world, tmp_path_factory):
    """A finished run of the world's recipe: 84 rows, 2 epochs, 21 steps, dropout 0.1. Copy it before changing it."""
    from moslora.training import train_recipe

    out = tmp_path_factory.mktemp("trained") / "run"
    train_recipe(load_recipe(world / "recipe.yaml"), out=out)
    return out


@pytest.fixture(scope="session")
def served_world(world, tmp_path_factory):
    """``served_world(*overrides)``: a run of the world's recipe, evaluated with its base, to be served."""
    from served_kit import make_served

    return lambda *overrides: make_served(world, tmp_path_factory.mktemp("served"), *overrides)


@pytest.fixture(scope="session")
def choice_run(served_world):
    """Evaluated by ``choice``, 60 questions. Read only."""
    return served_world()


@pytest.fixture
def served(choice_run, tmp_path, monkeypatch):
    """The same, which may be changed; attempts to ask a server follow each other at once."""
    from moslora.evaluation import server
    from served_kit import Served

    monkeypatch.setattr(server, "WAITS", [0.001] * 6)
    return Served(shutil.copytree(choice_run.path.parent, tmp_path / "served") / "run", choice_run.path)
