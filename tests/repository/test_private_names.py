"""Private names of torch and transformers: one function looks them up, and the program works without each."""

import ast
import importlib
import json
import pkgutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import moslora
from cli_kit import run
from moslora.borrowed import WITHOUT, borrowed
from moslora.processes.devices import has_flash_attention
from training_kit import in_processes, losses_logged, weights_of

PUBLIC = {"_asdict", "_exit", "_replace"}
"""Of os and of named tuples: documented."""

DOCUMENTED = {"_python_dispatch", "_pytree", "_subclasses"}
"""Modules of torch that its documentation imports from."""

OF_VLLM = {"_adapter_manager"}
"""Read where vLLM is installed, which the tests do without; there is no public way to a worker's adapters."""

OF_A_GROUP = {name for name in WITHOUT if "distributed" in name or "foreach" in name}
"""Names that several processes use."""


def test_private_names_are_looked_up_in_one_place():
    nodes = []
    for path in Path(moslora.__file__).parent.rglob("*.py"):
        nodes += ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name)}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and not node.level:
            used |= {part for part in (node.module or "").split(".") if part.startswith("_") and part not in own}
            used |= {alias.name for alias in node.names}
    private = {name for name in used if name.startswith("_") and not name.startswith("__")}
    assert private - own == PUBLIC | DOCUMENTED | OF_VLLM


@pytest.mark.skipif(torch.__version__ >= "2.14", reason="written for older versions of torch")
def test_borrowed_names_exist():
    assert [name for name in WITHOUT if borrowed(name) is None] == []


def delete(name: str, replace=setattr) -> None:
    """Make `borrowed` find nothing under ``name``, for all modules of moslora."""
    for module in pkgutil.walk_packages(moslora.__path__, "moslora."):
        if module.name != "moslora.__main__":
            with suppress(ImportError):  # of Triton, or vLLM
                importlib.import_module(module.name)
    for module in modules():
        if getattr(module, "borrowed", None) is borrowed and module.__name__ != "moslora.borrowed":
            replace(module, "borrowed", lambda asked: None if asked == name else borrowed(asked))
    forget()


def forget() -> None:
    """Empty the caches, which hold what was decided with or without a name."""
    for module in modules():
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


def modules():
    return [module for name, module in [*sys.modules.items()] if name.startswith("moslora.")]


@pytest.fixture
def deleted(monkeypatch):
    yield lambda name: delete(name, monkeypatch.setattr)
    monkeypatch.undo()
    forget()


def numbers(world, out, capsys, *overrides, lost=None):
    """Losses of a training, log-probabilities of a scoring and weights of a merge; ``lost`` in its two processes."""
    train = ("train", world / "recipe.yaml", "--out", out / "run", "training.epochs=null", "training.max_steps=4")
    if lost in OF_A_GROUP:
        script = out / "train.py"
        script.write_text(
            "from moslora import cli\nfrom tests.repository.test_private_names import delete\n"
            f"delete({lost!r})\ncli.main()\n"
        )
        in_processes(script, *train, *overrides)
    else:
        assert run(capsys, *train, *overrides)[0] == 0
    evaluate = ("eval", out / "run", "--limit", "8", "--out", out / "scores")
    merge = ("merge", out / "run", "--out", out / "merged")
    plan = ("plan", out / "run" / "recipe.yaml", "--gpu-memory", "24GB")
    for command in (evaluate, merge, plan):
        code, _, err = run(capsys, *command)
        assert code == 0, err
    rows = (out / "scores" / "predictions.jsonl").read_text().splitlines()
    return {
        "losses": torch.tensor([row["loss"] for row in losses_logged(out / "run")]),
        "scores": torch.tensor([score for row in rows for score in json.loads(row)["scores"]]),
        **weights_of(out / "merged"),
    }


@pytest.fixture(scope="module")
def complete(world, tmp_path_factory):
    """Numbers with all names, by overrides of the recipe."""
    found = {}

    def of(capsys, *overrides):
        if overrides not in found:
            found[overrides] = numbers(world, tmp_path_factory.mktemp("complete"), capsys, *overrides)
        return found[overrides]

    return of


@pytest.mark.parametrize("name", WITHOUT)
def test_commands_compute_the_same_without_a_borrowed_name(name, world, complete, deleted, tmp_path, capsys):
    overrides = ["adapter.dropout=0"]
    rtol = 1e-3
    if name == "torch._int_mm":
        overrides.append("model.quantization=int8")
        rtol = 5e-2  # its inputs are rounded to 8 bits
    expected = complete(capsys, *overrides)
    if name not in OF_A_GROUP:
        deleted(name)
    found = numbers(world, tmp_path, capsys, *overrides, lost=name)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert torch.allclose(value, expected[key], rtol=rtol, atol=1e-4), key
    assert json.loads((tmp_path / "run" / "run.json").read_text())["engine"] == "own"
    assert has_flash_attention(torch.device("meta")) == ("_flash_attention_" not in name or "scaled" in name)
