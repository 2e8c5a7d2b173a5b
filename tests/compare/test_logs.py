"""Logs of other programs: lm-eval's own, made here by lm-eval, and tables of scores."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

import lm_eval_kit
from cli_kit import run
from evaluation_kit import WORDS, make_model, tokenizer
from message_kit import in_order, says
from moslora.compare.arms import load_arms
from moslora.compare.comparison import compare_paths
from moslora.compare.conclusion import lines
from moslora.compare.margin import Margin
from moslora.compare.statistics import effects
from moslora.errors import UsageError
from moslora.runs.scores import MACRO
from reference import perturb


def written(folder, task, scores, **changes):
    """Write a log of lm-eval, of questions with two options, of which the first is right."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"samples_{task}_2026-01-31T10-00-00.123456.jsonl"
    samples = []
    for row, score in enumerate(scores):
        wrong_option = -0.5
        if score:
            wrong_option = -2.5
        sample = {
            "doc_id": row,
            "doc": {"question": "\u2028 a line of its own?"},
            "target": "0",
            "arguments": {f"gen_args_{n}": {"arg_0": "Q", "arg_1": f" {option}"} for n, option in enumerate("ab")},
            "filtered_resps": [["-1.5", "False"], [str(wrong_option), "False"]],
            "filter": "none",
            "metrics": ["acc", "brier_score"],
            **{f"{name}_hash": f"{name} {row}" for name in ("doc", "prompt", "target")},
            "acc": float(score),
            "brier_score": [0, [0.5, 0.5]],
        }
        for key, value in changes.items():
            sample[key] = value(row) if callable(value) else value
        samples.append(sample)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in samples), encoding="utf-8")
    return path


def right(seed, share, n=60):
    return (np.random.default_rng(seed).uniform(size=n) < share).astype(int).tolist()


def table_of(path, scores):
    lines = ["id,score"]
    lines += [f"q{i},{score}" for i, score in enumerate(scores)]
    path.write_text("\n".join(lines) + "\n")
    return path


def by_lm_eval(out, model):
    """Write lm-eval's log of two of its tasks over rows of ours. One has indices as answers, the other texts."""
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is a development dependency")
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks._yaml_loader import load_yaml

    draw = random.Random(0)
    folder = Path(lm_eval.__file__).parent / "tasks"

    def text(low, high):
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    def options(count):
        return [f"{first} {text(1, 5)}" for first in draw.sample(WORDS, count)]

    arc = []
    for _ in range(24):
        question = {"question": text(3, 9), "choices": {"text": options(4), "label": [*"ABCD"]}}
        arc.append(question | {"answerKey": draw.choice("ABCD")})
    copa = []
    for _ in range(16):
        question = {"premise": f"{text(3, 9)}.", "question": "cause", "label": draw.randrange(2)}
        first, second = options(2)
        copa.append(question | {"choice1": first, "choice2": second})
    tasks = []
    for file, held in (("arc/arc_easy.yaml", arc), ("super_glue/copa/default.yaml", copa)):
        dataset = DatasetDict({"validation": Dataset.from_list(held)})
        config = load_yaml(folder / file) | {"custom_dataset": lambda dataset=dataset, **_: dataset}
        tasks.append(ConfigurableTask(config=config | {"training_split": None, "test_split": None}))
    tracker = EvaluationTracker(output_path=str(out))
    harness = HFLM(pretrained=model, tokenizer=tokenizer(), batch_size=8, max_length=512)
    results = lm_eval_kit.evaluated(harness, tasks, evaluation_tracker=tracker)
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, its in samples.items():
        tracker.save_results_samples(task_name=task, samples=its)
    return out


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """lm-eval's logs of a model, and of the same after it was changed."""
    out = tmp_path_factory.mktemp("logs")
    model = make_model()
    before = by_lm_eval(out / "before", model)
    with torch.no_grad():
        perturb(model.parameters(), seed=3)
    return [before, by_lm_eval(out / "after", model)]


