"""Experiments of the small world: end to end, stopped and resumed, results that match or do not."""

import inspect
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from scipy.special import log_softmax

from changes_kit import edit_json, write_jsonl
from changes_kit import replace as replace_text
from cli_kit import run
from experiment_kit import FILE, results, study, train
from message_kit import says
from moslora.adapter_options import AdapterOptions
from moslora.base.identity import fingerprint
from moslora.compare.arms import load_arms
from moslora.compare.comparison import compare_paths
from moslora.compare.conclusion import lines
from moslora.compare.display import tables
from moslora.compare.index import read_index
from moslora.data.steps import StepPlan
from moslora.errors import Diverged, Interrupted, MosloraError, UsageError
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.experiment import one_run, provenance
from moslora.experiment.file import load_experiment
from moslora.experiment.tables import Curve
from moslora.recipe import TrainingSection
from moslora.runs.absolute_paths import with_absolute_paths
from moslora.runs.evaluation import read_predictions
from moslora.runs.run import Run
from moslora.training import loop
from moslora.training.launch import train_in_processes
from moslora.training.optimizer import rate_factor
from moslora.version import source_files

Write = Callable[..., str]


@pytest.fixture
def write(world, tmp_path, monkeypatch):
    """Return a function that writes an experiment file into the working folder."""

    def file(*, rates="[3e-2]", search="", old="", new=""):
        text = FILE.format(world=world, rates=rates, search=search)
        assert old in text
        Path("e.yaml").write_text(text.replace(old, new, 1) if old else text, encoding="utf-8")
        return "e.yaml"

    monkeypatch.setattr(one_run, "train_in_processes", train)
    monkeypatch.chdir(tmp_path)
    return file


def interrupt(patch, owner, name, *, after):
    """Send Ctrl-C to this process in the call after ``after`` calls."""
    real, calls = getattr(owner, name), []

    def stop(*arguments, **options):
        calls.append(1)
        if len(calls) == after + 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **options)

    patch.setattr(owner, name, stop)


@pytest.mark.slow
def test_two_arms_and_two_seeds_end_to_end(write, capsys):
    code, said, errors = run(capsys, "experiment", write())
    assert code == 0, errors
    out = Path("runs/e")
    names = ["learned-0.03-0", "learned-0.03-1", "lora-0.03-0", "lora-0.03-1"]
    assert sorted(path.name for path in (out / "runs").iterdir()) == names
    index = read_index(out)
    assert (index.name, index.contrast, index.outcome) == ("e", ("lora", "learned"), "log_probability")
    assert sorted(Path(line.folder).name for line in index.runs) == names
    means = {"lora": [], "learned": []}
    answers = {arm.name: arm.runs for arm in load_arms([out])}
    for line in index.runs:
        (scores,) = (out / line.folder / "eval").iterdir()
        right = {p.id: log_softmax(p.deciding_scores)[p.gold] for p in read_predictions(scores)}
        kept = {}
        for task in answers[line.arm][line.seed].tasks.values():
            kept |= dict(zip(task.ids, task.outcomes["log_probability"], strict=True))
        assert len(right) == 18 and kept == pytest.approx(right, abs=1e-6)
        assert not (out / line.folder / "checkpoints").exists()
        by_task = [np.mean([x for i, x in right.items() if i.startswith(task)]) for task in ("boolq", "arc", "obqa")]
        means[line.arm].append(np.mean(by_task))
    for pair in means.values():
        assert f"{np.mean(pair):.4f} ± {np.std(pair, ddof=1) / 2**0.5:.4f}" in said
    assert says(said, "lora-0.03-0: 4 left", "learned-0.03-1: 1 left", "4 of 4 runs", "moslora compare runs/e")


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "name", "after"), [(loop, "accumulate", 6), (one_run, "evaluate_target", 1)])
def test_stopped_in_the_middle_and_resumed_it_gives_the_same_bytes(write, finished, monkeypatch, owner, name, after):
    """The second run is stopped at its third step, or before it is scored."""
    file = write()
    with monkeypatch.context() as patch:
        interrupt(patch, owner, name, after=after)
        with pytest.raises(Interrupted):
            study(file, Path("cut")).run()
    first = results(Path("cut"))
    assert len(first) == 1 and not Path("cut/.lock").exists()
    trained = []

    def count(arguments, *, out, **_):
        trained.append(out)
        train(arguments, out=out)

    monkeypatch.setattr(one_run, "train_in_processes", count)
    shutil.move("cut/runs/lora-0.03-0/adapter", "done")  # not needed any more
    study(file, Path("cut")).run()
    shutil.move("done", "cut/runs/lora-0.03-0/adapter")
    assert len(trained) == (3 if owner is loop else 2)
    assert results(Path("cut")) == results(finished) and len(results(finished)) == 4


