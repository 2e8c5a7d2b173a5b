"""Arms: found on disk, grouped, paired; and what is not compared."""

import shlex
import shutil
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from changes_kit import edit_json
from cli_kit import run
from compare_kit import ADAPTED, CONDITIONS, answered_as, asked_as, base, drawn
from message_kit import in_order, says
from moslora.compare.arms import Arm, load_arms
from moslora.compare.comparable import note_what_differs, refuse_mixed
from moslora.compare.comparison import compare_arms
from moslora.errors import UsageError
from moslora.evaluation.journal import Journal
from moslora.recipe import load_recipe
from moslora.runs.conditions import TaskRecord, without_double
from moslora.runs.manifest import read_manifest
from moslora.runs.origin import Origin
from moslora.runs.predictions import Prediction
from moslora.runs.run import Run, base_of


def names(paths):
    """Return name and seeds of each arm at the paths."""
    return [(arm.name, [*arm.runs]) for arm in load_arms(paths)]


TWO = [("lora", [1, 2]), ("mixed", [1, 2])]


def arm(name, *runs):
    return Arm(name, {run.seed: replace(run, path=Path(f"{name}-{run.seed}")) for run in runs})


def evaluated(run, name="cloze-cloze-float32", *, conditions=CONDITIONS, right=2):
    """Write an evaluation of three questions into a run's folder."""
    journal = Journal(run / "eval" / name, conditions)
    journal.record({"obqa": TaskRecord()})
    scores = [(-1.0, -2.0) if row < right else (-2.0, -1.0) for row in range(3)]
    journal.keep([Prediction(f"obqa/test/{row}", "obqa", 0, s.index(-1.0), s, (1, 1)) for row, s in enumerate(scores)])


@pytest.fixture
def runs(tmp_path):
    """Folder of the evaluated runs lora-1, lora-2, mixed-1 and mixed-2, with only the files that are read."""
    for method, kind in (("lora", "identity"), ("mixed", "dense")):
        for seed in (1, 2):
            run = tmp_path / "runs" / f"{method}-{seed}"
            run.mkdir(parents=True)
            changes = [f"name={run.name}", f"seed={seed}", f"adapter.mixer.kind={kind}"]
            (run / "recipe.yaml").write_text(load_recipe("smollm2-135m", changes).to_yaml(), encoding="utf-8")
            (run / "run.json").write_text('{"steps": 50, "trained_rows": 9, "data": {"sha256": "x"}}')
            evaluated(run)
    return tmp_path / "runs"


def test_runs_that_continue_other_weights_are_another_arm(runs):
    """Weights are identified by their hash, not by their place."""
    for number, (place, digest) in enumerate([("/a", "1" * 64), ("/b", "1" * 64), ("/b", "2" * 64)]):
        run = shutil.copytree(runs / "mixed-1", runs / f"on-{number}")
        rewritten(run, f"name={run.name}", f"seed={number}", f"adapter.continue_from={place}")
        Run(run).add_facts(**Origin("first", digest, 9).facts)
    found = [[run.path.name for run in arm.runs.values()] for arm in load_arms([runs])]
    assert found == [["lora-1", "lora-2"], ["mixed-1", "mixed-2"], ["on-0", "on-1"], ["on-2"]]


def test_runs_that_differ_in_the_seed_alone_are_an_arm(runs):
    """Two runs alone are compared, also if they differ only in the seed."""
    assert names([runs]) == names([runs / f"{name}-{seed}" for seed in (1, 2) for name in ("lora", "mixed")]) == TWO
    assert load_arms([runs])[0].runs[2].path == runs / "lora-2"
    assert names([runs / "lora-1", runs / "lora-2"]) == [("lora-1", [1]), ("lora-2", [2])]
    for name in ("lora", "mixed"):
        for seed in (1, 2):
            (runs / name).mkdir(exist_ok=True)
            shutil.move(runs / f"{name}-{seed}", runs / name / f"seed-{seed}")
    assert names([runs / "mixed", runs / "lora"]) == [("mixed", [1, 2]), ("lora", [1, 2])]


def test_a_run_alone_is_compared_with_its_base(runs):
    with pytest.raises(UsageError, match=r"lora-1: .*moslora eval \S+lora-1 --base"):
        load_arms([runs / "lora-1"])
    evaluated(runs / "lora-1", "cloze-cloze-float32-base", conditions=of_weights(None))
    assert names([runs / "lora-1"]) == [("base", [None]), ("lora-1", [1])]