@pytest.mark.slow
def test_logs_that_lm_eval_writes_are_compared_question_by_question(sides):
    """Counts in lm-eval's files, and scipy's log softmax of their log-likelihoods, are the expected numbers."""
    metrics = (None, "log_probability_summed")
    by_metric = {metric: compare_paths(sides, outcome=metric).main for metric in metrics}
    with pytest.raises(UsageError, match="log_probability: must be one of acc, log_probability_summed"):
        compare_paths(sides, outcome="log_probability")  # copa has no acc_norm, which would say what a character is
    right_of = {
        "arc_easy": lambda doc: "ABCD".index(doc["answerKey"]),
        "copa": lambda doc: doc["label"],
    }
    differences = []
    for task, right_option in right_of.items():
        samples = []
        for folder in sides:
            file = next(folder.rglob(f"samples_{task}_*.jsonl"))
            samples.append([json.loads(line) for line in file.read_text("utf-8").splitlines()])
        gold = [right_option(sample["doc"]) for sample in samples[0]]
        acc = np.zeros((2, len(gold)))
        log_p = np.zeros((2, len(gold)))
        for side, held in enumerate(samples):
            for n, sample in enumerate(held):
                likelihoods = [float(value) for value, _ in sample["filtered_resps"]]
                acc[side, n] = np.argmax(likelihoods) == gold[n]
                log_p[side, n] = log_softmax(likelihoods)[gold[n]]
            assert acc[side].mean() == np.mean([sample["acc"] for sample in held])
        for metric, expected in zip(metrics, (acc, log_p), strict=True):
            found = by_metric[metric]
            assert found is not None and found.means[task] == pytest.approx(tuple(expected.mean(axis=1)))
            assert found.effects[task].difference == pytest.approx(np.diff(expected.mean(axis=1))[0])
        table = by_metric[None]
        assert table.effects[task].p == pytest.approx(effects({task: acc[1:] - acc[:1]}, binary=True)[task].p)
        assert table.majority[task].mean() == np.bincount(gold).max() / len(gold)
        differences.append(np.diff(acc.mean(axis=1))[0])
    assert any(differences) and table.effects[MACRO].difference == pytest.approx(np.mean(differences))


def test_evaluation_is_a_folder_and_its_name_has_the_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arm, share in (("lora", 0.4), ("mixed", 0.7)):
        for seed in (1, 2, 10):
            for task in ("arc_easy", "piqa"):
                written(Path(f"{arm}-seed{seed}/__models__{arm}_seed{seed}"), task, right(seed, share))
                written(Path(f"in/{arm}/seed{seed}"), task, right(seed, share))
    folders = [f"{arm}-seed{seed}" for arm in ("lora", "mixed") for seed in (1, 2, 10)]
    files = sorted(Path().glob("*-seed*/*/samples_*"))
    for paths in (folders, ["in"], ["in/lora", "in/mixed"], files):
        arms = load_arms([Path(path) for path in paths])
        assert [(arm.name.split("/")[0], sorted(arm.runs)) for arm in arms] == [
            ("lora", [1, 2, 10]),
            ("mixed", [1, 2, 10]),
        ], paths
        assert all([*one.tasks] == ["arc_easy", "piqa"] for arm in arms for one in arm.runs.values())
    found = compare_paths([Path("in")])
    expected = [np.mean([right(seed, share) for seed in (1, 2, 10)]) for share in (0.4, 0.7)]
    assert found.main.seeds == 3 and found.main.means[MACRO] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("paths", "arms"),
    [
        (
            ["lora-seed1/500", "lora-seed2/500", "mixed-seed1/500", "mixed-seed2/500"],
            {"lora": [1, 2], "mixed": [1, 2]},
        ),
        (["base/500", "lora_seed1/500", "lora_seed2/500"], {"base": [None], "lora": [1, 2]}),
        (["2023/lora", "2024/lora", "2025/lora"], {"2023": [None], "2024": [None], "2025": [None]}),
        (["lora-s2/seed=1", "lora-s2/seed=3", "lora-s4/seed=1"], {"lora-s2": [1, 3], "lora-s4": [1]}),
    ],
)
def test_which_number_of_a_path_is_a_seed(tmp_path, monkeypatch, paths, arms):
    monkeypatch.chdir(tmp_path)
    files = [Path(f"{path}.csv") for path in paths]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        table_of(file, right(0, 0.5))
    found = {arm.name.split("/")[0]: [*arm.runs] for arm in load_arms(files)}
    assert found == arms