SEARCH = "rate_seeds: [7, 8]"


@pytest.mark.slow
def test_divergence_in_processes_has_its_own_error(world, tmp_path):
    with pytest.raises(Diverged):
        train_in_processes([str(world / "recipe.yaml"), "training.learning_rate=1e38"], out=tmp_path, processes=1)


@pytest.mark.slow
def test_a_rate_that_diverges_is_not_chosen_and_stops_nothing(write, capsys, monkeypatch):
    real = loop.accumulate

    def accumulate(parts, *arguments):
        return real(parts, *arguments) * (math.nan if parts.optimizer.param_groups[0]["lr"] > 1 else 1)

    monkeypatch.setattr(loop, "accumulate", accumulate)
    file = write(rates="[3e-2, 9]", search="rate_seeds: [7]")
    code, said, errors = run(capsys, "experiment", file, "lora", "--any-rate")
    assert code == 0 and says(said, "note: lora-9-7 diverged", "* ", "not finite"), errors
    assert {line.learning_rate for line in read_index(Path("runs/e")).runs} == {3e-2}
    code, said, _ = run(capsys, "experiment", file, "lora")
    assert code == 0 and " left" not in said, "nothing is trained again"
    # Where all diverge the arm has no rate, and the others go on.
    code, said, _ = run(capsys, "experiment", write(rates="[8, 9]", search="rate_seeds: [7]"), "lora")
    assert code == 0 and says(said, "lora: no learning rate", "finite") and "not chosen" in said


@pytest.mark.slow
def test_a_scored_run_that_diverges_is_named_and_stops_nothing(write, capsys):
    """A scale of 2.5e37 makes every seed of an arm diverge."""
    learned = "mixer: {init: orthogonal}"
    write(old=learned, new=f"alpha: 1.0e+38, {learned}")
    replace_text(Path("e.yaml"), "learning_rates:", "  third: {adapter: {alpha: 9}}\nlearning_rates:")
    for _ in range(2):
        code, said, errors = run(capsys, "experiment", "e.yaml")
        assert code == 0 and says(said, "diverged", "learned-0.03-0, learned-0.03-1\n", "4 of 6 runs"), errors
    assert not re.search(r"(runs|min) left", said) and re.search(r"learned +0\.03 +0/2 +– +–\n", said)
    assert {line.arm for line in read_index(Path("runs/e")).runs if line.diverged} == {"learned"}
    code, said, errors = run(capsys, "compare", "runs/e", "--contrast", "lora,third")
    assert code == 0 and says(said, "diverged", "learned with seed 0, learned with seed 1"), errors


def test_a_rate_at_the_edge_asks_for_the_next_one():
    losses = {1e-3: [3.0, 3.0], 4e-3: [2.0, 3.0], 8e-3: [2.6, 2.6]}
    assert not Curve("a", 2, losses).remark
    assert Curve("a", 2, {**losses, 8e-3: [2.0, 2.0]}).remark.endswith("add 0.016")
    assert Curve("a", 2, {**losses, 1e-3: [1.0, 1.0]}).remark.endswith("add 0.00025")
    assert Curve("a", 2, {**losses, 8e-3: [2.0]}).remark == Curve("a", 2, {1e-3: []}).remark == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"old": "max_steps: 4", "new": "max_steps: 3"}, "training.max_steps was 4, is 3"),
        ({"old": "limit: 6", "new": "limit: 5"}, "evaluation.limit was 6, is 5"),
        ({"old": "init: orthogonal", "new": "init: xavier"}, "adapter.mixer.init was orthogonal, is xavier"),
    ],
)
def test_results_of_another_recipe_do_not_count(write, finished, change, message):
    """Runs that do not count are neither replaced nor removed."""
    shutil.copytree(finished, "runs/e")
    with pytest.raises(UsageError, match=message):
        study(write(**change)).run()
    assert results(Path("runs/e")) == results(finished)
    assert any(says(line, "note: ", message) for line in study("e.yaml").closing())
    printing = write(old="checkpoint_every: 1", new="checkpoint_every: 3, log_every: 1")
    assert not study(printing).mismatches(), "what only prints or saves may change"


