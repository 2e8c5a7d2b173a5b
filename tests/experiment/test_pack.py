"""An experiment of the small world in tables: they say what its runs say, and it goes on from there."""

import shutil
from pathlib import Path

import pytest

from changes_kit import replace
from cli_kit import run
from experiment_kit import study, train
from message_kit import says
from moslora.compare.comparison import compare_paths
from moslora.compare.conclusion import lines
from moslora.compare.display import tables
from moslora.compare.index import EXPERIMENT, read_index
from moslora.compare.tables import TABLES, read_tables
from moslora.errors import UsageError
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.experiment import one_run
from moslora.experiment.one_run import recorded_provenance
from moslora.experiment.pack import pack_runs
from moslora.runs.run import Run


@pytest.fixture(scope="module")
def scored(finished, tmp_path_factory):
    """A folder with an experiment file and its finished runs, in one of which the base was asked, too."""
    here = tmp_path_factory.mktemp("packing")
    shutil.copy(finished.with_name("e.yaml"), here)
    shutil.copytree(finished, here / "runs" / "e")
    evaluate_target(open_target(str(here / "runs" / "e" / "runs" / "lora-0.03-0"), base=True))
    return here


@pytest.fixture
def here(scored, tmp_path, monkeypatch):
    folder = shutil.copytree(scored, tmp_path / "here")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(one_run, "train_in_processes", train)
    return folder


def test_the_tables_say_what_the_runs_say(here, capsys):
    code, said, errors = run(capsys, "experiment", "e.yaml", "--pack", "packed")
    assert code == 0 and "written to packed: 4 runs" in said, errors
    assert sorted(path.name for path in Path("packed").iterdir()) == sorted((EXPERIMENT, *TABLES))
    for outcome in ("log_probability", "accuracy", "validation_loss"):
        whole, packed = (compare_paths([Path(folder)], outcome=outcome) for folder in ("runs/e", "packed"))
        assert (tables(whole), lines(whole)) == (tables(packed), lines(packed))
    assert "gain over base" in "".join(lines(compare_paths([Path("packed")], outcome="accuracy")))
    assert list(study("e.yaml", Path("packed")).tables()) == list(study("e.yaml").tables())
    for row in read_tables(Path("packed"))[:-1]:
        facts = Run(Path("runs/e/runs") / row.name).facts
        assert (row.seconds, row.parameters) == (facts["seconds"], facts["trainable_parameters"])
        assert (row.device, row.begun) == (facts["hardware"]["device"], facts["experiment"]["begun"])
    index = read_index(Path("packed"))
    assert index is not None and index.card is not None and index.runs == ()
    for arm, card in index.card.arms.items():
        assert card.made_with == (recorded_provenance(Run(Path(f"runs/e/runs/{arm}-0.03-0"))),)


def test_an_experiment_goes_on_from_its_tables(here, capsys):
    """A further seed is run beside the tables, and all runs are packed again elsewhere."""
    list(pack_runs(study("e.yaml"), Path("packed")))
    replace(Path("e.yaml"), "seeds: [0, 1]", "seeds: [0, 1, 2]")
    code, said, errors = run(capsys, "experiment", "e.yaml", "--out", "packed")
    assert code == 0 and "6 of 6 runs are scored" in said, errors
    assert sorted(path.name for path in Path("packed/runs").iterdir()) == ["learned-0.03-2", "lora-0.03-2"]
    with pytest.raises(UsageError, match=r"packed: the experiment's own folder; .* --pack"):
        list(pack_runs(study("e.yaml", Path("packed")), Path("packed")))
    list(pack_runs(study("e.yaml", Path("packed")), Path("again")))
    assert len(read_tables(Path("again"))) == 7
    before = compare_paths([Path("packed")])
    assert before.main is not None and before.main.seeds == 3
    assert lines(compare_paths([Path("again")])) == lines(before)
    with pytest.raises(UsageError, match=r"has runs that runs/e does not have \(learned-0.03-2, lora-0.03-2\)"):
        list(pack_runs(study("e.yaml"), Path("again")))
    code, said, errors = run(capsys, "experiment", "e.yaml", "--out", "again")
    assert code == 0 and "6 of 6 runs are scored" in said and not Path("again/runs").exists(), errors


def test_the_search_in_a_table_chooses_the_rates(here, capsys, monkeypatch):
    replace(Path("e.yaml"), "learning_rates: [3e-2]", "learning_rates: [3e-2, 1e-5]\nrate_seeds: [7]")
    code, _, errors = run(capsys, "experiment", "e.yaml", "--any-rate")
    assert code == 0, errors
    list(pack_runs(study("e.yaml"), Path("packed")))
    assert [row.role for row in read_tables(Path("packed"))] == ["searched"] * 4 + ["scored"] * 4 + ["base"]
    monkeypatch.setattr(one_run, "train_in_processes", None)  # nothing is trained again
    assert list(study("e.yaml", Path("packed")).tables()) == list(study("e.yaml").tables())
    code, said, errors = run(capsys, "experiment", "e.yaml", "--out", "packed", "--any-rate")
    assert code == 0 and "4 of 4 runs are scored" in said, errors


def test_an_arm_that_goes_on_at_another_rate_is_compared_there(here, capsys):
    list(pack_runs(study("e.yaml"), Path("packed")))
    replace(Path("e.yaml"), "learning_rates: [3e-2]", "learning_rates: {lora: [1e-5], learned: [3e-2]}")
    code, _, errors = run(capsys, "experiment", "e.yaml", "--out", "packed")
    assert code == 0, errors
    assert sorted(path.name for path in Path("packed/runs").iterdir()) == ["lora-1e-05-0", "lora-1e-05-1"]
    compared = [run.path.name for arm in compare_paths([Path("packed")]).arms for run in arm.runs.values()]
    assert sorted(compared) == ["learned-0.03-0", "learned-0.03-1", "lora-1e-05-0", "lora-1e-05-1"]


def test_another_recipe_or_other_code_is_refused(here, capsys, monkeypatch):
    list(pack_runs(study("e.yaml"), Path("packed")))
    whole = Path("e.yaml").read_text()
    replace(Path("e.yaml"), "init: orthogonal", "init: identity")
    for options, named in (((), "was orthogonal, is identity"), (("--any-code",), "was orthogonal, is identity")):
        code, _, errors = run(capsys, "experiment", "e.yaml", "--out", "packed", *options)
        assert code == 2 and says(errors, "packed: ", named, "--out") and errors.count("\n") == 1, errors
    Path("e.yaml").write_text(whole)
    monkeypatch.setattr("moslora.experiment.provenance.code", lambda: "other")
    code, _, errors = run(capsys, "experiment", "e.yaml", "--out", "packed")
    assert code == 2 and says(errors, "packed: ", "the code changed", "--any-code"), errors
    code, said, errors = run(capsys, "experiment", "e.yaml", "--out", "packed", "--any-code")
    assert code == 0 and "4 of 4 runs are scored" in said, errors


def test_unfinished_runs_are_not_packed(here):
    Run(Path("runs/e/runs/lora-0.03-1")).add_facts(experiment={"state": "begun"})
    told = list(pack_runs(study("e.yaml"), Path("packed")))
    assert "3 runs" in told[0]
    with pytest.raises(UsageError, match="no runs of this experiment yet"):
        list(pack_runs(study("e.yaml", Path("runs/none")), Path("packed")))
    Path("full").mkdir()
    Path("full/notes.txt").touch()
    with pytest.raises(UsageError, match=r"full: not empty \(notes.txt\)"):
        list(pack_runs(study("e.yaml"), Path("full")))
