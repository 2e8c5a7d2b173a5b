"""Arms: found on disk, grouped, paired; and what is not compared."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cli_kit import run
from compare_kit import SETTINGS, SIZES, asked_as, base, drawn, with_tasks
from message_kit import says
from moslora.compare.arms import Arm, load_arms, pairs, values
from moslora.compare.comparable import refuse_mixed
from moslora.compare.comparison import compare_arms
from moslora.errors import UsageError
from moslora.evaluation.journal import Journal
from moslora.recipe import load_recipe
from moslora.runs.evaluation import Evaluation
from moslora.runs.manifest import read_manifest
from moslora.runs.origin import Origin
from moslora.runs.predictions import Prediction
from moslora.runs.run import Run, base_of
from moslora.runs.settings import Settings, TaskRecord


def arm(name: str, *runs: Evaluation) -> Arm:
    return Arm(name, {run.seed: replace(run, path=Path(f"{name}-{run.seed}")) for run in runs})


def evaluated(run: Path, name: str = "cloze-cloze-float32", *, settings: Settings = SETTINGS, right: int = 2) -> None:
    """An evaluation of three questions in a run's folder."""
    journal = Journal(run / "eval" / name, settings)
    journal.record({"obqa": TaskRecord()})
    scores = [(-1.0, -2.0) if row < right else (-2.0, -1.0) for row in range(3)]
    journal.append(
        [Prediction(f"obqa/test/{row}", "obqa", 0, s.index(-1.0), s, (1, 1)) for row, s in enumerate(scores)]
    )


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """runs/lora-1, runs/lora-2, runs/mixed-1, runs/mixed-2: evaluated, and otherwise only what is read of a run."""
    for method, kind in (("lora", "identity"), ("mixed", "dense")):
        for seed in (1, 2):
            run = tmp_path / "runs" / f"{method}-{seed}"
            run.mkdir(parents=True)
            changes = [f"name={run.name}", f"seed={seed}", f"adapter.mixer.kind={kind}"]
            (run / "recipe.yaml").write_text(load_recipe("smollm2-135m", changes).to_yaml(), encoding="utf-8")
            (run / "run.json").write_text('{"steps": 50, "trained_rows": 9, "data": {"sha256": "x"}}')
            evaluated(run)
    return tmp_path / "runs"