def test_the_table_needs_neither_base_nor_rows(write, finished, monkeypatch, capsys):
    """The table of runs from another machine is printed without base and rows."""
    shutil.copytree(finished, "runs/e")
    file = write()
    code, before, errors = run(capsys, "experiment", file, "--table")
    assert code == 0 and "4 of 4 runs are scored" in before and "note" not in before, errors
    for name in ("fingerprint", "load_tokenizer", "identity"):
        monkeypatch.setattr(provenance, name, Mock(side_effect=MosloraError("no hub in reach")))
    provenance._rows.cache_clear()
    provenance._encoding.cache_clear()
    assert run(capsys, "experiment", file, "--table")[:2] == (0, before)


def test_results_of_other_code_count_only_if_asked(write, finished, monkeypatch, capsys):
    """If one arm is run again, the index leaves out the others with a note. Their folders stay."""
    shutil.copytree(finished, "runs/e")
    file, before = write(), results(finished)
    monkeypatch.setattr(provenance, "code", lambda: "other")
    with pytest.raises(UsageError, match=r"the code changed.*--any-code"):
        study(file).run()
    for path in Path("runs/e/runs").glob("lora-*"):
        shutil.rmtree(path)
    code, said, errors = run(capsys, "experiment", file, "lora")
    assert code == 0, errors
    assert {line.arm for line in read_index(Path("runs/e")).runs} == {"lora"}
    assert re.search(r"note: runs/e: learned-0\.03-\d.*the code changed", said)
    code, said, _ = run(capsys, "experiment", file, "--any-code")
    assert code == 0 and "the code changed" not in said
    assert {line.arm for line in read_index(Path("runs/e")).runs} == {"lora", "learned"}
    assert results(Path("runs/e")) == before


def test_a_lost_predecessor_leaves_its_arm_out_and_the_others_go_on(write, trained, capsys):
    first = Path(shutil.copytree(trained, "first"))
    write(old="adapter: {mixer: {init: orthogonal}}", new=f"adapter: {{continue_from: {first.resolve()}}}")
    replace_text(Path("e.yaml"), "seeds: [0, 1]", "seeds: [0]")
    code, _, errors = run(capsys, "experiment", "e.yaml", "learned")
    assert code == 0, errors
    first.rename("elsewhere")
    code, said, errors = run(capsys, "experiment", "e.yaml", "lora")
    assert code == 0 and says(said, "learned-0.03-0: cannot be made again", "adapter.continue_from"), errors
    assert {line.arm for line in read_index(Path("runs/e")).runs} == {"lora"}
    code, _, errors = run(capsys, "experiment", "e.yaml", "learned")
    assert code == 2 and says(errors, "no such run", "remove it"), errors


def test_search_ignores_changes_of_the_questions(write):
    loaded = load_experiment(write(rates="[1e-4, 3e-2]", search=SEARCH))
    search, scored = loaded.rate_runs(("lora",))[0], loaded.planned([("lora", 1e-4)], scored=True)[0]
    for one in (search, scored):
        made_with = provenance.provenance(one)
        for section, tasks, expected in (
            ("evaluation", ("boolq",), "questions changed" if one.scored else ""),
            ("data", ("obqa",), "rows changed"),
        ):
            changed = getattr(one.recipe, section).model_copy(update={"tasks": tasks})
            now = replace(one, recipe=one.recipe.model_copy(update={section: changed}))
            found = provenance.changes(now, one.recipe, made_with, any_code=True)
            assert bool(found) == bool(expected) and expected in "".join(found)
        assert not provenance.changes(one, one.recipe, made_with, any_code=True)


