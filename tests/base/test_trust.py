"""Python code that comes with a base runs where somebody says so, and no file that is read as data is somebody.

=======================================  ==============================================================
what is read                             who may let the base's code run
=======================================  ==============================================================
a recipe given to train or plan          the recipe, what it extends, and model.trust_remote_code=true
an experiment's file                     the file
recipe.yaml of a run or an adapter       --trust-remote-code; train: model.trust_remote_code=true
moslora.yaml of a merged model           --trust-remote-code
a recipe for ``data show``, ``audit``    nobody; --model names another tokenizer
a file of tasks (``--tasks``)            nobody: the model is that of the target
adapter_config.json (``import``)         --trust-remote-code
=======================================  ==============================================================
"""

import itertools
import json
import shutil
import sys
from pathlib import Path

import pytest

from changes_kit import write_jsonl
from cli_kit import run

CODE = {
    "configuration_own.py": """
from pathlib import Path
from transformers import LlamaConfig
Path({mark!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "own"
""",
    "modeling_own.py": """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
""",
    "tokenization_own.py": """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
Path({mark!r}).touch()
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
""",
}
AUTO_MAP = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
NUMBERS = itertools.count()
"""For models with names of their own, so that no code of another test is taken for theirs."""


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    """Folder into which transformers copies the code: Python finds it once, for the whole process."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)
        patch.setattr(sys, "path", [folder, *sys.path])
        forget()
        yield
        forget()


@pytest.fixture
def mark(world, tmp_path, monkeypatch, capsys):
    """Run on a base with code of its own, in runs/own, and the file that shows whether the code has run since."""
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "the-code-ran"
    model = Path(shutil.copytree(world / "model", f"model-{next(NUMBERS)}"))
    for name, text in CODE.items():
        (model / name).write_text(text.format(mark=str(mark)))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": AUTO_MAP}))
    tokenizer = json.loads((model / "tokenizer_config.json").read_text()) | {"tokenizer_class": "OwnTokenizer"}
    tokenizer["auto_map"] = {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    settings = (f"model.name={model.resolve()}", "model.trust_remote_code=true", "training.max_steps=6")
    assert run(capsys, "train", world / "recipe.yaml", *settings, "name=own")[0] == 0
    assert "trust_remote_code: true" in Path("runs/own/adapter/recipe.yaml").read_text()
    mark.unlink()
    forget()
    return mark


def forget():
    """Forget the modules, which a process runs once."""
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


QUESTION = ("--question", "why", "--option", "a", "--option", "b")
COMMANDS = {
    "eval": (["eval", "runs/own", "--limit", "2"], "--trust-remote-code"),
    "ask": (["ask", "runs/own", *QUESTION], "--trust-remote-code"),
    "merge": (["merge", "runs/own"], "--trust-remote-code"),
    "export": (["export", "runs/own"], "--trust-remote-code"),
    "train": (["train", "runs/own", "--resume"], "model.trust_remote_code=true"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_stored_recipe_grants_no_trust(capsys, mark, command):
    typed, trusting = COMMANDS[command]
    if command == "train":  # of a finished run nothing is loaded
        shutil.rmtree("runs/own/adapter")
    code, _, errors = run(capsys, *typed)
    assert (code, len(errors.splitlines())) == (2, 1), errors
    assert "--trust-remote-code" in errors
    assert not mark.exists()
    code, _, errors = run(capsys, *typed, trusting)
    assert code == 0, errors
    assert mark.exists()


READ_AS_DATA = {
    "data show": ["data", "show", "tasks.yaml"],
    "data audit": ["data", "audit", "tasks.yaml"],
    "data show of training rows": ["data", "show", "rows.yaml"],
    "data show of a task": ["data", "show", "obqa", "--source", "{world}/data", "extends=tasks.yaml"],
    "data show of a run's recipe": ["data", "show", "runs/own/recipe.yaml", "--split", "train"],
    "eval": ["eval", "runs/own", "--tasks", "tasks.yaml"],
    "plan": ["plan", "runs/own/recipe.yaml"],
    "check": ["check", "runs/own/recipe.yaml"],
    "check of a merged model": ["check", "merged"],
    "train": ["train", "runs/own/recipe.yaml", "--dry-run"],
    "a recipe that extends a run's": ["train", "extends.yaml", "--dry-run"],
    "an override that extends a run's": [
        "plan",
        "rows.yaml",
        "model.trust_remote_code=false",
        "extends=runs/own/recipe.yaml",
    ],
    "a link to a run's": ["train", "linked.yaml", "--dry-run"],
    "a copy of a run's": ["train", "copied.yaml", "--dry-run"],
    "eval of a merged model": ["eval", "merged", "--limit", "2"],
    "ask a merged model": ["ask", "merged", *QUESTION],
    "reproduce": ["reproduce", "runs/own"],
    "import": ["import", "runs/own/peft", "--out", "imported"],
}


def write_what_is_read(capsys):
    """Write files that ask for trust themselves, beside the run of ``mark``."""
    model = json.loads(Path("runs/own/adapter/manifest.json").read_text())["base"]["name"]
    trusting = f"model: {{name: {model}, trust_remote_code: true}}\n"
    rows = [{"q": "why", "o": ["a", "b"], "answer": n % 2} for n in range(10)]
    write_jsonl(Path("rows.jsonl"), rows)
    Path("free.jsonl").write_text(json.dumps({"prompt": "why", "completion": "so"}) + "\n")
    Path("tasks.yaml").write_text(trusting + "tasks:\n  mine: {train: rows.jsonl, question: q, options: o}\n")
    Path("rows.yaml").write_text(trusting + "data: {source: ./free.jsonl}\n")
    Path("extends.yaml").write_text("extends: runs/own/recipe.yaml\n")
    Path("linked.yaml").symlink_to("runs/own/recipe.yaml")
    assert run(capsys, "recipes", "copy", "runs/own", "copied.yaml")[0] == 0
    assert run(capsys, "export", "runs/own", "--trust-remote-code")[0] == 0
    assert run(capsys, "merge", "runs/own", "--trust-remote-code", "--out", "merged")[0] == 0
    asking = Path("merged/moslora.yaml")
    asking.write_text(asking.read_text().replace("model:\n", "model:\n  trust_remote_code: true\n"))
    forget()


@pytest.mark.slow
def test_what_is_read_as_data_runs_no_code(capsys, mark, world):
    write_what_is_read(capsys)
    mark.unlink()
    found = {}
    for what, command in READ_AS_DATA.items():
        code, _, errors = run(capsys, *(word.replace("{world}", str(world)) for word in command))
        refused = code == 2 and ("Python code from the model's folder" in errors or what == "reproduce")
        found[what] = "ran" if mark.exists() else "refused" if refused else errors
        mark.unlink(missing_ok=True)
        forget()
    assert found == dict.fromkeys(READ_AS_DATA, "refused")
    assert run(capsys, *COMMANDS["eval"][0], "--trust-remote-code")[0] == 0
    mark.unlink()
    for command in ("compare", "report", "runs"):
        forget()
        run(capsys, command, "runs/own" if command != "runs" else "runs")
        assert not mark.exists(), command


def test_a_recipe_that_is_given_to_train_is_somebody(capsys, mark, world):
    """A recipe given to train grants trust, and so does what it extends."""
    model = json.loads(Path("runs/own/adapter/manifest.json").read_text())["base"]["name"]
    Path("base.yaml").write_text(
        f"extends: {world / 'recipe.yaml'}\nmodel: {{name: {model}, trust_remote_code: true}}\n"
    )
    Path("mine.yaml").write_text("extends: base.yaml\n")
    assert run(capsys, "plan", "mine.yaml")[0] == 0
    assert mark.exists()