def test_runs_that_continue_other_weights_are_another_arm(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By their hash, wherever they lie: the same weights at two places are one arm, others at one place are not."""
    for number, (place, digest) in enumerate([("/a", "1" * 64), ("/b", "1" * 64), ("/b", "2" * 64)]):
        run = Path(shutil.copytree(runs / "mixed-1", runs / f"on-{number}"))
        changes = [f"name={run.name}", f"seed={number}", f"adapter.continue_from={place}"]
        (run / "recipe.yaml").write_text(load_recipe("smollm2-135m", changes).to_yaml(), encoding="utf-8")
        predecessor = Origin("first", digest, 9)
        Run(run).add_facts(**predecessor.facts)
    shutil.rmtree(runs / "lora-1")
    shutil.rmtree(runs / "lora-2")
    arms = load_arms([runs])
    assert [[run.path.name for run in arm.runs.values()] for arm in arms] == [
        ["mixed-1", "mixed-2"],
        ["on-0", "on-1"],
        ["on-2"],
    ]


def test_runs_that_differ_in_the_seed_alone_are_an_arm(runs: Path) -> None:
    for paths in ([runs], [runs / f"{name}-{seed}" for seed in (1, 2) for name in ("lora", "mixed")]):
        lora, mixed = load_arms(paths)
        assert (lora.name, [*lora.runs], mixed.name, [*mixed.runs]) == ("lora", [1, 2], "mixed", [1, 2])
        assert lora.runs[2].path == runs / "lora-2"
    for name in ("lora", "mixed"):
        for seed in (1, 2):
            (runs / name).mkdir(exist_ok=True)
            shutil.move(runs / f"{name}-{seed}", runs / name / f"seed-{seed}")
    assert [(arm.name, *arm.runs) for arm in load_arms([runs / "mixed", runs / "lora"])] == [
        ("mixed", 1, 2),
        ("lora", 1, 2),
    ]


def test_two_seeds_of_a_recipe_are_compared_one_by_one(runs: Path) -> None:
    assert [arm.name for arm in load_arms([runs / "lora-1", runs / "lora-2"])] == ["lora-1", "lora-2"]


def test_a_run_alone_is_compared_with_its_base(runs: Path) -> None:
    with pytest.raises(UsageError, match=r"-base: missing.*moslora eval \S+lora-1 --base$"):
        load_arms([runs / "lora-1"])
    untrained = replace(SETTINGS, metadata={**SETTINGS.metadata, "adapter": None})
    evaluated(runs / "lora-1", "cloze-cloze-float32-base", settings=untrained)
    base, tuned = load_arms([runs / "lora-1"])
    assert (base.name, *base.runs, tuned.name, *tuned.runs) == ("base", None, "lora-1", 1)


def test_what_is_not_there_or_not_clear_is_named(runs: Path) -> None:
    with pytest.raises(UsageError, match="none: no evaluated run here"):
        load_arms([runs / "none"])
    with pytest.raises(UsageError, match="lora-1: named twice"):
        load_arms([runs / "lora-1", runs / "lora-1/../lora-1"])
    third = Path(shutil.copytree(runs / "lora-2", runs / "third")) / "recipe.yaml"
    third.write_text(third.read_text("utf-8").replace("seed: 2", "seed: 3"), encoding="utf-8")
    with pytest.raises(UsageError, match="one arm"):
        load_arms([runs / "lora-1", runs / "lora-2", third.parent])
    shutil.rmtree(third.parent)
    shutil.copytree(runs / "lora-1", runs / "copy")
    with pytest.raises(UsageError, match=r"lora-1: has the same recipe and seed as .*copy"):
        load_arms([runs])
    shutil.rmtree(runs / "copy")
    evaluated(runs / "lora-1", "choice-label-float32")
    with pytest.raises(UsageError, match="--evaluation, among choice-label-float32, cloze-cloze-float32"):
        load_arms([runs])
    evaluated(runs / "lora-1", "cloze-cloze-bfloat16", right=1)
    own = load_arms([runs / "lora-1", runs / "mixed-1"])[0].runs[1]
    assert sum(own.tasks["obqa"].outcomes["accuracy"]) == 1, "as its recipe evaluates"
    assert len(load_arms([runs], evaluation="cloze-cloze-float32")) == 2
    with pytest.raises(UsageError, match=r"lora-2: no evaluation choice-label-float32.*among cloze-cloze-float32"):
        load_arms([runs], evaluation="choice-label-float32")


def test_arms_are_paired_by_seed() -> None:
    one, other = arm("one", *map(drawn, (0, 1, 2))), arm("other", *(drawn(seed, rank=4) for seed in (2, 5, 1)))
    assert [(a.seed, b.seed) for a, b in pairs(one, other)] == [(1, 1), (2, 2)]
    assert [(a.seed, b.seed) for a, b in pairs(arm("base", base()), one)] == [(None, 0), (None, 1), (None, 2)]
    assert [(a.seed, b.seed) for a, b in pairs(arm("one", drawn(0)), arm("other", drawn(1)))] == [(0, 1)]
    with pytest.raises(UsageError, match="one and x: too few seeds in common"):
        compare_arms([one, arm("x", drawn(7), drawn(8))])


def test_values_are_a_row_per_seed() -> None:
    runs = [drawn(0), drawn(1)]
    found = values(runs, "log_probability")
    assert {task: array.shape for task, array in found.items()} == {task: (2, n) for task, n in SIZES.items()}
    assert found["obqa"][1].tolist() == list(runs[1].tasks["obqa"].outcomes["log_probability"])
    with pytest.raises(UsageError, match="obqa: a comparison needs at least two questions"):
        values([drawn(0, sizes={"obqa": 1})], "accuracy")
    generated = replace(drawn(0).tasks["obqa"], outcomes={"accuracy": (1,) * SIZES["obqa"], "log_probability": ()})
    arms = [arm(name, with_tasks(drawn(0), {"obqa": generated})) for name in ("one", "other")]
    with pytest.raises(UsageError, match="log_probability: must be one of accuracy"):
        compare_arms(arms, outcome="log_probability")


def other(**settings: object) -> Evaluation:
    return asked_as(drawn(1), **settings)


@pytest.mark.parametrize(
    ("run", "line"),
    [
        (other(protocol="choice"), "protocol: cloze in one-1, choice in other-1"),
        (other(format="label"), "format: cloze in one-1, label in other-1"),
        (
            other(data={"obqa": "0123"}),
            "questions of obqa: None in one-1, 0123 in other-1",
        ),
        (other(dtype="bfloat16"), "dtype: float32 in one-1, bfloat16 in other-1"),
        (other(metadata={**SETTINGS.metadata, "fingerprint": "beef"}), "base: small (f00d) in one-1, small (beef)"),
        (replace(drawn(1), made={**drawn(1).made, "steps": "99"}), "steps: 50 in one-1, 99 in other-1"),
        (replace(drawn(1), made={**drawn(1).made, "rows.1": "no"}), "rows.1: rows of 1 in one-1, no in"),
    ],
)
def test_unlike_runs_are_refused_with_the_field_and_both_values(run: Evaluation, line: str) -> None:
    with pytest.raises(UsageError) as fault:
        refuse_mixed([arm("one", drawn(1)), arm("base", base()), arm("other", run)], allowed=["protocol", "stepz"])
    assert line in str(fault.value) and all("one-1" in text for text in str(fault.value).splitlines())


def test_what_may_be_meant_to_differ_is_one_line_with_one_command(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after training goes on with other rows and more steps."""
    Run(runs / "mixed-1").add_facts(steps=99, trained_rows=20, data={"sha256": "y"})
    code, _, fault = run(capsys, "compare", runs / "lora-1", runs / "mixed-1", "--outcome", "accuracy")
    assert code == 2 and fault.count("\n") == 1 and fault.count("lora-1, ") == 3
    words = shlex.split(fault.partition("if that is meant, add ")[2])
    assert words.count("--allow") == 3
    code, said, _ = run(capsys, "compare", runs / "lora-1", runs / "mixed-1", "--outcome", "accuracy", *words)
    assert code == 0 and "mixed-1" in said


def test_other_versions_are_no_reason_to_refuse_but_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Those that both have recorded."""
    made_with = {"torch": "2.13.0", "transformers": "5.0", "tokenizer": "a" * 64}
    changed = {**made_with, "torch": "2.14.0", "tokenizer": "b" * 64}
    runs = other(made_with=made_with), other(made_with=changed), other(made_with={})
    arms = [arm(name, run) for name, run in zip(("one", "two", "old"), runs, strict=True)]
    assert len(compare_arms(arms).exploratory) == 2
    said = capsys.readouterr().out
    assert "torch" in said and "2.13.0" in said and "2.14.0" in said and "transformers" not in said
    assert says(said, "tokenizer", "aaa", "one-1", "bbb", "two-1") and "a" * 64 not in said
    compare_arms([arms[0], arms[2]])
    assert not capsys.readouterr().out


def test_the_steps_are_those_of_the_adapter_that_was_evaluated(runs: Path, trained: Path) -> None:
    """A checkpoint, where the run was evaluated before its end."""
    run = runs / "lora-1"
    for name in ("adapter", "checkpoints"):
        shutil.copytree(trained / name, run / name)
    for place, steps in (("adapter", 21), ("checkpoints/step-20", 20)):
        shutil.rmtree(run / "eval")
        evaluated(run, settings=of_weights(run / place))
        if place != "adapter":
            shutil.rmtree(run / "adapter")
        assert load_arms([run, runs / "mixed-1"])[0].runs[1].made["steps"] == str(steps)


def test_where_a_checkpoint_alone_was_scored_its_scores_are_named(runs: Path) -> None:
    run = Run(runs / "lora-1")
    own = run.evaluation()
    of_checkpoint = own.rename(own.with_name(f"{own.name}-step-20"))
    with pytest.raises(UsageError, match=f"choose one with --evaluation, among {of_checkpoint.name}"):
        run.evaluation()
    assert run.evaluation(of_checkpoint.name) == of_checkpoint
    assert base_of(of_checkpoint) == base_of(own) == own.with_name(f"{own.name}-base")


def of_weights(adapter: Path) -> Settings:
    weights = read_manifest(adapter)["sha256"]["adapter.safetensors"]
    return replace(SETTINGS, metadata={**SETTINGS.metadata, "adapter": weights})


@pytest.mark.parametrize("scored", ["weights that are gone", "a checkpoint"])
def test_scores_of_a_run_before_it_was_trained_further_are_refused(runs: Path, trained: Path, scored: str) -> None:
    """With the folder that has to go; a checkpoint's may be compared by its own path."""
    run, name = runs / "lora-1", "cloze-cloze-float32"
    for place in ("adapter", "checkpoints"):
        shutil.copytree(trained / place, run / place)
    shutil.rmtree(run / "eval")
    evaluated(run, settings=of_weights(run / "checkpoints" / "step-20") if scored == "a checkpoint" else SETTINGS)
    untrained = replace(SETTINGS, metadata={**SETTINGS.metadata, "adapter": None})
    evaluated(run, f"{name}-base", settings=untrained)
    for paths in ([run], [run, runs / "mixed-1"], [run / "eval" / name, runs / "mixed-1"]):
        if scored == "a checkpoint" and paths[0] != run:
            assert load_arms(paths)[0].runs[1].made["steps"] == "20"
            continue
        with pytest.raises(UsageError, match=f"{name}: .*moslora eval {run}"):
            load_arms(paths)
    with pytest.raises(UsageError, match=r"adapter was .*remove the folder"):
        evaluated(run, settings=of_weights(run / "adapter"))
    shutil.rmtree(run / "eval" / name)
    evaluated(run, settings=of_weights(run / "adapter"))
    assert [arm.name for arm in load_arms([run])] == ["base", "lora-1"]


def rewritten(run: Path, *changes: str) -> None:
    """The same run as if its recipe had been another in these keys."""
    recipe = load_recipe(run / "recipe.yaml", changes)
    (run / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        "model.name=/elsewhere/smollm2",
        "tasks={mine: {texts: mine.txt}}",
        "training.micro_batch_tokens=1000",
    ],
)
def test_what_changes_no_step_makes_no_other_arm(runs: Path, change: str) -> None:
    rewritten(runs / "lora-2", change)
    lora, mixed = load_arms([runs])
    assert (lora.name, [*lora.runs], mixed.name, [*mixed.runs]) == ("lora", [1, 2], "mixed", [1, 2])


