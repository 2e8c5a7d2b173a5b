"""Usage errors: one line with what is wrong, where, and the fix."""

import pytest

from cli_kit import run

TYPED = {
    "trian llama3-8b": ("trian", "'train'"),
    "xyzzy": ("xyzzy", "moslora --help"),
    "data sho obqa": ("sho", "moslora data", "'show'"),
    "train": ("moslora train", "recipe"),
    "compare": ("moslora compare", "A [B …]", "--help"),
    "merge a b": ("moslora merge", "b", "--out", "--help"),
    "ask runs/mine why": ("why", "did you mean --question why?", "--help"),
    "export a peft": ("peft", "did you mean --format peft?"),
    "eval a boolq": ("boolq", "did you mean --tasks boolq?"),
    "eval a data.source=b": ("data.source=b", "the recipe's file", "--help"),
    "train --recipe a.yaml": ("--recipe", "moslora train RECIPE"),
    "compare a --base": ("--base", "moslora compare", "option of moslora eval"),
    "train a.yaml --limit 5": ("--limit", "moslora train", "option of moslora eval"),
    "plan a.yaml --gpu 80GB": ("--gpu", "did you mean --gpu-memory?"),
    "eval --tusks boolq": ("--tusks", "--tasks"),
    "eval --xyz": ("--xyz", "moslora eval --help"),
    "train a.yaml --proceses 2": ("--proceses", "--processes"),
    "eval --protocol choise": ("--protocol", "choise", "'choice', 'cloze', 'generate'"),
    "eval --limit x": ("--limit", "number"),
    "eval --base=yes": ("--base", "not take a value"),
    "eval --processes 0": ("--processes", "1"),
    "compare a --margin x": ("--margin", "number"),
    "export a --format onnx": ("--format", "onnx", "'peft', 'gguf'", "--help"),
    "train --lr=1e-4 a.yaml": ("--lr", "training.learning_rate=1e-4"),
    "runs pyproject.toml": ("pyproject.toml", "folder"),
    "--versio": ("--versio", "--version"),
}


@pytest.mark.parametrize("typed", TYPED)
def test_a_usage_error_is_one_line(typed, capsys, monkeypatch, pytestconfig):
    monkeypatch.chdir(pytestconfig.rootpath)
    code, out, err = run(capsys, *typed.split())
    assert code == 2 and not out
    assert err.startswith("error: ") and err.count("\n") == 1
    assert [name for name in TYPED[typed] if name not in err] == [], err


def test_a_group_alone_shows_its_commands(capsys):
    code, _, err = run(capsys, "data")
    assert code == 2 and all(name in err for name in ("fetch", "show", "audit"))