def test_missing_and_ambiguous_evaluations_are_refused(runs):
    """Of several evaluations of a run, the one of its recipe is the default."""

    def refuse(paths, *named, evaluation=None):
        with pytest.raises(UsageError, match=in_order(*named)):
            load_arms([runs / path for path in paths], evaluation=evaluation)

    refuse(["none"], "none", "no evaluated run", "moslora eval")
    refuse(["lora-1", "lora-1/../lora-1"], "lora-1", "twice")
    rewritten(Path(shutil.copytree(runs / "lora-2", runs / "third")), "seed=3")
    refuse(["lora-1", "lora-2", "third"], "one arm")
    shutil.rmtree(runs / "third")
    shutil.copytree(runs / "lora-1", runs / "copy")
    refuse(["."], "lora-1", "same recipe and seed", "copy")
    shutil.rmtree(runs / "copy")
    evaluated(runs / "lora-1", "choice-label-float32")
    refuse(["."], "--evaluation", "choice-label-float32, cloze-cloze-float32")
    evaluated(runs / "lora-1", "cloze-cloze-bfloat16", right=1)
    own = load_arms([runs / "lora-1", runs / "mixed-1"])[0].runs[1]
    assert sum(own.tasks["obqa"].outcomes["accuracy"]) == 1, "as its recipe evaluates"
    assert len(load_arms([runs], evaluation="cloze-cloze-float32")) == 2
    refuse(["."], "lora-2", "choice-label-float32", "cloze-cloze-float32", evaluation="choice-label-float32")


def base_is(**weights):
    return answered_as(drawn(1), **weights)


def made(seed, **how):
    """Return a run with these training facts."""
    return replace(drawn(seed), training_facts=drawn(seed).training_facts | how)


def other(**conditions):
    return asked_as(drawn(1), **conditions)


@pytest.mark.parametrize(
    ("one", "two", "line"),
    [
        (drawn(1), other(protocol="choice"), "protocol: cloze in one-1, choice in other-1"),
        (drawn(1), other(format="label"), "format: cloze in one-1, label in other-1"),
        (drawn(1), other(data={"obqa": "0123"}), "questions of obqa: None in one-1, 0123 in other-1"),
        (drawn(1), answered_as(drawn(1), dtype="bfloat16"), "dtype: float32 in one-1, bfloat16 in other-1"),
        (drawn(1), base_is(fingerprint="beef"), "base: small (f00d) in one-1, small (beef)"),
        (
            drawn(1),
            base_is(fingerprint="beef", base_commit="0123456789"),
            "base: small (f00d) in one-1, small (beef, commit 01234567)",
        ),
        (drawn(1), made(1, steps="99"), "steps: 50 in one-1, 99 in other-1"),
        (drawn(1), made(1, **{"rows.1": "no"}), "rows.1: rows of 1 in one-1, no in"),
        (made(1, rows="all of 1"), made(2, rows="any of 2"), "rows: all of 1 in one-1, any of 2 in"),
    ],
)
def test_refusal_names_the_field_and_both_values(one, two, line):
    """Rows of the source are compared between seeds, rows drawn by a seed only under the same seed."""
    with pytest.raises(UsageError) as fault:
        refuse_mixed([arm("one", one), arm("base", base()), arm("other", two)], allowed=["seeds"])
    assert line in str(fault.value) and all("one-1" in text for text in str(fault.value).splitlines())


def test_another_commit_with_the_same_weights_is_noted(capsys):
    """As one that changed the tokenizer alone. A base of a folder has no commit, which is no difference."""
    commits = [arm(name, base_is(base_commit=name * 40)) for name in ("a", "b")]
    for arms, said in (([*commits, arm("one", drawn(1))], True), ([commits[0], arm("one", drawn(1))], False)):
        refuse_mixed(arms)
        note_what_differs(arms)
        assert (f"base_commit: {'a' * 20} in a-1, {'b' * 20} in b-1" in capsys.readouterr().out) == said


def test_moved_bases_and_rows_of_other_seeds_are_no_difference():
    moved = base_is(base="/elsewhere/snapshots/1f2e")
    refuse_mixed([arm("one", drawn(1)), arm("other", moved)])
    scales = [base_is(quantization=name) for name in ("nf4", without_double("nf4"))]
    for one, two, named in (
        (moved, base_is(fingerprint="beef"), "base: 1f2e (f00d) in one-1, small (beef) in other-1"),
        (*scales, "quantization: nf4 in one-1, nf4, its scales not quantised in other-1"),
    ):
        with pytest.raises(UsageError, match=in_order(named)):
            refuse_mixed([arm("one", one), arm("other", two)])
    refuse_mixed([arm("one", made(1, rows="all")), arm("other", made(2, rows="all"))])