def chosen(run: Path, best: int, *, trained: int, rule: str) -> None:
    """The run as if validations had chosen its result and its end."""
    rewritten(run, *rule.split())
    found = {"step": best, "loss": 1.0, "last_loss": 2.0, "validations": 9, "since": 3}
    Run(run).add_facts(best=found, trained_steps=trained)


PATIENT = "training.result=best training.patience=3"


def test_arms_that_one_rule_stopped_at_different_steps_are_compared(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("lora-1", "lora-2", "mixed-1", "mixed-2")):
        chosen(runs / name, 10 + number, trained=20 + number, rule=PATIENT)
    arms = load_arms([runs])
    assert [[run.chosen_step for run in arm.runs.values()] for arm in arms] == [[10, 11], [12, 13]]
    compare_arms(arms, outcome="accuracy")
    said = "".join(capsys.readouterr())
    assert says(said, "lora 10", "patience 3", "lora 11", "mixed 12", "mixed 13")


@pytest.mark.parametrize(
    "rule", ["training.result=last", PATIENT.replace("3", "4"), f"{PATIENT} training.validate_every=7"]
)
def test_arms_of_other_rules_are_not_compared_unless_that_is_meant(runs: Path, rule: str) -> None:
    for seed in (1, 2):
        chosen(runs / f"lora-{seed}", 10, trained=20, rule=PATIENT)
        if "patience" in rule:
            chosen(runs / f"mixed-{seed}", 10, trained=20, rule=rule)
    with pytest.raises(UsageError, match=r"^steps: .*--allow steps"):
        refuse_mixed(load_arms([runs]))
    refuse_mixed(load_arms([runs]), allowed=["steps"])