def test_own_rows_are_identified_by_content(world, tmp_path, monkeypatch):
    """A stored recipe has the whole path of the rows, but their content decides."""
    rows = [json.dumps({"q": f"which {n}?", "a": n % 2}) + "\n" for n in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    task = "tasks: {mine: {train: rows.jsonl, question: q, options: [good, bad], answer: a}}\n"
    (tmp_path / "own.yaml").write_text(task)
    text = FILE.format(world=world, rates="[3e-2]", search="")
    text = text.replace(f"{world}/recipe.yaml", f"[{world}/recipe.yaml, own.yaml]")
    (tmp_path / "e.yaml").write_text(text.replace("evaluation: {", "data: {tasks: [mine]}\n  evaluation: {"))

    def planned(file):
        return load_experiment(file).planned([("lora", 3e-2)], scored=True)[0]

    monkeypatch.chdir(tmp_path)
    made_with, stored = provenance.provenance(planned("e.yaml")), with_absolute_paths(planned("e.yaml").recipe)
    assert stored.tasks["mine"].train == str(tmp_path / "rows.jsonl")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for content, expected in ((rows, []), (rows[1:], ["the rows changed"])):
        (tmp_path / "rows.jsonl").write_text("".join(content))
        provenance._rows.cache_clear()
        assert provenance.changes(planned("../e.yaml"), stored, made_with, any_code=False) == expected


def test_another_base_tokenizer_or_package_makes_another_run(write, world, tmp_path):
    """What an earlier version did not record is no difference. ``--any-code`` allows other packages."""
    base = shutil.copytree(world / "model", tmp_path / "base")
    file = write(old=f"extends: {world}/recipe.yaml", new=f"extends: {world}/recipe.yaml\n  model: {{name: {base}}}")
    (planned,) = load_experiment(file).planned([("lora", 3e-2)], scored=True)[:1]

    def changed(made_with, *, any_code=False):
        fingerprint.cache_clear()
        provenance._encoding.cache_clear()
        return provenance.changes(planned, planned.recipe, made_with, any_code=any_code)

    made_with = provenance.provenance(planned)
    older = made_with | {"packages": made_with["packages"] | {"tokenizers": "0.1"}}
    assert changed(older) == [f"tokenizers was '0.1', is {version('tokenizers')}"]
    for same, options in ((made_with, {}), (older, {"any_code": True}), ({"rows": made_with["rows"]}, {})):
        assert not changed(same, **options)
    content = json.loads((base / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:-40]
    edit_json(base / "tokenizer.json", model=content["model"])
    assert changed(made_with, any_code=True) == ["the tokenizer changed"]
    edit_json(base / "config.json", rms_norm_eps=0.5)
    assert changed(made_with, any_code=True) == ["the base changed", "the tokenizer changed"]


@pytest.mark.slow
def test_an_experiment_trains_on_some_sets_and_asks_others(write, capsys):
    """One set is of texts, and an outcome of texts is compared on it alone."""
    Path("t.txt").write_text("A fox sat.\n\nTwo birds sang about the rain.\n", encoding="utf-8")
    asked = "evaluation: {limit: 6, tasks: [obqa, mine]}\n  data: {tasks: [boolq]}\n  tasks: {mine: {texts: t.txt}}"
    file = write(old="evaluation: {limit: 6}", new=asked)
    replace_text(Path(file), "outcome: log_probability", "outcome: nats_per_byte")
    code, said, errors = run(capsys, "experiment", file)
    scores = [read_predictions(Run(path).evaluation_folder()) for path in Path("runs/e/runs").glob("lora-*")]
    rates = [np.mean([-p.scores[0] / p.bytes for p in one if p.bytes]) for one in scores]
    assert all({p.task for p in one} == {"obqa", "mine"} for one in scores)
    mean = f"{np.mean(rates):.4f} ± {np.std(rates, ddof=1) / 2**0.5:.4f}"
    assert code == 0 and says(said, "nats per byte", mean), errors
    code, said, errors = run(capsys, "compare", "runs/e")
    assert code == 0 and "nats per byte" in said and "obqa" not in said, errors


def test_answers_beyond_the_plan_change_nothing(write, finished):
    shutil.copytree(finished, "runs/e")
    file = write()

    def told():
        found = compare_paths([Path("runs/e")])
        return list(study(file).tables()), tables(found), lines(found)

    before = told()
    for path in Path("runs/e/runs").iterdir():
        evaluate_target(open_target(str(path)), tasks="boolq", limit=None)
        assert told() == before


def test_code_hash_covers_what_computes_numbers():
    """The hash covers the steps of a warm-up, the options of adapters, the order of rows and the rate."""
    for method in (TrainingSection.warmup, AdapterOptions, StepPlan, rate_factor):
        assert Path(inspect.getfile(method)) in source_files(provenance.CODE)


def test_a_validation_loss_that_is_not_finite_counts_as_infinite(write, tmp_path):
    """JSON has no such number, and training goes on after it."""
    planned, *_ = load_experiment(write(rates="[1e-4, 3e-2]", search=SEARCH)).rate_runs(("lora",))
    run = one_run.planned_run(tmp_path, planned)
    run.add_facts(experiment={"state": "trained"})
    for last, expected in ((None, math.inf), (2.5, 2.5)):
        rows = [{"step": 1, "validation_loss": 3.0}, {"step": 2, "validation_loss": last}]
        write_jsonl(run.path / "metrics.jsonl", rows)
        row = one_run.finished_run(tmp_path, planned)
        assert row is not None and one_run.loss_of(row) == expected


def test_two_files_of_one_name_do_not_share_a_folder(write, finished, capsys):
    """A second file would replace the first one's index. An edited or moved file is the same file."""
    text = Path(write()).read_text()
    for folder in ("repo/a", "repo/b"):
        Path(folder).mkdir(parents=True)
        Path(folder, "e.yaml").write_text(text)
    replace_text(Path("repo/a/e.yaml"), "outcome: log_probability", "outcome: accuracy")
    shutil.copytree(finished, "repo/runs/e")
    study("repo/a/e.yaml", Path("repo/runs/e")).run()
    before = {path: path.read_bytes() for path in Path("repo").rglob("*") if path.is_file()}
    for options in ([], ["--table"]):
        code, _, errors = run(capsys, "experiment", "repo/b/e.yaml", "--out", "repo/runs/e", *options)
        assert code == 2 and says(errors, "repo/runs/e: holds the runs of repo/a/e.yaml;", "--out")
    assert {path: path.read_bytes() for path in Path("repo").rglob("*") if path.is_file()} == before
    replace_text(Path("repo/a/e.yaml"), "seeds: [0, 1]", "seeds: [0]")
    assert study("repo/a/e.yaml", Path("repo/runs/e")).run(), "an edited file goes on"
    os.rename("repo", "moved")
    with pytest.raises(UsageError, match=r"moved/a/e\.yaml"):
        study("moved/b/e.yaml", Path("moved/runs/e")).run()
    os.rename("moved/a/e.yaml", "moved/b/e.yaml")
    assert study("moved/b/e.yaml", Path("moved/runs/e")).run(), "which has been moved"
    assert read_index(Path("moved/runs/e")).file == "../../b/e.yaml"


def test_a_run_that_was_killed_after_its_result_was_saved_is_closed(write, finished):
    """The run was killed before its card had the duration."""
    shutil.copytree(finished, "e")
    run, before = Run(Path("e/runs/lora-0.03-0")), Run(finished / "runs/lora-0.03-0").facts
    facts = {key: fact for key, fact in before.items() if key not in ("seconds", "peak_memory_gb")}
    facts["experiment"] = {**facts["experiment"], "state": "begun"}
    (run.path / "run.json").write_text(json.dumps(facts))
    (run.path / ".lock").touch()
    study(write(), Path("e")).run()
    assert run.facts == before and not (run.path / ".lock").exists()


@pytest.mark.slow
def test_an_experiment_that_was_killed_at_its_first_write_knows_its_file(write, monkeypatch):
    """The experiment is stopped before its first run is done."""
    monkeypatch.setattr(one_run, "train_in_processes", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(Interrupted):
        study(write(), Path("runs/e")).run()
    Path("b").mkdir()
    Path("b/e.yaml").write_text(Path("e.yaml").read_text() + "also: [accuracy]\n")
    with pytest.raises(UsageError, match=r"runs/e: holds the runs of e\.yaml;"):
        study("b/e.yaml", Path("runs/e")).run()
