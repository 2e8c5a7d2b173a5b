"""run.json, the card of a run."""

import json
import os
import platform
import shutil
from importlib.metadata import version

import pytest
import torch
from safetensors.torch import load_file

from forked_kit import python
from moslora.base.identity import fingerprint
from moslora.recipe import load_recipe
from moslora.runs.manifest import read_manifest
from moslora.runs.run import Run
from moslora.training import train_recipe
from training_kit import cut_after


def test_the_card_says_how_the_run_was_made(trained, world):
    card = Run(trained).facts
    manifest = read_manifest(trained / "adapter")
    assert card["base_fingerprint"] == manifest["base"]["fingerprint"] == fingerprint(str(world / "model"))
    assert card["data"] == manifest["data"] and card["steps"] == 21
    weights = load_file(trained / "adapter" / "adapter.safetensors")
    assert card["trainable_parameters"] == sum(value.numel() for value in weights.values())
    assert all(card["versions"][it] == version(it) for it in ("moslora", "torch"))
    assert card["versions"]["python"] == platform.python_version()
    assert card["hardware"]["threads"] == torch.get_num_threads()
    assert {"attention", "norm", "MLP", "dropout", "common beginning of rows"} < card["kernels"].keys()
    logged = [row for row in Run(trained).metrics if "loss" in row]
    assert card["seconds"] == logged[-1]["seconds"] > logged[0]["seconds"] > 0
    assert card["peak_memory_gb"] == max(row["peak_memory_gb"] for row in logged)


def test_seconds_of_a_resumed_run_continue(trained, world, tmp_path):
    run = cut_after(20, shutil.copytree(trained, tmp_path / "run"))
    lines = []
    for row in Run(run).metrics:
        if "seconds" in row:
            row = {**row, "seconds": 1000.0 * row["step"]}
        lines.append(json.dumps(row))
    (run / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 21, "lo']))
    train_recipe(load_recipe(world / "recipe.yaml"), out=run, resuming=True)
    assert 20_000 < Run(run).facts["seconds"] < 20_900


@pytest.mark.slow
def test_two_processes_add_to_one_card(tmp_path):
    Run(tmp_path).add_facts(kept=1)
    program = "import sys; from pathlib import Path; from moslora.runs.run import Run\n"
    program += "for n in range(40): Run(Path(sys.argv[1])).add_facts(made={f'{sys.argv[2]}{n}': n})"
    both = [python("-c", program, tmp_path, name, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}) for name in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    assert len(Run(tmp_path).facts["made"]) == 80 and Run(tmp_path).facts["kept"] == 1