def test_a_run_that_patience_ended_has_the_steps_that_it_trained(runs: Path) -> None:
    for name in ("lora-1", "lora-2", "mixed-1", "mixed-2"):
        chosen(runs / name, 10, trained=20, rule="training.patience=3")
    assert {run.chosen_step for arm in load_arms([runs]) for run in arm.runs.values()} == {20}


@pytest.mark.parametrize("change", ["training.learning_rate=0.01", "data.rows=8", "training.warmup_steps=3"])
def test_what_changes_a_step_makes_another_arm(runs: Path, change: str) -> None:
    rewritten(runs / "lora-2", change)
    assert [[*arm.runs] for arm in load_arms([runs])] == [[1], [2], [1, 2]]


def test_the_micro_batches_of_a_gate_with_balance_change_its_steps(runs: Path) -> None:
    gate = "adapter.mixer={kind: token-gate, experts: 2, balance: 0.1}"
    for seed in (1, 2):
        rewritten(runs / f"mixed-{seed}", gate)
    assert len(load_arms([runs])) == 2
    rewritten(runs / "mixed-2", "training.micro_batch_tokens=1000")
    assert len(load_arms([runs])) == 3
    rewritten(runs / "mixed-2", "training.micro_batch_tokens=null")
    assert len(load_arms([runs])) == 2
    card = runs / "mixed-2" / "run.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"processes": 2}))
    assert len(load_arms([runs])) == 3, "each process has passes of its own"


