"""An adapter at strength C: W + C · (W' − W), from the base's own weights, and a run like any other."""

import shutil
from pathlib import Path

import peft
import pytest
import torch
from peft.helpers import rescale_adapter_scale
from safetensors.torch import load_file

from card_kit import Card
from cli_kit import run as cli
from evaluation_kit import read_results
from importing_kit import LAYER, OFFICIAL, official_model, write_source
from message_kit import in_order, says
from methods_kit import METHODS, recipe_of
from moslora.adapters import describe_task
from moslora.base.adapted import adapted_layers, adapter_state, with_adapters
from moslora.base.load import load_base
from moslora.compare.arms import load_arms
from moslora.convert.export import export_peft
from moslora.convert.strength import write_at_strength
from moslora.errors import UsageError
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.runs.adapted_model import load_adapted, save_adapter
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.listing import table_of_runs
from moslora.runs.manifest import WEIGHTS
from moslora.runs.origin import read_origin
from moslora.runs.run import Run
from moslora.training import train_recipe
from reference import perturb, token_batch
from training_kit import steps_kept

C = 0.7


def moved(recipe, folder):
    """An adapter of ``recipe``, off its start in all that training changes, saved in ``folder``."""
    model = with_adapters(load_base(recipe.model), recipe)
    perturb([weight for weight in model.parameters() if weight.requires_grad], size=0.1)
    save_adapter(folder, {WEIGHTS: adapter_state(model)}, recipe, facts={"data": {"tasks": {"boolq": 3}}})
    return folder


def outputs(model, task="boolq"):
    """Each adapted layer's output in float64, for inputs that depend on its width alone."""
    describe_task(model, task)
    return {name: output(layer, base.in_features) for name, (layer, base) in adapted_layers(model.double()).items()}


