"""``data show`` and ``data audit`` of a recipe: its tasks, or else its training rows, free ones included."""

from pathlib import Path

import pytest

from changes_kit import write_jsonl
from cli_kit import run
from data_kit import sample
from message_kit import says
from moslora.prompts.instructions import llm_adapters_row

FREE = [{"prompt": f"Add {n} to {n}.", "completion": f"It is {2 * n}."} for n in range(5)]


@pytest.fixture
def sums(tmp_path, world, monkeypatch):
    """A recipe of free rows, and of a question of a set among them."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("sums.jsonl"), [*FREE, llm_adapters_row(sample("boolq", "train", 1)[0])])
    file = Path("sums.yaml")
    file.write_text(f"model: {{name: {world / 'model'}, dtype: float32}}\ndata: {{source: ./sums.jsonl}}\n")
    return file


def test_free_rows_are_shown(capsys, sums):
    code, out, _ = run(capsys, "data", "show", sums)
    assert code == 0 and says(out, "instruction/train/0", "| Add 0 to 0.", "| It is 0.", "boolq/train/5")
    assert out.count("options (") == 1  # a free row has none
    Path("others.csv").write_text("prompt,completion\nAdd 4 to 4.,It is 8.\n")
    code, out, _ = run(capsys, "data", "show", sums, "--source", "others.csv")
    assert code == 0 and says(out, "| Add 4 to 4.", "| It is 8.") and "boolq" not in out
    code, _, errors = run(capsys, "data", "show", sums, "--row", "4")
    assert code == 2 and says(errors, "--row 4", "boolq")


def test_free_rows_are_audited(capsys, sums):
    code, out, _ = run(capsys, "data", "audit", sums)
    rows = {line.split()[0]: line.split()[1:3] for line in out.splitlines() if line}
    assert code == 0 and rows["instruction"] == ["5", "0"] and rows["boolq"] == ["1", "0"]


def test_a_recipe_that_names_no_rows_declares_no_tasks(capsys, sums):
    Path("empty.yaml").write_text("model: {name: x}\n")
    for command in (("show", "empty.yaml"), ("audit", "empty.yaml")):
        code, _, errors = run(capsys, "data", *command)
        assert code == 2 and "declares no tasks" in errors
