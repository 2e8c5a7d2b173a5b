"""Arms that train nothing: the adapters of another arm at a strength."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from changes_kit import replace, write_jsonl
from cli_kit import run
from experiment_kit import FILE, study, train
from message_kit import says
from moslora.compare.comparison import compare_paths
from moslora.compare.index import read_index
from moslora.compare.tables import read_tables
from moslora.errors import Diverged, Interrupted, UsageError
from moslora.experiment import one_run
from moslora.experiment.file import load_experiment
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.run import Run
from moslora.strength.curve import read_curve
from moslora.strength.measure import measure_strength

APPLIED = """  half: {of: lora, strength: 0.5}
  chosen: {of: lora, strength: recommended}
  whole: {of: lora, strength: 1}
learning_rates:"""


def text_of(world):
    """Return an experiment file of four arms, one of which trains, with enough rows for a recommended strength."""
    text = FILE.format(world=world, rates="[3e-2]", search="").replace("learning_rates:", APPLIED)
    text = text.replace("  learned: {adapter: {mixer: {init: orthogonal}}}\n", "")
    text = text.replace("[lora, learned]", "[lora, half]")
    return text.replace("training:", "data: {validation_rows: 34}\n  training:", 1)


@pytest.fixture(scope="module")
def applied(world, tmp_path_factory):
    """A folder with the experiment's file and its finished runs."""
    here = tmp_path_factory.mktemp("applied")
    (here / "e.yaml").write_text(text_of(world), encoding="utf-8")
    write_jsonl(here / "notes.jsonl", [{"text": "old birds sang and a red fox"}])
    (here / "notes.yaml").write_text("tasks: {notes: {texts: notes.jsonl}}", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(one_run, "train_in_processes", train)
        patch.setattr(one_run, "measure_strength", partial(measure_strength, texts="notes.yaml"))
        assert study("e.yaml").run()
    return here


@pytest.fixture
def here(applied, tmp_path, monkeypatch):
    folder = shutil.copytree(applied, tmp_path / "here")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(one_run, "train_in_processes", train)
    monkeypatch.setattr(one_run, "measure_strength", partial(measure_strength, texts="notes.yaml"))
    return folder


def test_applied_arm_has_the_other_arms_adapters_at_its_strength(here):
    """At strength 0.5, B is halved. At strength 1, weights, answers and loss are those of the other arm."""
    for seed in (0, 1):
        runs = {arm: Run(Path(f"runs/e/runs/{arm}-0.03-{seed}")) for arm in ("lora", "half", "whole", "chosen")}
        lora, half, whole, chosen = runs.values()
        weights, halved = (open_adapter(each.result).weights() for each in (lora, half))
        for name, weight in weights.items():
            expected = weight / 2 if name.endswith("lora_b") else weight
            assert halved[name].equal(expected), name
        assert all(weight.equal(weights[name]) for name, weight in open_adapter(whole.result).weights().items())
        assert whole.validation_loss == pytest.approx(lora.validation_loss, rel=1e-5)
        assert half.validation_loss != pytest.approx(lora.validation_loss, rel=1e-3)
        answers = [next(each.path.glob("eval/*/predictions.jsonl")).read_bytes() for each in (lora, whole, half)]
        assert answers[0] == answers[1] != answers[2]
        curve = read_curve(lora)
        assert curve is not None and curve.rows == 34
        assert chosen.facts["strength"]["value"] == (curve.recommended or 1.0)
        assert chosen.facts["strength"]["run"] == lora.name


def test_applied_arm_is_compared_shown_and_packed(here, capsys):
    code, said, errors = run(capsys, "experiment", "e.yaml", "--table")
    assert code == 0 and says(said, "strength", "half", "0.5", "8 of 8 runs are scored"), errors
    for outcome in ("log_probability", "validation_loss"):
        found = compare_paths([Path("runs/e")], outcome=outcome)
        assert found.main is not None and found.main.seeds == 2
    code, said, errors = run(capsys, "experiment", "e.yaml", "--pack", "packed")
    assert code == 0, errors
    rows = {row.name: row for row in read_tables(Path("packed"))}
    assert [rows[f"{arm}-0.03-0"].strength for arm in ("lora", "half", "whole")] == [None, 0.5, 1.0]
    assert rows["half-0.03-0"].seconds is None and rows["lora-0.03-0"].seconds is not None
    index = read_index(Path("packed"))
    assert index is not None and index.card is not None and index.card.arms["half"].of == "lora"
    assert list(study("e.yaml", Path("packed")).tables()) == list(study("e.yaml").tables())
    replace(Path("e.yaml"), "strength: 0.5", "strength: 0.6")
    others = study("e.yaml", Path("packed")).mismatches()
    assert any(says(line, "half-0.03-0", "strength was 0.5, is 0.6") for line in others)


def test_applied_arm_is_written_once_after_its_source(here, monkeypatch):
    for path in Path("runs/e/runs").glob("*-1"):
        shutil.rmtree(path)
    done = []
    make = one_run.run_one
    monkeypatch.setattr(one_run, "run_one", lambda planned, **how: (done.append(planned.name), make(planned, **how))[1])
    assert load_experiment("e.yaml").chosen_arms(("whole",)) == ("lora", "whole")
    assert study("e.yaml").run()
    assert done == [f"{arm}-0.03-1" for arm in ("lora", "half", "chosen", "whole")]
    assert study("e.yaml").run() and len(done) == 4
    shutil.rmtree("runs/e/runs/half-0.03-1")
    shutil.rmtree("runs/e/runs/lora-0.03-1/adapter")
    with pytest.raises(UsageError, match=r"half-0.03-1: .*lora-0.03-1"):
        study("e.yaml").run()


def test_other_strengths_and_unfinished_runs_do_not_count(here, monkeypatch):
    replace(Path("e.yaml"), "strength: 0.5", "strength: 0.6")
    with pytest.raises(UsageError, match=r"half-0.03-0.*strength was 0\.5, is 0\.6"):
        study("e.yaml").run()
    shutil.rmtree("runs/e/runs/half-0.03-0")
    shutil.rmtree("runs/e/runs/half-0.03-1")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(one_run, "write_at_strength", killed)
        study("e.yaml").run()
    assert study("e.yaml").run()
    assert Run(Path("runs/e/runs/half-0.03-0")).facts["strength"]["value"] == 0.6


def test_applied_arm_of_a_diverged_run_diverged(here, monkeypatch):
    shutil.rmtree("runs/e")

    def diverges(arguments, *, out, **_):
        raise Diverged("step 2")

    monkeypatch.setattr(one_run, "train_in_processes", diverges)
    assert study("e.yaml").run()
    index = read_index(Path("runs/e"))
    assert index is not None and len(index.runs) == 8 and all(line.diverged for line in index.runs)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("of: lora, strength: 0.5", "of: lorra, strength: 0.5", "of: lorra"),
        ("of: lora, strength: 0.5", "of: whole, strength: 0.5", "arms.half.of: whole"),
        ("of: lora, strength: 0.5", "of: lora", "arms.half.strength: is missing"),
        ("of: lora, strength: 0.5", "of: lora, strength: 3", "arms.half.strength"),
        (
            "of: lora, strength: 0.5",
            "of: lora, strength: 1, rank: 3",
            "arms.half.rank: unknown key; .* of, strength",
        ),
        ("data: {validation_rows: 34}", "data: {validation_rows: 0}", "validation_rows = 0: the strength of chosen"),
        ("learning_rates: [3e-2]", "learning_rates: {lora: [3e-2], half: [1e-2]}", "learning_rates.half"),
    ],
)
def test_faults(here, old, new, fault):
    replace(Path("e.yaml"), old, new)
    with pytest.raises(UsageError, match=fault):
        load_experiment("e.yaml")
