"""A whole small world on disk: a random LLaMA with its tokenizer, data in LLM-Adapters' layout, a recipe."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evaluation_kit import make_examples, make_model, tokenizer
from moslora.download.wheels import home
from moslora.prompts import llm_adapters_row
from moslora.recipe import Recipe, load_recipe
from moslora.tasks import TASKS
from moslora.training import train_recipe

# A parent that ignores Ctrl-C (`nohup make test &`, or a job in the background) hands that on to Python and to all that
# it starts. The tests send SIGINT to themselves and to their children.
signal.signal(signal.SIGINT, signal.default_int_handler)

WORLD_TASKS = ("boolq", "arc_easy", "obqa")

RECIPE = """
name: small
seed: 3
model: {{name: {model}, dtype: float32}}
adapter:
  rank: 4
  alpha: 8
  dropout: 0.1
  target_modules: [q_proj, v_proj, down_proj]
  mixer: {{kind: dense}}
data:
  source: {data}
  tasks: [boolq, arc_easy, obqa]
  format: label
  max_length: 128
  validation_rows: 6
training:
  epochs: 2
  global_batch_size: 8
  micro_batch_tokens: 200
  learning_rate: 3e-2
  warmup_steps: 2
  checkpoint_every: 4
  validate_every: 5
  log_every: 2
evaluation: {{tasks: [boolq, arc_easy, obqa]}}
"""


@pytest.fixture(scope="session", autouse=True)
def own_rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's cache, but for the prepared rows: those of the tests would take their place."""
    users, own = home(), tmp_path_factory.mktemp("home")
    for name in ("data", "models", "tests", "wheels"):
        (users / name).mkdir(parents=True, exist_ok=True)
        (own / name).symlink_to(users / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOSLORA_HOME", str(own))
        yield


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``model/``, ``data/`` and ``recipe.yaml``. Read only."""
    root = tmp_path_factory.mktemp("world")
    make_model().save_pretrained(root / "model")
    tokenizer().save_pretrained(root / "model")
    for task in WORLD_TASKS:
        folder = root / "data" / TASKS[task].folder
        folder.mkdir(parents=True)
        for split, begin, end in (("train", 0, 30), ("test", 30, 50)):
            rows = [llm_adapters_row(example) for example in make_examples(task, 50)[begin:end]]
            (folder / f"{split}.json").write_text(json.dumps(rows, indent=4), encoding="utf-8")
    (root / "recipe.yaml").write_text(RECIPE.format(model=root / "model", data=root / "data"), encoding="utf-8")
    return root


@pytest.fixture
def recipe(world: Path) -> Callable[..., Recipe]:
    """The world's recipe, with overrides."""
    return lambda *overrides: load_recipe(world / "recipe.yaml", overrides)


@pytest.fixture(scope="session")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the world's recipe: 84 rows, 2 epochs, 21 steps, dropout 0.1. Copy it before changing it."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train_recipe(load_recipe(world / "recipe.yaml"), out=out)
    return out
