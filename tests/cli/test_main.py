"""The commands as a user types them, wrong turns included: one clear line, an exit code, nothing lost."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from card_kit import Card
from cli_kit import run
from compare_kit import CONDITIONS
from moslora.cli.table import print_table
from moslora.evaluation.journal import Journal
from moslora.processes.launch import PART
from moslora.recipe import list_recipes
from moslora.runs.conditions import TaskRecord
from moslora.runs.listing import table_of_runs
from moslora.runs.predictions import Prediction


def test_help_loads_no_tensor_library():
    """So that --help is fast."""
    check = (
        "import sys, moslora.cli; print(sorted({'torch', 'transformers', 'datasets', 'pydantic'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "given", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}, {"PYTORCH_CUDA_ALLOC_CONF": "x"}]
)
def test_a_command_sets_what_torch_reads_when_it_is_loaded(given):
    """Only what the user has not set; and importing the library sets nothing."""
    check = (
        "import os, sys, atexit, moslora.cli as cli; before = dict(os.environ)\n"
        "new = lambda: {key: value for key, value in os.environ.items() if before.get(key) != value}\n"
        "atexit.register(lambda: print(sorted(new()), 'torch' in sys.modules))\n"
        "sys.argv[1:] = ['--version']; cli.main()"
    )
    ours = ["GOMP_SPINCOUNT", "HF_DATASETS_DISABLE_PROGRESS_BARS", "KMP_BLOCKTIME", "PYTORCH_ALLOC_CONF"]
    theirs = {"OMP_WAIT_POLICY", "PYTORCH_CUDA_ALLOC_CONF", "RANK", *ours}
    environment = {key: value for key, value in os.environ.items() if key not in theirs} | given
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, env=environment)
    decides = {"OMP_WAIT_POLICY": ("GOMP_SPINCOUNT", "KMP_BLOCKTIME"), "PYTORCH_CUDA_ALLOC_CONF": ours[-1:]}
    left = {name for key in given for name in decides.get(key, (key,))}
    assert ran.stdout.splitlines()[-1] == f"{[name for name in ours if name not in left]} False"


def test_version_and_help_on_every_way_in(capsys):
    assert run(capsys, "--version")[:2] == (0, f"moslora {version('moslora')}\n")
    module = subprocess.run([sys.executable, "-m", "moslora", "-h"], capture_output=True, text=True, check=True).stdout
    assert module == run(capsys, "--help")[1]
    assert module.startswith("Usage: moslora ")


def test_the_name_alone_shows_the_way(capsys):
    code, said, _ = run(capsys)
    assert code == 0 and len(said.splitlines()) <= 20 and max(map(len, said.splitlines())) <= 80
    assert re.findall(r"moslora ([a-z-]+)", said)[:5] == ["train", "eval", "eval", "compare", "merge"]
    assert "moslora --help" in said


def test_train_eval_merge_export(capsys, world, tmp_path, monkeypatch):
    """The way from a recipe to a merged model, with the defaults of every command, and what each names as the next."""
    monkeypatch.chdir(tmp_path)
    data = ("--source", world / "data", "--tasks", "obqa")
    upload = "hf upload OWNER/small runs/small/{} --private --exclude moslora.yaml"
    for words, last in (
        (("train", world / "recipe.yaml", "training.epochs=1"), "next: moslora eval runs/small"),
        (("eval",), "next: moslora eval runs/small --base"),
        (("eval", "--base", "--tasks", "obqa", "--limit", "7"), "next: moslora compare runs/small"),
        (("merge", "runs/small"), upload.format("merged")),
        (("eval", "runs/small/merged", *data, "--dtype", "float32"), ""),
        (("export", "runs/small"), upload.format("peft")),
        (("import", "runs/small/peft"), "next: moslora eval runs/peft"),
        (("eval", "runs/peft", *data), ""),
    ):
        code, out, errors = run(capsys, *words)
        assert code == 0 and out.splitlines()[-1].endswith(last), (words, out, errors)
    (merged,) = Path("runs").glob("eval-merged-*/choice-label-float32/results.json")
    tuned = Path("runs/small/eval/choice-label-float32/results.json")
    base = Path("runs/small/eval/choice-label-float32-base/results.json")
    of_merged, of_tuned, of_base = (json.loads(path.read_text())["tasks"] for path in (merged, tuned, base))
    assert of_merged["obqa"]["accuracy"] == of_tuned["obqa"]["accuracy"]
    assert list(of_base) == ["obqa"] and of_base["obqa"]["n"] == 7
    (scores,) = Card(Path("runs/small/merged")).scores
    assert scores.rows["obqa"][0] == "20" and "macro average" in scores.rows
    assert Path("runs/peft/eval/choice-label-bfloat16/results.json").exists()


def test_next_command_can_be_pasted(capsys, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ("train", world / "recipe.yaml", "training.max_steps=2", "--out")
    (line,) = [line for line in run(capsys, *command, "my run")[1].splitlines() if line.startswith("next: ")]
    assert shlex.split(line) == ["next:", "moslora", "eval", "my run"]
    monkeypatch.setenv(PART, "1")
    assert "next: " not in run(capsys, *command, "other")[1]


def test_recipes_are_listed_and_copied(capsys, tmp_path):
    code, out, _ = run(capsys, "recipes")
    assert code == 0
    names = [line.partition("  ")[0] for line in out.splitlines()]
    assert names == [name for name, _ in list_recipes()], "two blanks behind the longest name"
    assert len({len(line) - len(line.partition("  ")[2].lstrip()) for line in out.splitlines()}) == 1
    code, out, _ = run(capsys, "recipes", "copy", "llama3-8b", tmp_path)
    assert code == 0 and (tmp_path / "llama3-8b.yaml").is_file()
    assert run(capsys, "recipes", "copy", "llama3-8b", tmp_path)[0] == 0, "the same again, as after a kill"


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_runs_are_readable_on_a_narrow_terminal(trained, tmp_path, monkeypatch):
    """No name is folded or cut, and no line is longer than the terminal; in a pipe each run is one line."""
    name = "a-name-of-forty-letters-with-3-numbers-12"
    shutil.copytree(trained, tmp_path / name)
    for evaluation in ("choice-label-bfloat16", "choice-label-bfloat16-base"):
        journal = Journal(tmp_path / name / "eval" / evaluation, CONDITIONS)
        journal.record({"obqa": TaskRecord()})
        for row, scores in enumerate([(-0.5, -0.7), (-0.7, -0.5)]):
            journal.keep([Prediction(f"obqa/test/{row}", "obqa", 0, row, scores)])
        journal.finish()
    monkeypatch.setenv("COLUMNS", "60")
    said = {}
    for kind in (Screen, io.StringIO):
        monkeypatch.setattr(sys, "stdout", kind())
        print_table(table_of_runs(tmp_path))
        said[kind] = sys.stdout.getvalue().splitlines()
    assert said[Screen][0] == name and max(map(len, said[Screen])) <= 60
    assert sum("50.0 (n 2)" in line for line in said[Screen]) == 2
    (line,) = [line for line in said[io.StringIO] if name in line]
    assert "21/21" in line and "choice-label-bfloat16-base 50.0 (n 2)" in line


@pytest.mark.parametrize("columns", [45, 80])
def test_no_number_of_a_table_is_folded(columns, monkeypatch):
    heads = ["task", "n", "majority class", "base", "lauf 1", "difference", "95 % interval", "p (Holm)"]
    cells = ["3,270", "55.0", "75.0", "45.0", "-30.00", "-57.27 to -2.73", ".211"]
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stdout", Screen())
    print_table([heads, *([name, *cells] for name in ("arc_challenge", "macro average"))])
    text = sys.stdout.getvalue()
    assert all(text.split().count(word) == 2 for cell in cells for word in cell.split())
    assert max(len(line.rstrip()) for line in text.splitlines()) <= columns


def test_dry_run_of_the_paper_setting_needs_no_hub(capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, _ = run(capsys, "train", "llama3-8b", "--dry-run")
    assert code == 0
    assert "28,352,512 trainable parameters of 8,058,613,760" in out
    assert "31,932 steps of 16 rows" in out
    assert "170,300 training rows" in out and "an estimate" in out


def test_a_warm_up_as_long_as_the_run_is_noted(capsys, world, tmp_path, monkeypatch):
    monkeypatch.setenv("MOSLORA_HOME", str(tmp_path))  # without rows that another test has made
    command = ("train", world / "recipe.yaml", "--dry-run", "training.max_steps=9")
    both = run(capsys, *command[:3], "training.max_steps=90", "training.epochs=2")[1]
    assert "21 steps of 8 rows" in both
    code, out, _ = run(capsys, *command, "training.warmup_steps=9")
    assert code == 0
    assert "\nnote: training.warmup_steps = 9 of 9 steps" in out and "(by training.max_steps)" in out
    assert "\n84 training rows of " in out, "rows of local files are counted"
    code, out, _ = run(capsys, *command, "training.warmup_steps=8")
    assert code == 0 and "note: training.warmup" not in out