def test_refusal_of_rows_and_steps_is_a_line_with_a_command(runs, capsys):
    """The second run was continued with other rows and more steps."""
    Run(runs / "mixed-1").add_facts(steps=99, trained_rows=20, data={"sha256": "y"})
    code, _, fault = run(capsys, "compare", runs / "lora-1", runs / "mixed-1", "--outcome", "accuracy")
    assert code == 2 and fault.count("\n") == 1 and fault.count("lora-1, ") == 3
    words = shlex.split(fault.partition("if that is meant, add ")[2])
    assert words == ["--allow", "rows,steps"]
    compare = ("compare", runs / "lora-1", runs / "mixed-1", "--outcome", "accuracy")
    code, said, _ = run(capsys, *compare, "--allow", "steps, rows,trained_rows,dtype")
    assert code == 0 and "mixed-1" in said
    assert run(capsys, *compare, "--allow", "steps", "--allow", "trained_rows")[0] == 2, "rows.1 differs, too"
    code, _, fault = run(capsys, *compare, "--allow", "steps,rwos")
    assert code == 2 and says(fault, "rwos", "did you mean rows")


def test_seeds_with_other_numbers_of_trained_rows_are_compared(runs, capsys):
    """A seed that holds out other duplicates trains another number of rows, and with epochs of steps."""
    for name, rows, steps in (("lora-1", 239, 30), ("mixed-1", 239, 30), ("lora-2", 240, 31), ("mixed-2", 240, 31)):
        rewritten(runs / name, "training.epochs=1")
        data = {"sha256": f"of {rows}", "source_sha256": "all"}
        Run(runs / name).add_facts(steps=steps, trained_rows=rows, data=data)
    compare = ("compare", runs, "--outcome", "accuracy")
    assert run(capsys, *compare)[0] == 0
    for changes, named in (
        ({"trained_rows": 238}, ("trained_rows.2: 240", "238")),
        ({"steps": 29, "trained_rows": 240}, ("steps.2: 31", "29")),
        ({"steps": 31, "data": {"sha256": "of 240", "source_sha256": "other"}}, ("rows: all", "other")),
    ):
        Run(runs / "mixed-2").add_facts(**changes)
        code, _, fault = run(capsys, *compare)
        assert code == 2 and says(fault, *named), changes
    for name in ("mixed-1", "mixed-2"):
        rewritten(runs / name, "training.epochs=2")
    code, _, fault = run(capsys, *compare)
    assert code == 2 and says(fault, "steps: 1 epochs", "2 epochs")


def test_other_versions_are_noted(capsys):
    """Versions that only one run recorded are no difference."""
    made_with = {"torch": "2.13.0", "transformers": "5.0", "tokenizer": "a" * 64}
    changed = {**made_with, "torch": "2.14.0", "tokenizer": "b" * 64}
    one, two, old = (arm(name, other(versions=it)) for name, it in (("1", made_with), ("2", changed), ("old", {})))
    compare_arms([one, two, old])
    said = capsys.readouterr().out
    assert says(said, "2.13.0", "2.14.0") and says(said, "tokenizer", "aaa", "bbb") and "transformers" not in said
    compare_arms([one, old])
    assert not capsys.readouterr().out


def test_scores_of_a_checkpoint_alone_must_be_named(runs):
    run = Run(runs / "lora-1")
    own = run.evaluation_folder()
    of_checkpoint = own.rename(own.with_name(f"{own.name}-step-20"))
    with pytest.raises(UsageError, match=f"choose one with --evaluation, among {of_checkpoint.name}"):
        run.evaluation_folder()
    assert run.evaluation_folder(of_checkpoint.name) == of_checkpoint
    assert base_of(of_checkpoint) == base_of(own) == own.with_name(f"{own.name}-base")


def of_weights(adapter):
    """Return the conditions of the weights in a folder, or of their base."""
    weights = read_manifest(adapter)["sha256"]["adapter.safetensors"] if adapter else None
    return replace(CONDITIONS, answered_by=replace(ADAPTED, adapter=weights))


