"""Whole runs on the pretend device: resumed against uninterrupted, to the bit, and against the same on the CPU."""

import json
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.amp import GradScaler

from moslora.errors import Diverged, Interrupted
from moslora.kernels import vocabulary
from moslora.kernels.loss import ChunkedLoss
from moslora.recipe import Recipe, load_recipe
from moslora.runs.manifest import MANIFEST
from moslora.runs.run import Run
from moslora.training import loop, prepare, train_recipe
from moslora.training import train as train_module
from moslora.training.loop import accumulate
from moslora.training.objective import LabelLoss
from moslora.training.optimizer import trainable, update
from moslora.training.tracking import Tracker
from moslora.training.train import Training
from pretend_kit import DEVICE, MODULE, NAME, on_cpu, watch
from training_kit import cut_after, same_files, steps_logged

Make = Callable[..., Recipe]
SHORT = (
    "training.epochs=null",
    "training.max_steps=4",
    "training.checkpoint_every=2",
    "training.keep_checkpoints=9",
    "training.log_every=1",
    "training.validate_every=2",
    "training.micro_batch_tokens=400",
)
BUDGET = "training.rank_budget={target_rank: 2, warmup_share: 0.25}"
KINDS = {
    "float16": ("model.dtype=float16",),
    "budget": ("adapter.mixer={kind: diagonal}", BUDGET),
    "pissa": ("model.dtype=bfloat16", "adapter.start=pissa", "adapter.dora=true", "adapter.mixer={kind: identity}"),
    "gate": ("model.dtype=bfloat16", "adapter.mixer={kind: token-gate, experts: 4, top_k: 2, balance: 0.01}"),
}


def run(recipe, out):
    """The log of a run, and its scaler at the end; in float16 the first step overflows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "GradScaler", partial(GradScaler, init_scale=2.0**40, backoff_factor=2.0**-24))
        train_recipe(recipe, out=out)
    manifest = json.loads((Run(out).checkpoints[-1] / MANIFEST).read_text())
    return steps_logged(out), manifest["scaler"]


@contextmanager
def counted_steps():
    """The arguments of the passes of each step within the block."""
    steps = []

    def counted(*given):
        steps.append(given)
        return accumulate(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "accumulate", counted)
        yield steps


@pytest.fixture(scope="module")
def straight(world, tmp_path_factory):
    """``straight(kind)``: the recipe, a run of it that nothing stopped, what it found, and how many steps' passes it
    had. Read only."""

    @cache
    def made(kind):
        chosen = load_recipe(world / "recipe.yaml", (*SHORT, *KINDS[kind]))
        out = tmp_path_factory.mktemp(kind) / "run"
        with counted_steps() as steps:
            found = run(chosen, out)
        return SimpleNamespace(recipe=chosen, out=out, found=found, steps=len(steps))

    return made


def refuse_missing_weights(run, kind):
    """An adapter in the result, and in both checkpoints one and its moments; with a budget that, too."""
    expected = 5
    if kind == "budget":
        expected += 2
    assert len([*run.rglob("*.safetensors")]) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_it_resumes_to_the_same_bits(straight, tmp_path, kind):
    """The adapter, the optimizer's moments, the budget and what was logged."""
    one = straight(kind)
    again = tmp_path / "again"
    logged, _ = one.found
    cut_after(2, Path(shutil.copytree(one.out, again)))
    train_recipe(one.recipe, out=again, resuming=True)
    refuse_missing_weights(again, kind)
    assert same_files(one.out, again)
    assert steps_logged(again) == logged and len(logged) == 7


class Backward:
    """Whether kernels of the backward pass are launched by another thread than the main one."""

    def __init__(self):
        self.by_another = set()

    def note(self, function, *_, **__):
        if str(function).startswith("backward of"):
            self.by_another.add(threading.current_thread() is not threading.main_thread())


