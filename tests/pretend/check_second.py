"""The second GPU of a machine: nothing of its process is on the first, and Liger-Kernel is tried where it is used."""

import importlib.util
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

import pretend_kit
from moslora.errors import MosloraError
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.kernels import liger
from moslora.processes.group import take_gpu
from moslora.recipe import Recipe
from moslora.training import train_recipe
from pretend_kit import ANOTHER, DEVICE, MODULE, by_triton, watch

Make = Callable[..., Recipe]
SHORT = ("training.epochs=null", "training.max_steps=3", "training.log_every=1", "training.validate_every=3")


@pytest.fixture(autouse=True)
def liger_is_there(monkeypatch):
    """Its kernels as the pretend device has them, not tried yet; the process has just begun."""
    found = importlib.util.find_spec
    names = ("triton", "liger_kernel")
    monkeypatch.setattr(liger, "find_spec", lambda name: name in names or found(name))
    monkeypatch.setattr("moslora.training.run_card.packages_distributions", lambda: {"liger_kernel": ["torch"]})
    liger.fault.cache_clear()
    MODULE.current = 0
    pretend_kit.used.clear()
    yield
    liger.fault.cache_clear()
    liger._fails_elsewhere.clear()


def replaced(monkeypatch: pytest.MonkeyPatch, name: str, kernel: Callable[..., Any]) -> None:
    where = f"liger_kernel.ops.{name.partition('_')[0]}"
    if name.startswith("project"):
        where = "moslora.kernels.dropped"
    module = import_module(where)
    monkeypatch.setattr(module, name, by_triton(kernel))


def test_a_run_and_its_evaluation_are_on_it_alone(recipe, tmp_path):
    chosen = recipe(*SHORT, "model.dtype=bfloat16")
    with watch() as seen:
        train_recipe(chosen, out=tmp_path / "run")
    assert MODULE.current == DEVICE.index and ANOTHER not in pretend_kit.used
    kernels = ("swiglu", "swiglu_backward", "rope", "project", "project_backward")
    assert all(seen.operations[f"moslora.{name}.default"] > 3 for name in kernels), seen.operations
    MODULE.current = 0
    evaluate_target(open_target(str(tmp_path / "run")), limit=4)
    assert MODULE.current == DEVICE.index and pretend_kit.used == {DEVICE}


def test_kernels_are_tried_on_it_and_waited_for():
    take_gpu()
    with watch() as seen:
        assert liger.is_used()
    names = {"swiglu": 1, "swiglu_backward": 1, "rope": 2, "project": 1, "project_backward": 2}
    assert {name: seen.operations[f"moslora.{name}.default"] for name in names} == names
    assert any(place.startswith("synchronize") for place in seen.waits)
    assert pretend_kit.used == {DEVICE}


def test_they_are_launched_where_their_tensors_are():
    """Whichever device is current: a model of the library may be on any."""
    assert MODULE.current == 0
    for device in (DEVICE, ANOTHER):
        gate = torch.ones(3, 4, device=device)
        assert torch.ops.moslora.swiglu(gate, gate).device == device
        assert torch.ops.moslora.swiglu_backward(gate, gate.clone(), gate.clone())[0].device == device
        q, k = torch.ones(2, 1, 3, 2, 4, device=device).unbind()
        angles = torch.ones(1, 3, 4, device=device)
        assert torch.ops.moslora.rope(q, k, angles, angles, False)[0].device == device
    assert MODULE.current == 0


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("swiglu_forward", lambda gate, up: (gate, up, gate * up)),
        ("swiglu_backward", lambda gate, up, gradient: (gate, up)),
        ("rope_forward", lambda q, k, cos, sin: (q, k, cos, sin)),
        ("rope_backward", lambda q, k, cos, sin: (q, k.mul_(2), cos, sin)),
        ("project", lambda x, a, h, seed, p: h.zero_()),
        ("project_backward", lambda g, a, x, of_x, d_a, d_x, seed, p: d_x.fill_(1)),
    ],
)
def test_one_that_computes_something_else_is_not_used(monkeypatch, capsys, name, wrong):
    replaced(monkeypatch, name, wrong)
    liger.agree()
    assert not liger.is_used()
    assert capsys.readouterr().out.count("is not used, as it does not work here: its results differ") == 1


def test_one_that_cannot_be_compiled_is_not_used(monkeypatch, capsys):
    def fails(*_: Tensor) -> None:
        raise RuntimeError("Failed to find C compiler")

    replaced(monkeypatch, "rope_forward", fails)
    liger.agree()
    assert not liger.is_used() and "Failed to find C compiler" in capsys.readouterr().out


def test_one_that_breaks_the_gpu_ends_the_process_in_a_line(monkeypatch):
    """The error of a kernel comes when it is waited for, and from then on always."""

    def broken(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be …")

    monkeypatch.setattr(liger, "wait_for", broken)
    with pytest.raises(MosloraError, match=f"failed on {DEVICE}.*illegal memory access.*uninstall"):
        liger.agree()


@pytest.mark.parametrize("fault", ["no compiler", ""])
@pytest.mark.parametrize("where", [0, 1])
def test_no_process_uses_what_fails_in_one(monkeypatch, capsys, where, fault):
    """Or is not installed there."""
    faults: list[str | None] = [None, None]
    faults[where] = fault
    monkeypatch.setattr(liger, "all_gather", lambda own: faults)
    assert liger.is_used()
    liger.agree()
    assert not liger.is_used()
    said = capsys.readouterr().out
    assert (fault or "not installed") in said and ("rank 1" in said) == bool(where)


def test_where_it_is_not_installed_nothing_is_said(monkeypatch, capsys):
    monkeypatch.setattr(liger, "find_spec", lambda name: None)
    liger.agree()
    assert not liger.is_used() and not capsys.readouterr().out