def test_default_and_chosen_metric(tmp_path):
    y = right(0, 0.5)

    def metric(outcome=None, **logs):
        for side in "ab":
            for task, changes in logs.items():
                written(tmp_path / side, task, y, **changes)
        return compare_paths([tmp_path / side for side in "ab"], outcome=outcome)

    assert metric(arc={}).outcome.name == "acc"
    both = {"metrics": ["acc", "acc_norm"], "acc_norm": lambda row: 1 - y[row]}
    assert metric(arc=both).outcome.name == "acc_norm"
    assert metric("acc", arc=both).main.means["arc"] == (np.mean(y),) * 2
    assert metric(boolq={}, arc=both).outcome.name == "acc"
    summed = metric("log_probability_summed").main
    expected = [log_softmax([-1.5, -2.5 if y[row] else -0.5])[0] for row in sorted(range(len(y)), key=str)]
    assert summed.outcome.margin == 0.1 and summed.y["arc"][0][0].tolist() == pytest.approx(expected)
    for wrong in ("f1", "log_probability"):  # the second has no acc_norm, which would say what a character is
        with pytest.raises(UsageError, match=in_order(f"--outcome {wrong}", "acc, log_probability_summed")):
            metric(wrong)
    strange = {"metrics": ["f", "g"], "f": 0.5, "g": 0.25, "filtered_resps": ["text"]}
    with pytest.raises(UsageError, match="must be one of f, g"):
        metric(boolq=strange, arc=strange)


def test_filters_are_named_as_in_lm_evals_results(tmp_path):
    y = {"strict-match": right(0, 0.3), "flexible-extract": right(1, 0.8), None: right(2, 0.5)}
    for side in "ab":
        texts = []
        for name, scores in y.items():
            changes = {"metrics": ["exact_match"], "exact_match": lambda row, s=scores: s[row], "filtered_resps": ["5"]}
            texts.append(written(tmp_path / side, "gsm8k", scores, filter=name, **changes).read_text("utf-8"))
        written(tmp_path / side, "gsm8k", []).write_text("".join(texts), encoding="utf-8")
    sides = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(
        UsageError, match=r"--outcome .*exact_match,strict-match, exact_match,flexible-extract, exact_match,None"
    ):
        compare_paths(sides)
    for name, scores in y.items():
        assert compare_paths(sides, outcome=f"exact_match,{name}").main.means["gsm8k"] == (np.mean(scores),) * 2


def test_common_filter_is_compared(tmp_path):
    y = {"strict-match": right(0, 0.3), "flexible-extract": right(1, 0.8)}
    sides = [tmp_path / "a", tmp_path / "b"]
    for side, names in zip(sides, (y, ["flexible-extract"]), strict=True):
        texts = []
        for name in names:
            changes = {"metrics": ["exact_match"], "exact_match": lambda row, s=y[name]: s[row]}
            texts.append(
                written(side, "gsm8k", y[name], filter=name, filtered_resps=["5"], **changes).read_text("utf-8")
            )
        written(side, "gsm8k", []).write_text("".join(texts), encoding="utf-8")
    found = compare_paths(sides)
    assert found.outcome.name == "exact_match" and found.main.means["gsm8k"] == (np.mean(y["flexible-extract"]),) * 2


