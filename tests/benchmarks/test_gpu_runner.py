"""benchmarks/gpu/runner.py: what is found stays, whatever becomes of the part that found it; and the race is fair."""

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DataCollatorWithFlattening

from benchmarks.gpu import alone
from benchmarks.gpu import runner as gpu
from benchmarks.speed.contestants import features, our_loop, padded
from moslora.adapters import inject
from moslora.data.encode import Encoded
from moslora.recipe import TrainingSection
from reference import tiny_llama

STUBBORN = """
import json, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # its child inherits that
child = subprocess.Popen(["sleep", "600"])
with open(sys.argv[1], "a") as file:
    for found in ({"first": 1, "child": child.pid}, {"first": 2}):
        file.write(json.dumps({"part": "stubborn", "found": found}) + "\\n")
    file.write('{"part": "stubborn", "fou')
print("said", flush=True)
time.sleep(600)
"""


def runs(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return not state.startswith("Z") and bool(state.strip())


@pytest.mark.slow
def test_an_ended_part_keeps_what_it_found_and_leaves_nothing_running(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 0.3)
    records, log = tmp_path / "gpu.jsonl", tmp_path / "gpu.log"
    command, until = [sys.executable, "-c", STUBBORN, str(records)], time.monotonic() + 4
    ended = gpu.run_part(command, until=until, log=log, environment=os.environ)
    assert ended["limit"] == pytest.approx(4, abs=0.1) and 4 <= ended["seconds"] < 8 and "error" not in ended
    found = gpu.findings(records, "stubborn")
    assert found["first"] == 2 and gpu.findings(records, "another") == {} and log.read_text() == "said\n"
    assert not runs(found["child"])


def test_all_parts_end_in_time_and_are_summed_up(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried/__init__.py", "")
    speeds = {"ours": 8.0, "peft:rows": 4.0, "peft:length": 10.0}
    asked: list[float] = []

    def run_part(command: list[str], *, until: float, log: Path, environment: dict[str, str]) -> dict[str, Any]:
        ours, carried = map(Path, environment["PYTHONPATH"].split(os.pathsep)[:2])
        assert ours == gpu.ROOT / "src" and (carried / "carried" / "__init__.py").exists()
        assert environment.get("CUDA_VISIBLE_DEVICES") == "3"
        assert environment["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
        asked.append(until - time.monotonic())
        part, records = command[-2:]
        found = {"rows_per_second": speeds[part]} if part in speeds else {"failed": int(part == "tests")}
        with open(records, "a") as file:
            file.write(json.dumps({"part": part, "found": found}) + "\n")
        return {"seconds": 1.0}

    monkeypatch.setattr(gpu, "run_part", run_part)
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    assert gpu.main(wheels=tmp_path) == 1  # a test failed
    assert len(asked) == len(gpu.LIMITS) - 1 and max(asked) == pytest.approx(570, abs=1)
    whole = sum(limit for part, limit in gpu.LIMITS.items() if part != "sharded")
    assert asked[0] == pytest.approx(gpu.LIMITS["first"] * 570 / whole, abs=1)  # as all of them
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["ours_is"] == {"peft:rows": 2.0, "peft:length": 0.8}
    assert result["parts"]["tests"] == {"failed": 1, "seconds": 1.0} and "sharded" not in result["parts"]
    assert result["wheels"] == ["carried-1.0-py3-none-any.whl"]
    asked.clear()
    gpu.main(wheels=tmp_path, only=("machine", "ours"), seconds=15)
    assert asked == pytest.approx([6, 15], abs=1)


TEXTS = [torch.randint(3, 320, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (5, 17, 9)]
ROWS = [Encoded(str(number), "none", text, text, truncated=False) for number, text in enumerate(TEXTS)]


def loss_of_each_alone(model: Any) -> Tensor:
    """The mean over all labels, by transformers' own loss."""
    losses = [model(torch.tensor([text]), labels=torch.tensor([text])).loss * (len(text) - 1) for text in TEXTS]
    return torch.stack(losses).sum().detach() / sum(len(text) - 1 for text in TEXTS)


def test_the_contestants_have_one_loss():
    """Rows end to end, and padded without a mask."""
    model = tiny_llama()
    model.config.use_cache = False  # as the Trainer sets it: with a cache rows end to end would see each other
    with torch.no_grad():
        found = [model(**together(features(ROWS))).loss for together in (padded, DataCollatorWithFlattening())]
    torch.testing.assert_close(torch.stack(found), loss_of_each_alone(model).expand(2))


def test_the_loop_in_the_race_takes_its_rows_in_order_again_and_again():
    """Two steps of three rows, twice; at a rate of 0 the losses come again."""
    model = tiny_llama()
    expected = float(loss_of_each_alone(model))
    inject(model, rank=4, alpha=8, mixer={"kind": "dense"}, target_modules=["q_proj", "v_proj", "down_proj"])
    losses = []
    report = {"report": lambda step, *, loss, **_: losses.append(loss)}
    settings = TrainingSection(learning_rate=1e-30, warmup_steps=0)
    our_loop(model, settings, [*ROWS, *ROWS[:1] * 3], steps=4, each=3, **report)(first_step=0)
    assert losses[::2] == pytest.approx([expected] * 2, rel=1e-5)
    assert losses[1] == pytest.approx(losses[3]) and abs(losses[1] - expected) > 1e-3


def test_products_alone_are_timed_beside_their_estimate():
    found = {}
    alone.products(lambda **new: found.update(new))
    assert len(found) == 5
    for name, (outputs, inputs) in {"gate, up": (128, 64), "k, v": (32, 64), "output layer": (1024, 64)}.items():
        for one in found[f"{name}, 20 tokens"].values():
            assert one["tflops"] * one["ms"] == pytest.approx(2 * 20 * outputs * inputs / 1e9)
            assert 0 < one["estimate_ms"][0] <= one["estimate_ms"][1]


def test_triton_alone_is_skipped_on_a_cpu():
    found = {}
    alone.kernels(lambda **new: found.update(new))
    assert found.keys() == {"skipped"}
