"""Whole runs on a small random model: exact resuming, equal gradients however the work is shared, faults."""

import json
import re
import shutil
from itertools import product

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from changes_kit import truncate
from message_kit import in_order, says
from methods_kit import BUDGET
from moslora.adapters import named_adapters
from moslora.adapters.mixers.gates import Gate
from moslora.data.prepared import RowTable
from moslora.data.steps import label_count
from moslora.errors import MosloraError, UsageError
from moslora.plan.outline import outline
from moslora.recipe import load_recipe
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.run import Run
from moslora.training import loop, train_recipe
from moslora.training.checkpoints import save_checkpoint
from moslora.training.prepare import prepare
from training_kit import (
    adapter,
    cut_after,
    in_processes,
    same_bits,
    same_files,
    sign,
    steps_kept,
    steps_logged,
)


def test_a_run_learns_and_leaves_a_complete_folder(trained):
    manifest = open_adapter(trained / "adapter").manifest
    assert manifest["step"] == 21 and manifest["trained_rows"] == 84 and len(manifest["data"]["sha256"]) == 64
    logged = [row for row in steps_logged(trained) if "loss" in row]
    assert [row["step"] for row in logged] == [1, *range(2, 21, 2), 21]
    assert logged[-1]["loss"] < logged[0]["loss"] - 2
    validations = [row for row in steps_logged(trained) if "validation_loss" in row]
    assert [row["step"] for row in validations] == [0, 5, 10, 15, 20, 21]
    assert validations[-1]["validation_loss"] < validations[0]["validation_loss"]
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == ["step-20", "step-21"]
    assert all(value.dtype == torch.float32 and value.any() for value in adapter(trained).values())


METHODS = {
    "lora": ("adapter.mixer={kind: identity}",),
    "dense": ("adapter.mixer={kind: dense}",),
    "diagonal, with penalty": ("adapter.mixer={kind: diagonal, orthogonality: 3}",),
    "dora": ("adapter.mixer={kind: dense}", "adapter.dora=true"),
    "task-gate": ("adapter.mixer={kind: task-gate, embedding_size: 8}",),
    "token-gate": ("adapter.mixer={kind: token-gate, top_k: 2}",),
}
"""Methods whose gradient is that of the whole step, however it is cut. (A gate's balance is no sum over rows.)"""


def gradients(recipe, *, global_batch_size, tokens):
    """Gradients of the first step, accumulated by the loop on this process's share, and the losses."""
    accelerator = Accelerator(cpu=True)
    changed = recipe.training.model_copy(update={"global_batch_size": global_batch_size, "micro_batch_tokens": tokens})
    parts, _ = prepare(accelerator, recipe.model_copy(update={"training": changed}))
    model = parts.model.double()
    parts.objective.train()
    generator = torch.Generator().manual_seed(0)
    for parameter in (p for _, layer in named_adapters(model) for p in layer.parameters() if p.requires_grad):
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    drawn = [parts.rows[row] for row in parts.plan[0]]
    assert len({len(row.input_ids) for row in drawn}) > 4 and label_count(drawn) > 16
    torch.manual_seed(0)
    losses = loop.accumulate(parts, drawn)
    gates = [module for module in model.modules() if isinstance(module, Gate)]
    for gate in gates:  # the batch is over
        assert gate.context.tokens is None and gate.context.tasks is None
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    loss, penalty = accelerator.reduce(losses)
    return found | {"loss": loss} | ({"penalty": penalty} if penalty else {})


def largest_difference(one, other):
    """Largest difference of two gradients, relative to the largest entry of each. The losses are logged in float32."""
    assert one.keys() == other.keys() and len(one) > 12
    logged = {"loss", "penalty"} & one.keys()
    torch.testing.assert_close([one[k] for k in logged], [other[k] for k in logged], rtol=1e-6, atol=0)
    return max(float((one[k] - other[k]).abs().max() / one[k].abs().max()) for k in one.keys() - logged)