def test_other_rows_are_another_arm_also_under_other_seeds(runs: Path) -> None:
    """Each seed chooses among the rows, so that of two seeds only the hash of all rows says whether they are others."""

    def trained_on(name: str, seed: int, source: str) -> None:
        data = {"sha256": f"{source}, chosen by {seed}", "source_sha256": source}
        Run(runs / f"{name}-{seed}").add_facts(data=data)

    for name in ("lora", "mixed"):
        for seed in (1, 2):
            trained_on(name, seed, "a")
    assert [(arm.name, [*arm.runs]) for arm in load_arms([runs])] == [("lora", [1, 2]), ("mixed", [1, 2])]
    trained_on("lora", 2, "b")
    assert [[*arm.runs] for arm in load_arms([runs])] == [[1], [2], [1, 2]]


def test_the_scales_of_a_base_in_four_bits_make_another_base() -> None:
    quantized = (
        asked_as(drawn(1), metadata={**SETTINGS.metadata, **how})
        for how in (
            {"quantization": "nf4", "double_quantization": True},
            {"quantization": "nf4", "double_quantization": False},
        )
    )
    with pytest.raises(UsageError, match=r"^quantization: nf4 in one-1, nf4, its scales not quantised in other-1; if"):
        refuse_mixed([arm(name, run) for name, run in zip(("one", "other"), quantized, strict=True)])


def test_the_same_base_in_a_folder_of_another_name_is_the_same() -> None:
    moved = other(metadata={**SETTINGS.metadata, "base": "/elsewhere/snapshots/1f2e"})
    refuse_mixed([arm("one", drawn(1)), arm("other", moved)])
    with pytest.raises(UsageError, match=r"^base: 1f2e \(f00d\) in one-1, small \(beef\) in other-1"):
        refuse_mixed([arm("one", moved), arm("other", other(metadata={**SETTINGS.metadata, "fingerprint": "beef"}))])


def test_runs_of_other_rows_are_refused_also_under_other_seeds() -> None:
    one, other = (
        replace(drawn(seed), made={**drawn(seed).made, "rows": source})
        for seed, source in ((1, "all of one"), (2, "all of another"))
    )
    refuse_mixed([arm("one", one), arm("other", replace(other, made={**other.made, "rows": "all of one"}))])
    with pytest.raises(UsageError, match=r"^rows: all of one in one-1, all of another in other-2"):
        refuse_mixed([arm("one", one), arm("other", other)])