def output(layer, width):
    return layer(torch.randn(5, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


EXACT = [method for method in METHODS if method != "methods/dora"]


@pytest.mark.parametrize("method", [*EXACT, "peft/lora"])
@torch.no_grad()
def test_each_layer_is_the_base_plus_c_times_its_change(method, world, tmp_path):
    """In float64, with the base's own output: also of gates, of a rectangular M, and of PiSSA, whose base has lost a
    part. What the sides differ by is float32's rounding of the weights."""
    recipe = recipe_of(method, world, tmp_path)
    folder = moved(recipe, tmp_path / "adapter")
    write_at_strength(folder, C, tmp_path / "weaker")
    whole = outputs(load_adapted(open_adapter(folder)))
    weaker = outputs(load_adapted(open_adapter(tmp_path / "weaker" / "adapter")))
    base = load_base(recipe.model).double()
    for name in whole:
        plain = output(base.get_submodule(name), base.get_submodule(name).in_features)
        change = whole[name] - plain
        assert change.norm() > 0.01 * plain.norm()
        torch.testing.assert_close(weaker[name], plain + C * change, rtol=0, atol=1e-6 * float(plain.abs().max()))


REFUSED = {
    "methods/dora": (),
    "methods/pissa": ("adapter.dora=true",),
    "peft/oft": (),
    "peft/vera": (),
    "peft/lora": ("adapter.peft.init_lora_weights=olora",),
}
"""Method -> what is set beside it."""


@pytest.mark.parametrize("method", REFUSED)
def test_a_change_that_is_not_linear_is_refused_in_a_line(method, world, tmp_path):
    folder = moved(recipe_of(method, world, tmp_path, *REFUSED[method]), tmp_path / "adapter")
    with pytest.raises(UsageError, match=in_order(str(folder), "only a low-rank update")) as refused:
        write_at_strength(folder, C, tmp_path / "weaker")
    assert "\n" not in str(refused.value) and not (tmp_path / "weaker").exists()


@pytest.fixture
def weaker(trained, tmp_path):
    """A copy of the trained run, evaluated, and it at strength C beside it."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    evaluate_target(open_target(str(run)), limit=6)
    write_at_strength(run / "adapter", C, tmp_path / "weaker")
    return tmp_path / "weaker"


def delta(path):
    """ΔW of a layer in float64, from the adapter's file; s = 2."""
    weights = load_file(path / "adapter" / WEIGHTS)
    parts = [weights[f"model.layers.1.self_attn.q_proj.{part}"] for part in ("lora_b", "mixer.weight", "lora_a")]
    b, m, a = (part.double() for part in parts)
    return 2 * b @ m @ a


def test_peft_agrees_about_the_scale(weaker, tmp_path):
    """Its own ``rescale_adapter_scale`` of the whole adapter, against the weaker one as it was written and exported."""
    for run in ("run", "weaker"):
        export_peft(tmp_path / run / "adapter", out=tmp_path / f"peft-{run}")
    folder = open_adapter(weaker / "adapter")
    ids = token_batch(load_base(folder.recipe.model))
    whole, exported = (
        peft.PeftModel.from_pretrained(load_base(folder.recipe.model), tmp_path / f"peft-{run}").eval()
        for run in ("run", "weaker")
    )
    with torch.inference_mode(), rescale_adapter_scale(whole, C):
        expected = whole(ids).logits
        for model in (exported, load_adapted(folder)):
            torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)


def test_its_answers_compare_with_the_whole_adapter(weaker, tmp_path, capsys):
    """The leaks are those of the same training rows; nothing needs to be allowed."""
    results, folder = evaluate_target(open_target(str(weaker)), limit=6)
    assert folder.is_relative_to(weaker)
    before = read_results(next(iter(Run(tmp_path / "run").evaluations)))
    assert results.predictions != before.predictions
    assert results.tasks.keys() == before.tasks.keys()
    assert Run(weaker).contents.read_bytes() == Run(tmp_path / "run").contents.read_bytes()
    code, said, _ = cli(capsys, "compare", tmp_path / "run", weaker)
    assert code == 0 and "note: unknown whether" not in said
    again = tmp_path / "again"
    write_at_strength(tmp_path / "run" / "adapter", 0.5, again)
    evaluate_target(open_target(str(again)), limit=6)
    assert [len(arm.runs) for arm in load_arms([tmp_path / "run", weaker, again])] == [1, 1, 1]


def test_the_strength_is_shown_with_the_run(weaker, tmp_path, capsys):
    rows = {row[0]: row for row in table_of_runs(tmp_path)[1:]}
    assert rows["weaker"][3:5] == [rows["run"][3], "strength 0.7 of run"]
    export_peft(weaker / "adapter", out=tmp_path / "peft")
    assert Card(tmp_path / "peft").fields["strength"] == "0.7 times what run has learned"
    assert read_origin(tmp_path / "peft").strength == C
    assert cli(capsys, "report", weaker, "--out", tmp_path / "report")[0] == 0
    assert "strength 0.7 of run" in (tmp_path / "report" / "report.html").read_text()
    code, _, errors = cli(capsys, "train", weaker, "--resume")
    assert code == 2 and f"continue_from={weaker}" in errors


def test_strengths_multiply(weaker, tmp_path):
    applied = write_at_strength(weaker / "adapter", 0.5, tmp_path / "twice")
    assert (applied.run, applied.value) == ("run", pytest.approx(0.35))
    expected = 0.35 * delta(tmp_path / "run")
    rounding = 1e-6 * float(expected.abs().max())  # of sums, which may be near zero
    torch.testing.assert_close(delta(tmp_path / "twice"), expected, rtol=0, atol=rounding)


def test_a_training_continues_it(weaker, recipe, tmp_path):
    """It starts where the weaker adapter is, keeps its name and strength, and needs no other recipe."""
    out = tmp_path / "continued"
    train_recipe(recipe(f"adapter.continue_from={weaker}", "training.max_steps=1", "adapter.dropout=0"), out=out)
    before = open_adapter(weaker / "adapter")
    after = open_adapter(out / "adapter")
    assert str(after.predecessor) == "strength 0.7 of step 21 of run"
    assert after.predecessor.adapter == before.manifest["sha256"][WEIGHTS]
    ratio = (delta(out) - delta(weaker)).norm() / (delta(tmp_path / "run") - delta(weaker)).norm()
    assert ratio < 0.5


def test_a_checkpoint_has_a_strength_too(weaker, tmp_path):
    run = Run(tmp_path / "run")
    step = steps_kept(run)[0]
    write_at_strength(run.checkpoint(step), C, tmp_path / "early")
    (row,) = (row for row in table_of_runs(tmp_path)[1:] if row[0] == "early")
    assert row[3] == f"{step}/21"
    assert (
        str(open_adapter(tmp_path / "early" / "adapter").origin_for("x")) == f"strength 0.7 of step {step} of 21 of run"
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--set", "0", "--out", "x"), "strength 0"),
        (("--set", "nan", "--out", "x"), "strength nan"),
        (("--set", "0.8"), "--out"),
        (("--set", "0.8", "--out", "."), "not empty"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(trained, tmp_path, monkeypatch, capsys, words, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("")
    code, _, errors = cli(capsys, "strength", trained, *words)
    assert code == 2 and len(errors.splitlines()) == 1 and named in errors
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_of_peft_is_imported_first(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, state = official_model(world)
    write_source(tmp_path / "theirs", {**OFFICIAL, "base_model_name_or_path": str(world / "model")}, state)
    code, said, _ = cli(capsys, "strength", "theirs", "--set", C, "--out", "weaker")
    assert code == 0 and says(said, "strength 0.7 of theirs", "moslora eval weaker")
    torch.testing.assert_close(
        load_file("weaker/adapter/adapter.safetensors")[f"{LAYER.removeprefix('base_model.model.')}.lora_b"].double(),
        C * state[f"{LAYER}.lora_B.weight"].double(),
        rtol=1e-6,
        atol=1e-9,
    )