@pytest.mark.parametrize("scored", ["weights that are gone", "a checkpoint"])
def test_scores_of_earlier_weights_are_refused(runs, trained, scored):
    """Scores of a checkpoint may be named by their path, or be those of a run without a result."""
    run, name = runs / "lora-1", "cloze-cloze-float32"
    for place in ("adapter", "checkpoints"):
        shutil.copytree(trained / place, run / place)
    shutil.rmtree(run / "eval")
    of_checkpoint = scored == "a checkpoint"
    evaluated(run, conditions=of_weights(run / "checkpoints" / "step-20") if of_checkpoint else CONDITIONS)
    evaluated(run, f"{name}-base", conditions=of_weights(None))
    for paths in ([run], [run, runs / "mixed-1"], [run / "eval" / name, runs / "mixed-1"]):
        if of_checkpoint and paths[0] != run:
            assert load_arms(paths)[0].runs[1].training_facts["steps"] == "20"
            continue
        with pytest.raises(UsageError, match=f"{name}: .*moslora eval {run}"):
            load_arms(paths)
    with pytest.raises(UsageError, match=r"adapter was .*remove the folder"):
        evaluated(run, conditions=of_weights(run / "adapter"))
    if of_checkpoint:
        shutil.rmtree(run / "adapter")
        assert load_arms([run, runs / "mixed-1"])[0].runs[1].training_facts["steps"] == "20"
        return
    shutil.rmtree(run / "eval" / name)
    evaluated(run, conditions=of_weights(run / "adapter"))
    assert (
        names([run]) == [("base", [None]), ("lora-1", [1])]
        and load_arms([run])[1].runs[1].training_facts["steps"] == "21"
    )


def rewritten(run, *changes):
    """Change keys of a run's recipe."""
    recipe = load_recipe(run / "recipe.yaml", changes)
    (run / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")


def chosen(run, best, *, trained, rule):
    """Make a run one whose result and end validations chose."""
    rewritten(run, *rule.split())
    found = {"step": best, "loss": 1.0, "last_loss": 2.0, "validations": 9, "since": 3}
    Run(run).add_facts(best=found, trained_steps=trained)


PATIENT = "training.result=best training.patience=3"


def test_arms_with_one_stopping_rule_are_compared(runs, capsys):
    for rule, steps in (
        (PATIENT, [[10, 11], [12, 13]]),
        ("training.result=last training.patience=3", [[20, 21], [22, 23]]),
    ):
        for number, name in enumerate(("lora-1", "lora-2", "mixed-1", "mixed-2")):
            chosen(runs / name, 10 + number, trained=20 + number, rule=rule)
        arms = load_arms([runs])
        assert [[run.chosen_step for run in arm.runs.values()] for arm in arms] == steps
        compare_arms(arms, outcome="accuracy")
        first, *others = chain(*steps)
        assert says("".join(capsys.readouterr()), f"lora {first}", "patience 3", *others)


@pytest.mark.parametrize(
    "rule", ["training.result=last", PATIENT.replace("3", "4"), f"{PATIENT} training.validate_every=7"]
)
def test_arms_with_different_stopping_rules_are_refused(runs, rule):
    for seed in (1, 2):
        chosen(runs / f"lora-{seed}", 10, trained=20, rule=PATIENT)
        if "patience" in rule:
            chosen(runs / f"mixed-{seed}", 10, trained=20, rule=rule)
    with pytest.raises(UsageError, match=r"^steps: .*--allow steps"):
        refuse_mixed(load_arms([runs]))
    refuse_mixed(load_arms([runs]), allowed=["steps"])


@pytest.mark.parametrize(
    ("change", "another"),
    [
        ("model.name=/elsewhere/smollm2", False),
        ("tasks={mine: {texts: mine.txt}}", False),
        ("training.micro_batch_tokens=1000", False),
        ("training.learning_rate=0.01", True),
        ("data.rows=8", True),
        ("training.warmup_steps=3", True),
    ],
)
def test_what_changes_a_step_makes_another_arm(runs, change, another):
    rewritten(runs / "lora-2", change)
    assert names([runs]) == ([("lora-1", [1]), ("lora-2", [2]), ("mixed", [1, 2])] if another else TWO)


def test_micro_batches_of_a_balanced_gate_make_another_arm(runs):
    """The number of processes counts, as each has passes of its own."""
    for seed in (1, 2):
        rewritten(runs / f"mixed-{seed}", "adapter.mixer={kind: token-gate, experts: 2, balance: 0.1}")
    assert len(load_arms([runs])) == 2
    rewritten(runs / "mixed-2", "training.micro_batch_tokens=1000")
    assert len(load_arms([runs])) == 3
    rewritten(runs / "mixed-2", "training.micro_batch_tokens=null")
    edit_json(runs / "mixed-2" / "run.json", processes=2)
    assert len(load_arms([runs])) == 3


def test_other_rows_make_another_arm(runs):
    """The hash of all rows counts, as each seed draws its own."""
    for name in ("lora", "mixed"):
        for seed in (1, 2):
            Run(runs / f"{name}-{seed}").add_facts(data={"sha256": f"{seed}", "source_sha256": "a"})
    assert names([runs]) == TWO
    Run(runs / "lora-2").add_facts(data={"sha256": "2", "source_sha256": "b"})
    assert [[*arm.runs] for arm in load_arms([runs])] == [[1], [2], [1, 2]]