@pytest.mark.skipif(DEVICE.index > 0, reason="autograd has a thread for the first device alone")
@pytest.mark.parametrize("kind", ["pissa", "gate"])
def test_the_backward_pass_in_autograds_own_thread_has_the_same_bits(recipe, tmp_path, kind):
    """As on a GPU; with checkpointing, which computes again there."""
    two = ("training.max_steps=2", "model.gradient_checkpointing=true")
    chosen = recipe(*SHORT, *KINDS[kind], *two)
    found = []
    for own in (False, True):
        with watch(Backward()) as backward, torch.autograd.set_multithreading_enabled(own):
            found.append(run(chosen, tmp_path / str(own)))
        assert backward.by_another == {own}
    assert found[0] == found[1] and same_files(tmp_path / "False", tmp_path / "True")


@pytest.mark.parametrize("kind", KINDS)
def test_a_rehearsal_changes_no_bit(straight, tmp_path, monkeypatch, kind):
    """With it and without: the adapter, the moments, the budget, the scaler and what was logged."""
    rehearsed = straight(kind)
    plain = tmp_path / "run"
    monkeypatch.setattr("moslora.training.train.rehearse", lambda parts, first_step: None)
    with counted_steps() as steps:
        assert run(rehearsed.recipe, plain) == rehearsed.found
    assert (rehearsed.steps, len(steps)) == (5, 4)
    refuse_missing_weights(rehearsed.out, kind)
    assert same_files(plain, rehearsed.out)


@pytest.mark.parametrize(("kind", "apart"), [("budget", 1e-5), ("float16", 2e-3)])
def test_it_logs_what_a_run_on_the_cpu_logs(recipe, tmp_path, kind, apart):
    """Losses, norms, validation losses, and the scale after the skipped step. The loop waits once a step."""
    chosen = recipe(*SHORT, *KINDS[kind], "adapter.dropout=0", "training.learning_rate=3e-3")
    with watch() as seen:
        found, scaler = run(chosen, tmp_path / "there")
    expected, same = on_cpu(run, chosen, tmp_path / "cpu")
    assert sum(count for place, count in seen.waits.items() if "training/loop.py" in place) == 4  # one a step
    assert json.loads((tmp_path / "there" / "run.json").read_text())["hardware"]["device"] == NAME
    assert scaler == same and bool(scaler) == (kind == "float16")
    assert sum("validation_loss" in row for row in found) == 3
    for one, other in zip(found, expected, strict=True):
        assert (other.get("grad_norm", 0) is None) == (kind == "float16" and other["step"] == 1)
        about = dict(other)
        for key, value in other.items():
            if value is not None:  # not an infinite norm
                about[key] = pytest.approx(value, rel=apart)
        assert one == about


BEGIN = ["collate", "forward"]
UPDATE = ["backward", "update", "copy"]
READ = ["wait", "report"]


@pytest.fixture
def order(monkeypatch):
    """Calls of a run, as they come."""
    calls = []
    places = {
        "collate": (loop, "collate"),
        "forward": (LabelLoss, "forward"),
        "backward": (Tensor, "backward"),
        "update": (loop, "update"),
        "copy": (MODULE.Event, "record"),
        "wait": (MODULE.Event, "synchronize"),
        "report": (Tracker, "log_step"),
        "validate": (Training, "validate"),
        "save": (Training, "checkpoint"),
    }

    def noted(name, function):
        def computed(*values, **options):
            calls.append(name)
            return function(*values, **options)

        return computed

    for name, (place, attribute) in places.items():
        monkeypatch.setattr(place, attribute, noted(name, getattr(place, attribute)))
    return calls


def test_the_host_waits_once_a_step_when_the_next_has_begun(recipe, tmp_path, order):
    """Unless something comes between: of five steps a checkpoint after the third. A step is rehearsed before."""
    few = ("training.max_steps=5", "training.checkpoint_every=3", "training.micro_batch_tokens=null")
    train_recipe(recipe(*SHORT, *few, "training.validate_every=9"), out=tmp_path / "run")
    before = [*BEGIN, "backward", "validate", *BEGIN]
    two = [*BEGIN, *UPDATE, *BEGIN, *READ, *UPDATE]
    saved = [*two, *BEGIN, *READ, *UPDATE, *READ, "save"]
    last = [*two, *READ, "validate", *BEGIN, "save"]
    assert order == [*before, *saved, *last]


