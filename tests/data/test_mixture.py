"""LLM-Adapters' training file: known by git under any name; other copies are named as such."""

import json
import subprocess
from pathlib import Path

import pytest

from evaluation_kit import make_examples
from moslora.data import hub, mixture
from moslora.data.sources import MIXTURE, differences, load_training
from moslora.prompts import llm_adapters_row
from moslora.tasks import COMMONSENSE, TASKS

ALL = tuple(TASKS.values())
ROWS = [llm_adapters_row(example) for task in COMMONSENSE for example in make_examples(task, 5)]


def written(path: Path) -> str:
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    return str(path)


def test_their_own_file_is_known_by_git_under_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("commonsense_170k.json", "c170k.json"):
        source = written(tmp_path / name)
        git = subprocess.run(["git", "hash-object", source], capture_output=True, text=True, check=True)
        monkeypatch.setattr(mixture, "BLOB_ID", git.stdout.strip())
        assert len(load_training(ALL, source=source)) == len(ROWS)
        (line,) = differences(source, COMMONSENSE)
        assert "LLM-Adapters' own" in line and git.stdout[:12] in line


def test_another_file_of_that_name_is_told_and_one_of_another_name_is_the_users_own(tmp_path: Path) -> None:
    (line,) = differences(written(tmp_path / "commonsense_170k.json"), COMMONSENSE)
    assert "not LLM-Adapters' own" in line and mixture.BLOB_ID[:12] in line
    assert differences(written(tmp_path / "mine.json"), COMMONSENSE) == []


def test_the_hubs_copy_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = []
    monkeypatch.setattr(hub, "_rows", lambda *where, **options: expected.append(options["expected"]) or ROWS)
    assert len(load_training(ALL, source=MIXTURE)) == len(ROWS) and expected == [170_420]
    assert differences(MIXTURE, COMMONSENSE)[0].startswith(MIXTURE)
