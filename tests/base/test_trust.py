"""Python code that comes with a base runs where somebody says so, and no folder's own recipe is somebody."""

import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
}
AUTO_MAP = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
NUMBERS = itertools.count()
"""For models with names of their own, so that no code of another test is taken for theirs."""


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One folder for what transformers copies the code into: Python finds it once, for the whole process."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)
        patch.setattr(sys, "path", [folder, *sys.path])
        forget()
        yield
        forget()


@pytest.fixture
def mark(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run on a base with code of its own, in runs/own, and the file that shows whether the code has run since."""
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "the-code-ran"
    model = Path(shutil.copytree(world / "model", f"model-{next(NUMBERS)}"))
    for name, text in CODE.items():
        (model / name).write_text(text.format(mark=str(mark)))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": AUTO_MAP}))
    settings = (f"model.name={model.resolve()}", "model.trust_remote_code=true", "training.max_steps=6")
    assert run(capsys, "train", world / "recipe.yaml", *settings, "name=own")[0] == 0
    assert "trust_remote_code: true" in Path("runs/own/adapter/recipe.yaml").read_text()
    mark.unlink()
    forget()
    return mark


def forget() -> None:
    """The modules, which a process runs once."""
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
def test_a_stored_recipe_grants_no_trust(capsys: pytest.CaptureFixture[str], mark: Path, command: str) -> None:
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
