"""Weights & Biases, offline: what its files hold."""

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli_kit import run as cli
from moslora.evaluation import Evaluation
from moslora.runs.run import Run
from moslora.training import train_recipe
from training_kit import MakeRecipe

pytest.importorskip("wandb", reason="wandb is an extra")
import wandb
from wandb.proto.wandb_internal_pb2 import Record

PROJECT = "tracking.wandb_project=test"
SIX = ("training.max_steps=6", "training.checkpoint_every=4", "training.log_every=1", "data.validation_rows=0")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def pieces(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format: blocks of 32 KiB, records cut at their ends."""
    place, whole = 7, b""  # after the file's own header
    while place < len(content):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def records(folder: Path) -> dict[str, Any]:
    """The id of an offline run, its steps with a loss, and its summary."""
    (path,) = folder.glob("run-*.wandb")
    found: dict[str, Any] = {"id": "", "steps": [], "summary": {}}
    for piece in pieces(path.read_bytes()):
        record = Record.FromString(piece)
        if record.run.run_id:
            found["id"] = record.run.run_id
        row = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        if "loss" in row:
            found["steps"].append(json.loads(row["step"]))
        for item in record.summary.update:
            found["summary"][item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    return found


@pytest.mark.slow
def test_a_resumed_run_and_its_evaluations_go_on_in_one_run(
    recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train_recipe(recipe(PROJECT, *SIX), out=run)
    for later in ("adapter", "checkpoints/step-6"):
        shutil.rmtree(run / later)
    train_recipe(recipe(PROJECT, *SIX), out=run, resuming=True)
    code, _, errors = cli(capsys, "eval", run, "--limit", 4)
    assert code == 0, errors
    wandb.teardown()  # waits for the process that writes the files; `finish` may return before its last block is there
    first, second, third = (records(path) for path in sorted((run / "wandb").glob("offline-run-*")))
    assert first["id"] == second["id"] == third["id"] == Run(run).facts["wandb_id"]
    assert first["steps"] == [1, 2, 3, 4, 5, 6] and second["steps"] == [5, 6]
    results = Evaluation(run / "eval" / "rank-label-float32").results
    assert third["summary"]["eval/rank-label-float32/boolq"] == results.tasks["boolq"].accuracy
    assert third["summary"]["eval/rank-label-float32/macro"] == results.macro.accuracy


def test_scores_stay_where_wandb_fails(
    recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    train_recipe(recipe(PROJECT, "training.max_steps=3"), out=run)

    def unreachable(**options: object) -> None:
        raise wandb.errors.CommError("no route to host")

    monkeypatch.setattr(wandb, "init", unreachable)
    code, said, errors = cli(capsys, "eval", run, "--limit", 2)
    assert code == 0 and "note: the scores are not on Weights & Biases: no route to host" in said, errors
    assert Run(run).facts["results"]["rank-label-float32"]["questions"] == 6
