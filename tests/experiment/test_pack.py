"""An experiment of the small world, packed: it says the same, and goes on."""

import shutil
from pathlib import Path

import pytest

from cli_kit import run
from experiment_kit import study, train
from moslora.compare.comparison import compare_paths
from moslora.compare.conclusion import lines, tables
from moslora.compare.index import EXPERIMENT, read_index
from moslora.errors import UsageError
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.experiment import one_run
from moslora.experiment.pack import pack_runs
from moslora.report.runs import reported_runs
from moslora.runs.listing import table_of_runs
from moslora.runs.packed import COLUMNS, read_packed
from moslora.runs.run import Run


@pytest.fixture(scope="module")
def scored(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment file and its finished runs, in one of which the base was asked, too."""
    here = tmp_path_factory.mktemp("packing")
    shutil.copy(finished.with_name("e.yaml"), here)
    shutil.copytree(finished, here / "runs" / "e")
    evaluate_target(open_target(str(here / "runs" / "e" / "runs" / "lora-0.03-0"), base=True))
    return here


@pytest.fixture
def here(scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(scored, tmp_path / "here"))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(one_run, "train_in_processes", train)
    return folder


def test_a_packed_experiment_says_what_its_runs_say(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, errors = run(capsys, "experiment", "e.yaml", "--pack", "packed")
    assert code == 0 and "written to packed: 4 runs" in said, errors
    assert sorted(path.name for path in Path("packed").iterdir()) == sorted((EXPERIMENT, *COLUMNS))
    for outcome in ("log_probability", "accuracy"):
        whole, packed = (compare_paths([Path(folder)], outcome=outcome) for folder in ("runs/e", "packed"))
        assert (tables(whole), lines(whole)) == (tables(packed), lines(packed))
    assert list(study("e.yaml", Path("packed")).tables()) == list(study("e.yaml").tables())
    for folder in Path("runs/e/runs").iterdir():
        one, other = Run(folder), Run(Path("packed/runs") / folder.name)
        assert (one.facts, one.recipe, one.metrics) == (other.facts, other.recipe, other.metrics)
        assert [path.name for path in one.evaluations] == [path.name for path in other.evaluations]
    scores = [row[-1] for row in table_of_runs(Path("runs/e"))]
    packed = table_of_runs(Path("packed"))
    assert [row[-1] for row in packed] == scores
    assert {row[4] for row in packed[1:]} == {"packed"} and "/" not in packed[1][3]
    whole, packed = (reported_runs([Path(folder)]) for folder in ("runs/e", "packed"))
    assert [one.tuned_results for one in whole] == [one.tuned_results for one in packed]
    single = ("compare", "packed/runs/lora-0.03-0")  # against its base
    several = ("compare", *(f"packed/runs/{name}" for name in read_packed(Path("packed"))))
    for command in (single, several):
        code, packed_said, errors = run(capsys, *command)
        assert code == 0, errors
        _, said, _ = run(capsys, *(part.replace("packed", "runs/e") for part in command))
        assert said == packed_said


def test_a_packed_experiment_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One more seed is run beside what is packed; both are packed again, elsewhere or in their place."""
    print(*pack_runs(study("e.yaml"), Path("packed")))
    Path("e.yaml").write_text(Path("e.yaml").read_text().replace("seeds: [0, 1]", "seeds: [0, 1, 2]"))
    code, said, errors = run(capsys, "experiment", "e.yaml", "--out", "packed")
    assert code == 0 and "6 of 6 runs are scored" in said, errors
    assert sorted(path.name for path in Path("packed/runs").iterdir()) == ["learned-0.03-2", "lora-0.03-2"]
    with pytest.raises(UsageError, match="the experiment's own folder"):
        list(pack_runs(study("e.yaml", Path("packed")), Path("packed")))
    print(*pack_runs(study("e.yaml", Path("packed")), Path("again")))
    assert len(read_packed(Path("again"))) == 6
    before = compare_paths([Path("packed")])
    assert lines(compare_paths([Path("again")])) == lines(before)
    with pytest.raises(UsageError, match=r"has runs that runs/e does not have \(learned-0.03-2, lora-0.03-2\)"):
        list(pack_runs(study("e.yaml"), Path("again")))
    print(*pack_runs(study("e.yaml", Path("packed")), Path("again")))
    assert read_index(Path("again")) == read_index(Path("packed"))


def test_what_is_not_done_is_left_out_and_an_experiment_without_runs_is_not_packed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Run(Path("runs/e/runs/lora-0.03-1")).add_facts(experiment={"state": "begun"})
    *_, unfinished = Path("runs/e/runs").glob("learned-*/eval/*/results.json")
    unfinished.unlink()
    told = list(pack_runs(study("e.yaml"), Path("packed")))
    errors = "".join(capsys.readouterr())
    assert "3 runs" in told[0] and "not done and left out: lora-0.03-1" in errors
    assert f"{unfinished.parent}: interrupted and left out" in errors
    with pytest.raises(UsageError, match="no runs of this experiment yet"):
        list(pack_runs(study("e.yaml", Path("runs/none")), Path("packed")))
    Path("full").mkdir()
    Path("full/notes.txt").touch()
    with pytest.raises(UsageError, match=r"full: not empty \(notes.txt\)"):
        list(pack_runs(study("e.yaml"), Path("full")))