@pytest.mark.slow
def test_gradients_are_independent_of_micro_batches(recipe, world, tmp_path):
    """1 × 16, 4 × 4 (1e-9), and two processes × 8 over gloo, which send float32 (1e-6); dropout 0, in float64, for
    every method. A sharded base, with or without checkpointing, gives the bits of a whole one, although the processes
    have other passes."""
    whole = {}
    for method, overrides in METHODS.items():
        plain = recipe("adapter.dropout=0", *overrides)
        whole[method] = gradients(plain, global_batch_size=16, tokens=10_000)
        pieces = gradients(plain, global_batch_size=16, tokens=250)
        assert largest_difference(whole[method], pieces) < 1e-9, method
    assert [method for method, found in whole.items() if "penalty" in found] == ["diagonal, with penalty"]
    script = tmp_path / "shared.py"
    script.write_text(
        "from moslora.recipe import load_recipe\n"
        "from safetensors.torch import save_file\n"
        "from tests.training.test_run import METHODS, gradients\n"
        "from training_kit import same_bits\n"
        "import torch.distributed as dist\n"
        "def found(*overrides):\n"
        f"    recipe = load_recipe({str(world / 'recipe.yaml')!r}, ['adapter.dropout=0', *overrides])\n"
        "    return gradients(recipe, global_batch_size=16, tokens=300)\n"
        "for method, overrides in METHODS.items():\n"
        "    whole = found(*overrides)\n"
        f"    save_file(whole, {str(tmp_path)!r} + f'/{{method}}-{{dist.get_rank()}}.safetensors')\n"
        "    for again in ('false', 'true'):\n"
        "        sharded = found(*overrides, 'training.strategy=fsdp', f'model.gradient_checkpointing={again}')\n"
        "        assert same_bits(whole, sharded), (method, again)\n"
        "assert dist.get_world_size() == 2 and dist.get_backend() == 'gloo'\n"
        "dist.destroy_process_group()\n"
    )
    in_processes(script)
    for method, rank in product(METHODS, range(2)):
        shared = load_file(tmp_path / f"{method}-{rank}.safetensors")
        assert largest_difference(whole[method], shared) < 1e-6, method


@pytest.mark.parametrize("top_k", ["2", "null"])
def test_only_a_gates_balance_depends_on_micro_batches(recipe, top_k):
    """A gate's balance is no sum over rows, as `loop.accumulate` says; the label loss does not change."""
    gate = recipe("adapter.dropout=0", f"adapter.mixer={{kind: token-gate, top_k: {top_k}, balance: 0.5}}")
    whole, pieces = (gradients(gate, global_batch_size=16, tokens=size) for size in (10_000, 130))
    assert pieces["penalty"].item() != pytest.approx(whole["penalty"].item(), rel=1e-5)
    del whole["penalty"], pieces["penalty"]
    assert largest_difference(whole, pieces) > 1e-3


@pytest.mark.parametrize("method", [*METHODS, "balance"])
def test_gradient_checkpointing_changes_no_gradient(recipe, method):
    """Recomputation keeps the gradient of a gate's penalty, and dropout drops the same entries again."""
    overrides = METHODS.get(method, ("adapter.mixer={kind: token-gate, balance: 0.5}",))
    plain, again = (
        gradients(
            recipe("adapter.dropout=0.1", *overrides, f"model.gradient_checkpointing={value}"),
            global_batch_size=16,
            tokens=500,
        )
        for value in ("false", "true")
    )
    assert largest_difference(plain, again) < 1e-5


def poison(monkeypatch, *, from_step, until=10**9):
    """Make the loss of some steps infinite."""
    calls = {"step": 0}
    accumulate = loop.accumulate

    def poisoned(*arguments, **options):
        calls["step"] += 1
        loss = accumulate(*arguments, **options)
        parts = arguments[0]
        if from_step <= calls["step"] < until:
            next(iter(parts.optimizer.param_groups[0]["params"])).grad.fill_(torch.inf)
        return loss

    monkeypatch.setattr(loop, "accumulate", poisoned)