@pytest.mark.parametrize("between", [KINDS["budget"], ("training.validate_every=1",), ("training.checkpoint_every=1",)])
def test_no_step_begins_before_what_comes_between_two(recipe, tmp_path, order, between):
    train_recipe(recipe(*SHORT, "training.micro_batch_tokens=null", *between), out=tmp_path / "run")
    assert order.count("update") == 4
    for at in range(len(order)):
        if order[at] == "copy":
            assert order[at : at + 3] == ["copy", *READ]


@pytest.mark.parametrize("kind", ["float16", "gate"])
def test_a_stop_throws_away_the_step_that_has_begun(straight, tmp_path, monkeypatch, order, kind):
    """And the run goes on to the bits of one that was not stopped."""
    one = straight(kind)
    again = tmp_path / "again"
    logged, _ = one.found
    order.clear()  # of that run, if it is made here
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after step 1 of 4"):
        patch.setattr("moslora.training.train.stop_requests", lambda: nullcontext([signal.SIGTERM]))
        run(one.recipe, again)
    assert order[-len([*BEGIN, *READ, "save"]) :] == [*BEGIN, *READ, "save"]
    train_recipe(one.recipe, out=again, resuming=True)
    shutil.rmtree(again / "checkpoints" / "step-1")
    assert same_files(one.out, again) and steps_logged(again) == logged


def test_no_update_follows_numbers_that_are_not_finite(recipe, tmp_path, monkeypatch, order):
    update = loop.update

    def diverges(*given, **options):
        return update(*given, **options) * torch.nan

    monkeypatch.setattr(loop, "update", diverges)
    with pytest.raises(Diverged, match="step 1: "):
        train_recipe(recipe(*SHORT), out=tmp_path / "run")
    assert order.count("update") == 1 and order[-4:] == ["copy", *BEGIN, "wait"]


def test_a_gpu_waits_less_for_others_once_its_largest_step_has_fitted(recipe, tmp_path, monkeypatch):
    order = []
    for name in ("rehearse", "shorten_waits", "train"):
        function = getattr(train_module, name)
        monkeypatch.setattr(train_module, name, lambda *a, n=name, f=function, **k: (order.append(n), f(*a, **k))[1])
    train_recipe(recipe(*SHORT), out=tmp_path / "run")
    assert order == ["rehearse", "shorten_waits", "train"]


def test_the_device_leaves_out_an_update_that_is_not_finite(recipe):
    """Before the host knows: nothing is waited for."""
    parts, _ = prepare.prepare(Accelerator(mixed_precision="no"), recipe("model.dtype=bfloat16"))
    learned = list(trainable(parts.optimizer))
    before = [parameter.detach().clone() for parameter in learned]
    for wrong in (True, False):
        for parameter in learned:
            parameter.grad = torch.ones_like(parameter)
        if wrong:
            learned[0].grad.fill_(torch.inf)
        with watch() as seen:
            update(parts.optimizer, parts.scaler, max_norm=1.0)
        assert not seen.waits
        assert all(one.cpu().equal(other.cpu()) == wrong for one, other in zip(before, learned, strict=True))


@pytest.mark.parametrize(("positions", "pieces"), [(40, 1), (41, 2)])
def test_the_loss_is_sixteen_operations_a_piece(monkeypatch, positions, pieces):
    """And two that sum it, one more for each further piece; in the backward pass two beside the mean's own three."""
    monkeypatch.setattr(vocabulary, "LOGITS_AT_ONCE", 40 * 96)
    hidden = torch.randn(positions, 32).bfloat16().to(DEVICE)
    weight = torch.randn(96, 32).bfloat16().to(DEVICE)
    labels = torch.randint(96, (positions,)).to(DEVICE)
    with watch() as seen:
        (ChunkedLoss.apply(hidden.requires_grad_(), weight, labels) * 0.1).backward()
    assert seen.operations.total() == 18 * pieces + (pieces - 1) + 5 and not seen.waits, seen
