"""moslora reproduce: what it says of a run that was trained again."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli_kit import run as cli
from moslora.errors import MosloraError
from moslora.experiment.reproduce import changes, first_difference, relative_distance, verdict
from moslora.runs.manifest import WEIGHTS
from moslora.runs.run import Run
from training_kit import adapter, same_bits, sign


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def moved(run: Path, share: float) -> None:
    """Moves all weights of a finished run by this share of their norm."""
    path = run / "adapter" / WEIGHTS
    weights = load_file(path)
    save_file({key: value * (1 + share) for key, value in weights.items()}, path)
    sign(path.parent)


@pytest.mark.slow
def test_a_run_is_reproduced_bit_for_bit(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, said, errors = cli(capfd, "reproduce", run)
    assert code == 0, errors
    again = run.with_name("run-again")
    assert "bitwise equal" in said.splitlines()[-1] and "every metric" in said.splitlines()[-1]
    assert same_bits(adapter(run), adapter(again)) and "note: threads" not in said
    assert Run(again).facts["hardware"] == Run(run).facts["hardware"]
    code, said, errors = cli(capfd, "reproduce", run)  # again: it is there, and only compared
    assert code == 0 and "bitwise equal" in said


@pytest.mark.parametrize(("share", "code"), [(1e-6, 0), (0.1, 1)])
def test_weights_that_differ_are_told(run: Path, tmp_path: Path, share: float, code: int) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    moved(other, share)
    if code:
        with pytest.raises(MosloraError, match=r"differ by 0\.1 of"):
            verdict(Run(run), Run(other))
    else:
        assert "not bitwise: the weights differ by 9.5e-07 of" in verdict(Run(run), Run(other))


def test_the_first_step_that_differs_is_told_with_both_values(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    rows = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    before = {row["step"]: row["grad_norm"] for row in rows if "loss" in row}[12]
    for row in rows:
        if "loss" in row:
            row |= {"seconds": 0.0, "tokens_per_second": 1.0}
            row["grad_norm"] += (row["step"] >= 12) * 0.5
            row["loss"] += (row["step"] >= 14) * 0.5
    (other / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = f"first difference at step 12: grad_norm was {before}, is {before + 0.5}"
    assert first_difference(Run(run), Run(other)) == expected
    (other / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    assert "is None" in str(first_difference(Run(run), Run(other)))


def test_the_distance_is_relative_to_all_weights() -> None:
    before = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    after = {"a": torch.tensor([3.0, 0.3]), "b": torch.tensor([[4.4]])}
    assert relative_distance(before, after) == pytest.approx(0.1, rel=1e-6)
    assert relative_distance(before, {"a": before["a"]}) == float("inf")


def test_other_versions_and_hardware_are_told_beforehand(run: Path) -> None:
    facts = Run(run).facts
    uncommitted = ["the code had changes that were not committed"] * bool((facts["git"] or {}).get("dirty"))
    assert changes(facts, device="cpu", recipe=Run(run).recipe) == uncommitted
    Run(run).add_facts(versions={"torch": "1.0"}, hardware={"device": "abacus", "threads": 99}, git={"dirty": True})
    told = changes(Run(run).facts, device="cpu", recipe=Run(run).recipe)
    assert f"versions.torch was '1.0', is {version('torch')}" in told and any("abacus" in line for line in told)
    assert not any("threads" in line for line in told) and "not committed" in told[-1]
