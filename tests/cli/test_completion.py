"""The candidates of <Tab>, asked the way bash asks: the line so far in the environment, the candidates on stdout."""

import os
import subprocess
import sys

import pytest

from moslora.cli import main
from moslora.prompts.formats import FORMATS
from moslora.recipe import list_recipes
from moslora.tasks import COMMONSENSE


def question(line):
    """The environment in which the candidates for the last word of ``line`` are printed."""
    return {"_MOSLORA_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}


RECIPES = [name for name, _ in list_recipes()]
LINES = {
    "moslora train ": [*RECIPES, "runs/later", "runs/early"],
    "moslora train methods/controls/moslora": ["methods/controls/moslora-folded", "methods/controls/moslora-frozen"],
    "moslora train mi": ["mistral-7b"],
    "moslora experiment mi": ["mixer-ablation"],
    "moslora recipes copy smol": ["smollm2-135m"],
    "moslora recipes show runs/": ["runs/later", "runs/early"],
    "moslora eval ": ["runs/later", "runs/early"],
    "moslora merge runs/e": ["runs/early"],
    "moslora eval --tasks ": [*COMMONSENSE, "passages"],
    "moslora eval --tasks arc_easy,obqa,arc": ["arc_easy,obqa,arc_challenge"],
    "moslora data show w": ["winogrande"],
    "moslora eval --protocol ": ["choice", "cloze", "generate"],
    "moslora eval --format ": [*FORMATS, "chat"],
    "moslora merge --onto d": ["dequantized"],
}


@pytest.mark.parametrize("line", LINES)
def test_tab(line, tmp_path, monkeypatch, capsys):
    for age, run in enumerate(("later", "early", "nothing")):
        folder = tmp_path / "runs" / run
        folder.mkdir(parents=True)
        if run != "nothing":
            (folder / "recipe.yaml").touch()
            os.utime(folder / "recipe.yaml", (1_000 - age, 1_000 - age))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["moslora"])
    for name, value in question(line).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out.split() == LINES[line]


@pytest.mark.parametrize("line", ["moslora train ll", "moslora eval ", "moslora eval --tasks a"])
def test_tab_loads_no_tensor_library(line, tmp_path):
    code = (
        "import sys; sys.argv = ['moslora']; from moslora.cli import main\n"
        "try: main()\n"
        "finally: print({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | question(line), cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.stderr.strip() == "set()"
    assert ran.returncode == 0 and bool(ran.stdout.strip()) == (line != "moslora eval ")