def test_gradient_that_is_not_finite_names_step_and_rows(recipe, tmp_path, monkeypatch):
    """The refusal names the step and its rows."""
    poison(monkeypatch, from_step=6)
    with pytest.raises(MosloraError, match=r"step 6: .*not finite.*(boolq|arc_easy|obqa)/train/\d+") as caught:
        train_recipe(recipe(), out=tmp_path / "run")
    assert str(caught.value).count("/train/") == 8
    assert open_adapter(tmp_path / "run" / "checkpoints" / "step-4").manifest["step"] == 4
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.slow
def test_float16_scaler_may_skip_nine_steps(recipe, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        poison(patch, from_step=3, until=12)
        train_recipe(recipe("model.dtype=float16"), out=tmp_path / "nine")
    poison(monkeypatch, from_step=3, until=13)
    with pytest.raises(MosloraError, match="step 12: "):
        train_recipe(recipe("model.dtype=float16"), out=tmp_path / "ten")


def test_run_without_an_update_yet_resumes(recipe, tmp_path, monkeypatch):
    """The first checkpoint, after step 4, is written before any parameter has moments."""
    half = recipe("model.dtype=float16", "training.max_steps=8")
    with monkeypatch.context() as patch:
        poison(patch, from_step=1, until=6)
        train_recipe(half, out=tmp_path / "straight")
    run = shutil.copytree(tmp_path / "straight", tmp_path / "run")
    moments = load_file(run / "checkpoints" / "step-4" / "optimizer.safetensors")
    assert len(moments) == 6 * 3 * 3 and not any(value.any() for value in moments.values())
    cut_after(4, run)
    poison(monkeypatch, from_step=1, until=2)  # the fifth step of all
    train_recipe(half, out=run, resuming=True)
    assert same_bits(adapter(tmp_path / "straight"), adapter(run))


def test_resume_needs_exactly_the_trained_moments(trained, recipe, tmp_path):
    """Without the mixers' moments, Adam would start anew for M alone."""
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(run / "adapter")
    newest = run / "checkpoints" / "step-21"
    moments = load_file(newest / "optimizer.safetensors")
    first = "model.layers.0.mlp.down_proj"
    stranger = {"model.layers.9.x.lora_a:step": torch.zeros(())}
    short = {f"{first}.lora_b:exp_avg": moments[f"{first}.lora_b:exp_avg"][:, :3].contiguous()}
    without = {key: value for key, value in moments.items() if ".mixer." not in key}
    for state, fault in (
        (without, f"{first}.mixer.weight:exp_avg"),
        (moments | stranger, "model.layers.9.x.lora_a:step: unexpected"),
        (moments | short, f"{first}.lora_b:exp_avg: shape (48, 3)"),
    ):
        save_file(state, newest / "optimizer.safetensors")
        sign(newest)
        with pytest.raises(MosloraError, match=in_order("step-21/optimizer.safetensors: ", fault)):
            train_recipe(recipe(), out=run, resuming=True)


def files(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


GATE = ("adapter.mixer={kind: token-gate, balance: 0.01}",)


@pytest.mark.parametrize("checkpoints", ["kept", "removed"])
def test_a_finished_run_is_not_trained_again(trained, recipe, tmp_path, monkeypatch, capsys, checkpoints):
    """A finished run is recognised with or without checkpoints, before anything is loaded."""
    run = shutil.copytree(trained, tmp_path / "run")
    if checkpoints == "removed":
        shutil.rmtree(run / "checkpoints")
    before = files(run)
    monkeypatch.setattr("moslora.training.prepare.load_tokenizer", lambda *_: pytest.fail("loaded"))
    assert train_recipe(recipe(), out=run, resuming=True) == run / "adapter"
    assert capsys.readouterr().out.startswith(f"{run}: finished, 21 of 21 steps")
    assert files(run) == before


def edit(run, **changes):
    """Edit the run's own recipe, as by hand."""
    (run / "recipe.yaml").write_text(
        load_recipe(run / "recipe.yaml", [f"{k.replace('__', '.')}={v}" for k, v in changes.items()]).to_yaml()
    )


@pytest.mark.parametrize("saved", ["adapter", "checkpoints/step-21"])
def test_edited_recipe_of_a_run_is_refused(trained, tmp_path, saved):
    run = shutil.copytree(trained, tmp_path / "run")
    if saved != "adapter":
        shutil.rmtree(run / "adapter")
    edit(run, adapter__rank="8", training__log_every="1")
    before = files(run)
    named = rf"{re.escape(str(run / saved))}: .*\(adapter\.rank was 4, is 8\)"
    with pytest.raises(UsageError, match=named):
        train_recipe(load_recipe(run / "recipe.yaml"), out=run, resuming=True)
    assert files(run) == before


@pytest.mark.parametrize("damaged", ["adapter", "checkpoints/step-21"])
def test_damaged_checkpoint_is_trained_again(trained, recipe, tmp_path, capsys, damaged):
    run = shutil.copytree(trained, tmp_path / "run")
    if damaged != "adapter":
        shutil.rmtree(run / "adapter")
    truncate(run / damaged / "adapter.safetensors")
    train_recipe(recipe(), out=run, resuming=True)
    step = 21 if damaged == "adapter" else 20
    assert says(capsys.readouterr().out, "adapter.safetensors", f"after step {step} of 21")
    assert same_bits(adapter(trained), adapter(run))


def test_resume_accepts_moved_rows_but_not_changed_rows(trained, world, recipe, tmp_path):
    run = cut_after(20, shutil.copytree(trained, tmp_path / "run"))
    data = shutil.copytree(world / "data", tmp_path / "data")
    other = shutil.copytree(run, tmp_path / "other")
    train_recipe(recipe(f"data.source={data}"), out=run, resuming=True)
    assert same_bits(adapter(trained), adapter(run))
    rows = data / "boolq" / "train.json"
    rows.write_text(rows.read_text().replace("question: ", "question: so ", 1))
    begun = shutil.copytree(other, tmp_path / "begun", ignore=shutil.ignore_patterns("checkpoints"))  # killed earlier
    facts = json.loads((begun / "run.json").read_text())
    (begun / "run.json").write_text(json.dumps({key: value for key, value in facts.items() if key != "seconds"}))
    for run in (other, begun):
        with pytest.raises(UsageError, match="rows have changed"):
            train_recipe(recipe(f"data.source={data}"), out=run, resuming=True)
    train_recipe(recipe(f"data.source={world / 'data'}"), out=begun, resuming=True)
    assert same_bits(adapter(trained), adapter(begun))


@pytest.mark.parametrize(
    ("trained_with", "changed", "named"),
    [
        ((), "training.learning_rate=1", r"training\.learning_rate was 0\.03, is 1\.0"),
        # which would change what is minimised: a balance is no sum over rows
        (GATE, "training.micro_batch_tokens=300", r"training\.micro_batch_tokens was 200, is 300"),
        (BUDGET, "training.rank_budget.target_rank=3", r"training\.rank_budget\.target_rank was 2, is 3"),
        (BUDGET, "training.rank_budget=null", r"training\.rank_budget\.target_rank was 2, is null"),
    ],
)
def test_a_run_is_not_resumed_under_other_settings(recipe, tmp_path, trained_with, changed, named):
    short = (*trained_with, "training.max_steps=4")
    train_recipe(recipe(*short), out=tmp_path / "run")
    before = files(tmp_path / "run")
    with pytest.raises(UsageError, match=named):
        train_recipe(recipe(*short, changed), out=tmp_path / "run", resuming=True)
    assert files(tmp_path / "run") == before


def emptied(path):
    for file in path.glob("*.safetensors"):
        file.write_bytes(b"")


def removed(*names):
    return lambda run: [shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink() for name in names]


EARLY = ("adapter", "checkpoints", "metrics.jsonl", "run.json", "contents.bin")


@pytest.mark.parametrize(
    ("leave", "resumes"),
    [
        pytest.param(removed(), False, id="finished"),
        pytest.param(lambda run: emptied(run / "adapter"), False, id="a damaged result"),
        pytest.param(removed("adapter"), True, id="finished, its result removed"),
        pytest.param(removed("adapter", "checkpoints"), False, id="finished, all weights removed"),
        pytest.param(removed(*EARLY), True, id="killed early"),
        pytest.param(lambda run: (run / "recipe.yaml").write_text("{"), False, id="a damaged recipe"),
        pytest.param(lambda run: edit(run, adapter__rank="8"), False, id="an edited recipe"),
        pytest.param(lambda run: removed("recipe.yaml", *EARLY)(run) and (run / "a").touch(), False, id="other files"),
    ],
)
def test_message_about_existing_run_suggests_a_working_command(trained, world, tmp_path, leave, resumes):
    run = shutil.copytree(trained, tmp_path / "run")
    leave(run)
    before = files(run)
    with pytest.raises(UsageError, match=r"name=… or --out") as refused:
        train_recipe(load_recipe(world / "recipe.yaml"), out=run)
    assert files(run) == before and (f"{Run(run).resume_command}; or" in str(refused.value)) == resumes
    if resumes:
        train_recipe(Run(run).recipe_to_resume(), out=run, resuming=True)
        assert same_bits(adapter(trained), adapter(run))


def test_new_checkpoint_replaces_damaged_newer_ones(recipe, tmp_path, monkeypatch):
    run = tmp_path / "run"
    short = recipe("training.max_steps=6", "training.keep_checkpoints=9", "training.checkpoint_every=2")
    train_recipe(short, out=run)
    shutil.rmtree(run / "adapter")
    for step in (4, 6):
        (run / "checkpoints" / f"step-{step}" / "adapter.safetensors").write_bytes(b"")
    there = {}

    def saved(folder, *arguments, step, **options):
        save_checkpoint(folder, *arguments, step=step, **options)
        there[step] = steps_kept(folder)

    monkeypatch.setattr("moslora.training.train.save_checkpoint", saved)
    changes = ("training.max_steps=6", "training.keep_checkpoints=2", "training.checkpoint_every=1")
    train_recipe(recipe(*changes), out=run, resuming=True)
    assert there == {3: [2, 3], 4: [3, 4], 5: [4, 5], 6: [5, 6]}


def test_a_run_that_learned_nothing_fails(recipe, tmp_path, monkeypatch):
    """The float16 scaler skips every step of the run."""
    poison(monkeypatch, from_step=1)
    with pytest.raises(MosloraError, match="nothing was learned"):
        train_recipe(recipe("model.dtype=float16", "training.max_steps=3"), out=tmp_path / "run")


def test_a_warm_up_given_as_a_share_follows_the_run(recipe):
    """Warm-up is half of 21 steps, half of 4, and zero for a single step, which would have rate 0."""
    for steps, warmup in ((21, 10), (4, 2), (1, 0)):
        settings = ("training.warmup_steps=0.5", f"training.max_steps={steps}")
        assert f" after {warmup} warm-up steps" in "\n".join(outline(recipe(*settings)).summary)


@pytest.mark.parametrize(
    "change",
    [
        ("training.micro_batch_tokens=400",),
        ("adapter.mixer={kind: token-gate, experts: 4, top_k: 2, balance: 0.01}",),
        ("adapter.mixer={kind: diagonal}", "training.rank_budget={target_rank: 2, warmup_share: 0.25}"),
    ],
)
def test_rehearsal_runs_the_largest_pass_and_changes_nothing(recipe, tmp_path, monkeypatch, change):
    """All files of a new and of a resumed run are equal; the moments exist before the pass."""
    accumulate, train = loop.accumulate, loop.train
    passes = []

    def spy(parts, drawn, *first):
        if not passes:
            learned = [parameter for group in parts.optimizer.param_groups for parameter in group["params"]]
            assert all(parts.optimizer.state[each]["exp_avg"].shape for each in learned)
        passes.append(max(sum(len(row.input_ids) for row in batch) for batch in parts.passes(drawn)))
        return accumulate(parts, drawn, *first)

    def rehearsed(parts, *, first_step, **options):
        loop.rehearse(parts, first_step=first_step)
        return train(parts, first_step=first_step, **options)

    chosen = recipe("training.max_steps=8", *change)
    plain, again = tmp_path / "plain", tmp_path / "rehearsed"
    train_recipe(chosen, out=plain)
    monkeypatch.setattr(loop, "accumulate", spy)
    monkeypatch.setattr("moslora.training.train.train", rehearsed)
    train_recipe(chosen, out=again)
    assert len(passes) == 9 and passes[0] == max(passes[1:]) > min(passes[1:])
    assert len([*plain.rglob("*.safetensors")]) >= 5 and same_files(plain, again)
    cut_after(4, again)
    train_recipe(chosen, out=again, resuming=True)
    assert same_files(plain, again)


def test_only_computed_rows_are_built(recipe, monkeypatch):
    """The search for the largest pass builds no rows."""
    parts, _ = prepare(Accelerator(cpu=True), recipe())
    build = RowTable.__getitem__
    built = []

    def noted(table, row):
        built.append(row)
        return build(table, row)

    monkeypatch.setattr(RowTable, "__getitem__", noted)
    loop.rehearse(parts, first_step=0)
    assert len(built) == 8


def test_a_step_does_not_look_through_the_model(recipe, monkeypatch):
    """Only the first step walks through the model to find its adapters."""
    parts, _ = prepare(Accelerator(cpu=True), recipe())
    parts.objective.train()
    walk = torch.nn.Module.named_modules
    walked = []

    def noted(module, *given, **options):
        walked.append(module)
        return walk(module, *given, **options)

    monkeypatch.setattr(torch.nn.Module, "named_modules", noted)
    for step, expected in enumerate((True, False)):
        walked.clear()
        assert len(parts.passes(parts.drawn(step))) > 1
        loop.accumulate(parts, parts.drawn(step))
        assert (parts.model.lm_head in walked) == expected, "the last module"
