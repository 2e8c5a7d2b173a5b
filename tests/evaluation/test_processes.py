"""Questions shared out among processes: the results of one, byte for byte; with one lost, what is done is kept."""

from pathlib import Path

import pytest

from moslora.evaluation.target import evaluate_target, open_target
from training_kit import in_two_processes, moslora

LOSES_ONE = """
import os, signal
from moslora import cli
from moslora.evaluation.rank import Rank
if os.environ["RANK"] == "1":
    Rank.score = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
cli.main()
"""


@pytest.mark.slow
def test_two_processes_score_as_one_also_after_one_was_lost(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_target(open_target(str(trained)), out=tmp_path / "one")
    monkeypatch.setenv("PET_MONITOR_INTERVAL", "3")  # so that torchrun lets the process that lives speak
    script = tmp_path / "loses_one.py"
    script.write_text(LOSES_ONE)
    command = ("eval", trained, "--out", tmp_path / "two")
    with pytest.raises(AssertionError) as failed:
        in_two_processes(script, *command)
    assert "another process has ended" in str(failed.value) and "the same command continues" in str(failed.value)
    kept = (tmp_path / "two" / "predictions.jsonl").read_text().splitlines()
    assert len(kept) == 20, "the block of the process that lived"

    continued = moslora(*command, "--processes", 2)
    said, errors = continued.communicate(timeout=120)
    assert continued.returncode == 0 and errors == "", errors
    assert said.count("macro average") == 1 and "2 processes" in said
    for name in ("results.json", "settings.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    one, two = ((tmp_path / run / "predictions.jsonl").read_text().splitlines() for run in ("one", "two"))
    assert two[:20] == kept and sorted(one) == sorted(two)