@pytest.mark.parametrize(("most", "refused"), [(100, True), (62.5, True), (1, False), (5, False)])
def test_scores_in_different_units_are_refused(tmp_path, most, refused):
    y = right(0, 0.5)
    logs = [table_of(tmp_path / "a.csv", y), table_of(tmp_path / "b.csv", [most * score for score in y])]
    if refused:
        with pytest.raises(UsageError, match=in_order("score", "0 to 1 in", "a.csv", f"0 to {most:g} in", "b.csv")):
            compare_paths(logs)
    else:
        assert compare_paths(logs).outcome.name == "score"


def test_right_option_counts_if_lm_evals_acc_agrees(tmp_path):
    """The target names it by index or by a unique text; among equal scores the first is chosen, as in numpy."""
    equal = [["-1.0", "False"]] * 2
    cases = {
        "text": ({"target": " a"}, True),
        "both": ({"target": "a", "arguments": {"0": {"arg_1": " a"}, "1": {"arg_1": " a"}}}, False),
        "other": ({"target": "1"}, False),
        "equal": ({"filtered_resps": equal, "acc": 1}, True),
        "equal, second": ({"filtered_resps": equal, "acc": 0}, False),
        "mutual information": ({"metrics": ["acc", "acc_mutual_info"], "acc_mutual_info": 1}, False),
    }
    for name, (changes, known) in cases.items():
        logs = [written(tmp_path / name / side, "arc", right(0, 0.5), **changes) for side in "ab"]
        one, other = [arm.runs[None].tasks["arc"] for arm in load_arms(logs)]
        assert ("log_probability_summed" in one.outcomes, bool(other.gold)) == (known, known), name


def test_log_probability_per_character_counts_if_acc_norm_agrees(tmp_path):
    """The right option is the likeliest per character, but not in total."""
    agreeing = {
        "arguments": {"0": {"arg_1": " abcde"}, "1": {"arg_1": " ab"}},
        "filtered_resps": [["-5.0", "False"], ["-3.0", "False"]],
        "metrics": ["acc", "acc_norm"],
        "acc_norm": 1,
    }
    for name, changes, known in (("agrees", {}, True), ("other", {"acc_norm": 0}, False)):
        logs = [written(tmp_path / name / side, "arc", [0] * 20, **agreeing | changes) for side in "ab"]
        assert ("log_probability" in load_arms(logs)[0].runs[None].tasks["arc"].outcomes) == known


def test_other_hashes_are_refused_and_named(tmp_path, capsys):
    y = right(0, 0.5, 12)
    one = written(tmp_path / "a", "arc", y)
    for name, allowed in (("doc", 2), ("target", 2), ("prompt", 0)):

        def hash_of(row, name=name):
            return f"{name} {row} new" if row in (3, 7) else f"{name} {row}"

        other = written(tmp_path / name, "arc", y, **{f"{name}_hash": hash_of})
        code, _, error = run(capsys, "compare", one, other)
        assert code == 2 and says(error, f"{name}_hash", "2 questions", "arc 3, arc 7")
        assert run(capsys, "compare", one, other, "--allow", f"{name}_hash")[0] == allowed
    longer = compare_paths([one, written(tmp_path / "b", "arc", [*y, 1, 1, 0])])
    assert says(lines(longer)[0], "12 questions", "left out: 3 of arc")


