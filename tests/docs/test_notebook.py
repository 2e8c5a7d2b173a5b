"""The notebook for a first GPU: its cells run here as plain Python."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moslora.recipe import load_recipe

NOTEBOOK = json.loads((Path(__file__).parents[2] / "notebooks/first_gpu.ipynb").read_text(encoding="utf-8"))
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_cells_end_in_one_report(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIRST_GPU_RECIPE", str(world / "recipe.yaml"))
    names: dict[str, object] = {}
    for cell in CELLS:
        exec(cell, names)
    report = json.loads(Path("first_gpu.json").read_text(encoding="utf-8"))
    check, plan, train = report["commands"]
    assert (check["words"][0], plan["code"], train["code"]) == ("check", 0, 0)
    assert report["check"]["step"] and report["check"]["findings"]
    assert any(line.startswith("total") for line in report["plan"])
    assert [row["step"] for row in report["metrics"] if "tokens_per_second" in row] == [*range(1, 31)]


@pytest.mark.parametrize(
    ("memory", "major", "size", "dtype", "checkpointing"),
    [
        (15.8e9, 7, "0.5B", "float16", False),
        (23.5e9, 8, "1.5B", "bfloat16", False),
        (42e9, 8, "7B", "bfloat16", True),
        (84e9, 9, "7B", "bfloat16", False),
    ],
)
def test_the_model_suits_a_t4_an_l4_an_a100_and_an_h100(monkeypatch, memory, major, size, dtype, checkpointing):
    gpu = SimpleNamespace(name="GPU", total_memory=memory, major=major, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    (cell,) = (cell for cell in CELLS if "get_device_properties" in cell)
    names = {"TRIED": None, "report": {}}
    exec(cell, names)
    model = load_recipe(names["run"][0], names["run"][1:]).model
    assert (model.name, model.dtype) == (f"Qwen/Qwen2.5-{size}", dtype)
    assert model.gradient_checkpointing == checkpointing
