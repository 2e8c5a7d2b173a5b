"""Output in any encoding: every command ends as it would on a terminal that knows all signs."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from click import Command

from moslora.cli import app, main
from moslora.recipe import load_recipe
from moslora.runs.run import Run

ASK = "--question größer? --option ja --option nö"
COMMANDS = {
    "ask": f"ask runs/größe {ASK}",
    "compare": "compare runs/größe",
    "data audit": "data audit obqa --source {world}/data --model {world}/model",
    "data fetch": "data fetch --tasks boolq --source {world}/data",
    "data show": "data show obqa --source {world}/data --model {world}/model",
    "env": "env",
    "eval": "eval runs/größe --limit 4",
    "eval --base": "eval runs/größe --limit 4 --base",
    "experiment": "experiment",
    "export": "export runs/größe",
    "import": "import runs/größe/peft --out runs/again",
    "merge": "merge runs/größe",
    "plan": "plan größe.yaml",
    "predict": "predict runs/größe größe.csv --task übung.yaml",
    "recipes copy": "recipes copy llama3-8b größer.yaml",
    "recipes schema": "recipes schema",
    "recipes show": "recipes show größe.yaml",
    "recipes": "recipes",
    "report": "report runs/größe",
    "runs": "runs",
    "strength": "strength runs/größe --set 0.8 --out runs/schwächer",
    "train": "train größe.yaml training.max_steps=2 adapter.scaling=rslora",
}
FIRST = ("train", "eval", "eval --base", "export")
"""They make what the others read."""

ELSEWHERE = {"check", "quickstart", "reproduce", "verify"}
"""Commands that begin processes of their own, which print as `train` does, and minutes of work, or need a server."""


@pytest.fixture
def printed(monkeypatch):
    """``printed(encoding, command)``: the exit code, and what standard output and error got, decoded."""

    def run(encoding: str, *words: str) -> tuple[int, str]:
        output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        errors = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")  # as Python opens it
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["moslora", *words])
            patch.setattr(sys, "stdout", output)
            patch.setattr(sys, "stderr", errors)
            try:
                main()
                code = 0
            except SystemExit as ended:
                code = int(ended.code or 0)
        said = b""
        for stream in (output, errors):
            stream.flush()
            said += stream.buffer.getvalue()
        return code, said.decode(encoding)

    return run


def names(command: Command, above: str = "") -> set[str]:
    """The full names of the commands below ``command`` that do something by themselves."""
    found = set()
    for name, below in getattr(command, "commands", {}).items():
        found |= names(below, f"{above}{name} ") if hasattr(below, "commands") else {f"{above}{name}"}
    return found


def test_every_command_is_tried():
    assert names(typer.main.get_command(app)) | {"recipes", "eval --base"} == {*COMMANDS, *ELSEWHERE}


@pytest.mark.slow
def test_every_command_prints_in_ascii(printed, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(world / "recipe.yaml", "größe.yaml")
    text = Path("größe.yaml").read_text(encoding="utf-8")
    Path("größe.yaml").write_text(text.replace("name: small", "name: größe"), encoding="utf-8")
    Path("größe.csv").write_text("text\ngrößer?\n", encoding="utf-8")
    task = "tasks: {übung: {test: x, question: text, options: [ja, nö]}}"
    Path("übung.yaml").write_text(task, encoding="utf-8")
    for name in dict.fromkeys((*FIRST, *COMMANDS)):
        code, said = printed("ascii", *COMMANDS[name].format(world=world).split())
        assert code == 0, said
    assert Run(Path("runs/größe")).recipe.name == "größe"
    text = Path("runs/größe/merged/README.md").read_text(encoding="utf-8")
    assert "größe" in text


def test_the_schema_stays_valid_json(printed):
    plain, whole = (json.loads(printed(encoding, "recipes", "schema")[1]) for encoding in ("ascii", "utf-8"))
    assert plain == whole and "ΔW" in json.dumps(whole, ensure_ascii=False)


def test_help_escapes_the_signs_that_an_encoding_lacks(printed):
    assert "ΔW = s · B · M · A" in printed("utf-8", "--help")[1]
    assert r"\u0394W = s · B · M · A" in printed("latin-1", "--help")[1]


def test_an_error_names_a_path_that_is_not_text(printed):
    code, said = printed("utf-8", "recipes", "show", os.fsdecode(b"\xff.yaml"))
    assert code == 2 and said.startswith("error: ") and said.count("\n") == 1


def test_files_are_utf8_in_a_locale_that_is_not(tmp_path):
    """Python itself would read and write ASCII there, and so would the system's names of files."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    recipe = "# größe\nextends: smollm2-135m\nname: größe\n"
    (tmp_path / "a.yaml").write_text(recipe, encoding="utf-8")
    for command, expected in (("copy a.yaml b.yaml", "b.yaml"), ("show a.yaml", "gr\\xf6\\xdfe")):
        ran = subprocess.run(
            [sys.executable, "-m", "moslora", "recipes", *command.split()],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            check=True,
        )
        assert expected in ran.stdout.decode("ascii")
    assert load_recipe(tmp_path / "b.yaml").name == "größe"