def test_tables_have_tasks_and_any_spelling_of_right(tmp_path):
    (tmp_path / "a.csv").write_text("\ufefftask,id,score\nx,1,True\nx,2,False\ny,1,1\ny,2,0.0\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(
        '{"id": 2, "task": "y", "score": 1, "more": null}\n{"id": 1, "task": "x", "score": true}\n'
        '{"id": 2, "task": "x", "score": 1.0}\n{"id": 1, "task": "y", "score": false}\n'
    )
    found = compare_paths([tmp_path / "a.csv", tmp_path / "b.jsonl"]).main
    values = {task: [side[0].tolist() for side in sides] for task, sides in found.y.items()}
    assert values == {"x": [[1, 0], [1, 1]], "y": [[1, 0], [0, 1]]}
    assert found.outcome.binary and (found.before, found.after) == ("a", "b")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no questions"),
        ("id,right\nq1,1\n", "row 1: .*score"),
        ("id,score\nq1,1\nq2,yes\n", "row 2: .*'yes'"),
        ("id,score\nq1,1\nq1,0\n", "row 2: question q1 of questions appears twice"),
        ("id,score\nq1,1\nq2,nan\n", "score .*not finite"),
        ("id,score\nq1,1\n", "two questions"),
        ('{"id": 1, "score": 1}\n{"id": 2', "row 2: "),
        ('{"doc_id": 1, "acc": 1}', "row 1: .*'metrics'; "),
    ],
)
def test_files_that_are_no_logs_are_refused(tmp_path, text, named):
    bad = tmp_path / ("bad.jsonl" if text.startswith("{") else "bad.csv")
    bad.write_text(text)
    with pytest.raises(UsageError, match=named) as fault:
        compare_paths([bad, table_of(tmp_path / "good.csv", [1, 0, 1])])
    assert "\n" not in str(fault.value)


def test_a_log_is_compared_with_another_log(tmp_path, trained):
    log = written(tmp_path / "a", "arc", right(0, 0.5))
    later = log.with_name(log.name.replace("2026-01", "2026-02"))
    later.write_bytes(log.read_bytes())
    (tmp_path / "link.jsonl").symlink_to(log)
    for paths, *named in (
        ([log, trained], trained, "not a log"),
        ([log, tmp_path / "none.csv"], "none.csv", "not a log"),
        ([log, log], log.name, "named twice"),
        ([log, tmp_path / "link.jsonl"], log.name, "named twice"),
        ([tmp_path / "a", log], later.name, "question 0 of arc appears twice"),
        ([log, written(tmp_path / "c", "piqa", [0, 1])], "no question in common"),
    ):
        with pytest.raises(UsageError, match=in_order(*named)):
            compare_paths(paths)


def test_questions_are_grouped_by_a_column_or_their_text(tmp_path, capsys):
    """Questions with equal texts, of lm-eval's requests or a table's column, are a cluster."""
    texts = {
        "doc": lambda row: {"question": f"q{row}", "passage": f"Text {row // 3}"},
        "arguments": lambda row: {"gen_args_0": {"arg_0": f"Is {row // 2}?", "arg_1": " yes"}},
    }
    for side, name in enumerate("ab"):
        written(tmp_path / name, "boolq", right(side, 0.5), **texts)
        rows = [f"{row},{score},Is {row // 4}?,{row // 8}" for row, score in enumerate(right(side, 0.5, 40))]
        (tmp_path / f"{name}.csv").write_text("\n".join(["id,score,question,page", *rows]))
    logs, tables = [tmp_path / "a", tmp_path / "b"], [tmp_path / "a.csv", tmp_path / "b.csv"]
    for paths, column, sizes in (
        (logs, None, [2] * 30),
        (logs, "doc.passage", [3] * 20),
        (tables, None, [4] * 10),
        (tables, "page", [8] * 5),
    ):
        ((_, codes),) = compare_paths(paths, cluster=column).main.clusters.items()
        assert np.bincount(codes).tolist() == sizes, column
    code, said, _ = run(capsys, "compare", *logs)
    assert code == 0 and says(said, "clusters", "boolq 60 in 30", "equal questions")
    for nothing in ("doc.pasage", "doc.question", "filter"):
        code, _, error = run(capsys, "compare", *logs, "--cluster", nothing)
        assert code == 2 and says(error, f"--cluster {nothing}") and error.count("\n") == 1


def test_unknown_score_needs_a_margin_for_equality(tmp_path):
    unknown = [table_of(tmp_path / f"{name}.csv", [4, 9, score, 7]) for name, score in (("x", 5), ("y", 6))]
    found = compare_paths(unknown)
    assert "equal" not in "".join(lines(found))
    assert says(lines(found)[-1], "No difference between y and x is shown", "lower", "higher")
    assert "y and x are equal within 9 score" in "".join(lines(found.within(Margin(9))))
