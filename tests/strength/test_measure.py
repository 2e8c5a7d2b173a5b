"""The measured curve, against the training's own validations, and evaluations of what is written at a strength."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from changes_kit import write_jsonl
from cli_kit import run as cli
from evaluation_kit import make_examples
from message_kit import says
from methods_kit import logits_of, recipe_of
from moslora.convert.strength import write_at_strength
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.prompts.instructions import llm_adapters_row
from moslora.recipe import load_recipe
from moslora.runs.adapted_model import load_adapted
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.run import Run
from moslora.strength.curve import STRENGTHS, read_curve
from moslora.strength.measure import Adjustable, measure_strength
from moslora.training import train_recipe
from tests.convert.test_strength import moved

TEXTS = """
tasks:
  mine: {texts: texts.jsonl}
"""
ROWS = 36


@pytest.fixture(scope="module")
def measured(world, tmp_path_factory):
    """A run with enough validation rows, its curve, and a folder with a set of texts."""
    folder = tmp_path_factory.mktemp("measured")
    (folder / "texts.yaml").write_text(TEXTS)
    write_jsonl(folder / "texts.jsonl", [{"text": f"a red fox sat near bridge {n} of the old town"} for n in range(6)])
    words = [f"data.validation_rows={ROWS}", "adapter.dropout=0"]
    train_recipe(load_recipe(world / "recipe.yaml", words), out=folder / "run")
    curve = measure_strength(folder / "run" / "adapter", texts=str(folder / "texts.yaml"))
    return folder, curve


def test_validation_rows_of_a_run_with_replay(world, tmp_path):
    lines = [{"text": f"a red fox sat near bridge {n} of the old town"} for n in range(6)]
    write_jsonl(tmp_path / "notes.jsonl", lines)
    notes = f"tasks={{notes: {{texts: {tmp_path / 'notes.jsonl'}}}}}"
    words = [notes, "data.replay={texts: notes, share: 0.2}", "training.epochs=null", "training.max_steps=2"]
    train_recipe(load_recipe(world / "recipe.yaml", words), out=tmp_path / "run")
    curve = measure_strength(tmp_path / "run" / "adapter", texts="notes")
    losses = [row["validation_loss"] for row in Run(tmp_path / "run").metrics if "validation_loss" in row]
    assert at(curve.loss, 1.0) == pytest.approx(losses[-1], rel=1e-5)


def at(measure, strength):
    return float(measure.means[STRENGTHS.index(strength)])


def test_the_ends_of_the_curve_equal_the_trainings_validations(measured):
    """The loss over label tokens before the first step, where B is zero, and after the last."""
    folder, curve = measured
    losses = {row["step"]: row["validation_loss"] for row in Run(folder / "run").metrics if "validation_loss" in row}
    assert curve.rows == ROWS
    assert at(curve.loss, 0.0) == pytest.approx(losses[0], rel=1e-5)
    assert at(curve.loss, 1.0) == pytest.approx(losses[max(losses)], rel=1e-5)
    assert abs(losses[0] - losses[max(losses)]) > 0.1


def test_a_point_of_the_curve_equals_an_evaluation(measured, tmp_path):
    """Texts at 0.6: a run of that strength, and the base at 0."""
    folder, curve = measured
    write_at_strength(folder / "run" / "adapter", 0.6, tmp_path / "weaker")
    (texts,) = (measure for measure in curve.others if measure.title == "nats per byte")
    written = open_target(str(tmp_path / "weaker"))
    base = open_target(str(folder / "run"), base=True)
    for target, strength in ((written, 0.6), (base, 0.0)):
        results, _ = evaluate_target(target, tasks=str(folder / "texts.yaml"), out=tmp_path / f"eval-{strength}")
        assert at(texts, strength) == pytest.approx(results.texts["mine"].nats_per_byte, rel=1e-6)


@pytest.mark.parametrize("method", ["methods/pissa", "methods/lora-xs", "methods/moelora", "peft/lora"])
@torch.no_grad()
def test_a_strength_set_in_place_equals_the_written_one(method, world, tmp_path):
    """In whatever order they are set; 0 is the base to the bit."""
    recipe = recipe_of(method, world, tmp_path)
    folder = moved(recipe, tmp_path / "adapter")
    model = load_adapted(open_adapter(folder))
    adjustable = Adjustable(model, open_adapter(folder))
    for strength in (0.4, 1.2, 1.0):
        out = tmp_path / f"at-{strength}"
        write_at_strength(folder, strength, out)
        adjustable.set(strength)
        assert torch.equal(logits_of(model), logits_of(load_adapted(open_adapter(out / "adapter"))))
    adjustable.set(0.0)
    base = AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32).eval()
    torch.testing.assert_close(logits_of(model), logits_of(base), rtol=0, atol=1e-5)


def test_the_command_writes_what_it_recommends(measured, tmp_path, monkeypatch, capsys):
    folder, curve = measured
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(folder / "run", "run"))
    (run / "strength.json").unlink()
    code, said, _ = cli(capsys, "strength", run, "--texts", folder / "texts.yaml", "--out", "weaker")
    assert code == 0 and says(said, f"recommended strength {curve.recommended:g}", "moslora eval weaker")
    assert [line.split()[0] for line in said.splitlines()[2:13]] == [f"{strength:g}" for strength in STRENGTHS]
    kept = read_curve(Run(run))
    assert kept is not None and kept.conclusion() == curve.conclusion()
    assert open_adapter(Path("weaker/adapter")).strength.value == curve.recommended
    code, said, _ = cli(capsys, "report", run, "--out", "report")
    assert code == 0 and Path("report/strength-run.png").is_file()


def test_training_rows_in_a_file_are_left_out(measured, world, tmp_path, capsys):
    """Its training rows are left out, and the validation rows among them are not; the rest is too little."""
    folder, _ = measured
    seen = json.loads(next(world.glob("data/boolq/train.json")).read_text())[:20]
    new = [llm_adapters_row(example) for example in make_examples("boolq", 90)[80:]]
    (tmp_path / "rows.json").write_text(json.dumps(seen + new))
    words = ["strength", folder / "run" / "adapter", "--texts", folder / "texts.yaml", "--rows"]
    code, said, _ = cli(capsys, *words, tmp_path / "rows.json")
    assert code == 0 and says(said, "10 of the 30 rows", "training rows", "no strength is recommended by 20")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "--rows FILE"),
        (("--rows", "gone.json"), "gone.json"),
        (("--texts", "boolq"), "boolq is a set of questions"),
        (("--rows", "x", "--set", "0.8", "--out", "x"), "--rows"),
    ],
)
def test_faults_are_one_line(recipe, tmp_path_factory, tmp_path, monkeypatch, capsys, words, named):
    monkeypatch.chdir(tmp_path)
    overrides = ["training.max_steps=2"] if "--texts" in words else ["training.max_steps=2", "data.validation_rows=0"]
    train_recipe(recipe(*overrides), out=Path("run"))
    code, _, errors = cli(capsys, "strength", "run", *words)
    assert code == 2 and len(errors.splitlines()) == 1 and named in errors
    assert not Path("run/strength.json").exists()
