"""Cloze against lm-eval 0.4.13 itself: its tasks' own files, its own harness, question by question.

The questions are the hub's rows, which lm-eval reads as they are and we through our own reader.
"""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lm_eval_kit
from data_kit import hub_rows
from evaluation_kit import make_examples, make_model, tokenizer
from moslora.evaluation import Request, evaluate
from moslora.prompts.formats import FORMATS
from moslora.recipe import load_recipe
from moslora.recipe.yaml_text import render_inline
from moslora.tasks import COMMONSENSE, TASKS
from recipe_kit import RECIPES

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is a development dependency")

QUESTIONS = 8
LONGEST = 4096  # no text is cut: lm-eval cuts whole texts from the left, we never cut an answer

TASK_FILES = {
    "boolq": "super_glue/boolq/default.yaml",
    "piqa": "piqa/piqa.yaml",
    "siqa": "siqa/siqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "obqa": "openbookqa/openbookqa.yaml",
    "copa": "super_glue/copa/default.yaml",
    "commonsense_qa": "commonsense_qa/default.yaml",
    "sciq": "sciq/sciq.yaml",
}

LETTERS = "\n".join(f"{letter}. {{{{choices.text[{n}]}}}}" for n, letter in enumerate("ABCDE"))
OWN = {
    "copa": {"options": "[' ' ~ choice1[0]|lower ~ choice1[1:], ' ' ~ choice2[0]|lower ~ choice2[1:]]"},
    "commonsense_qa": {"question": f"{{{{question.strip()}}}}\n{LETTERS}", "options": [*"ABCDE"]},
    "sciq": {"options": "[distractor1, distractor2, distractor3, correct_answer]", "answer": "3"},
}
"""Parts of lm-eval's files that our declarations of these tasks lack: a second space, letters as answers, and the right
one always last."""


def entry(task):
    if task in TASKS:
        return TASKS[task]
    section = load_recipe(RECIPES / "smollm2-135m.yaml", [f"tasks.{task}={render_inline(declared(task) | OWN[task])}"])
    return section.own_tasks[task]


def declared(task):
    found = yaml.safe_load((RECIPES / "tasks" / f"{task}.yaml").read_text("utf-8"))["tasks"][task]
    return found


def sample_rows(task):
    """From all over the set: HellaSwag's second half, WikiHow, is another kind of text than its first."""
    rows = hub_rows(task)
    if task == "sciq":  # where its passage is empty, lm-eval's prompt begins with a line break
        rows = [row for row in rows if row["support"]]
    rows = random.Random(0).sample(rows, QUESTIONS)
    if task == "boolq":  # lm-eval reads SuperGLUE's copy, whose label is a number
        rows = [{**row, "label": int(row["answer"])} for row in rows]
    return rows


def by_lm_eval(task, rows, harness):
    """lm-eval's record of every row: the log-likelihood per choice, acc and acc_norm."""
    from datasets import Dataset, DatasetDict
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(Path(lm_eval.__file__).parent / "tasks" / TASK_FILES[task])
    config |= {
        "custom_dataset": lambda **_: DatasetDict({"validation": Dataset.from_list(rows)}),
        "training_split": None,
        "test_split": None,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
        ],
    }
    return lm_eval_kit.samples(harness, config)


def hf_harness(model, tokenizer, longest=LONGEST):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16, max_length=longest)


def assert_equal(task, model, tokenizer):
    rows = sample_rows(task)
    examples = [entry(task).example(row, f"{task}/test/{number}") for number, row in enumerate(rows)]
    samples = by_lm_eval(task, rows, hf_harness(model, tokenizer))
    results = evaluate(
        model, tokenizer, {task: examples}, Request(protocol="cloze", format="cloze-passage", max_length=LONGEST)
    )
    ours = {prediction.id: prediction for prediction in results.predictions}
    assert len(samples) == len(ours) == QUESTIONS
    for example, sample in zip(examples, samples, strict=True):
        prediction = ours[example.id]
        theirs = [float(likelihood) for likelihood, _ in sample["filtered_resps"]]
        if task == "boolq":  # its choices are no, yes
            theirs.reverse()
        torch.testing.assert_close(
            torch.tensor(prediction.scores), torch.tensor(theirs), rtol=1e-5, atol=1e-4, msg=example.id
        )
        assert (prediction.prediction == prediction.gold) == sample["acc"]
        best = max(range(len(theirs)), key=prediction.deciding_scores.__getitem__)
        assert (best == prediction.gold) == sample["acc_norm"]
    score = results.tasks[task]
    assert score.accuracy == pytest.approx(sum(sample["acc"] for sample in samples) / QUESTIONS)
    assert score.accuracy_per_character == pytest.approx(sum(sample["acc_norm"] for sample in samples) / QUESTIONS)
    print(f"{task}: acc {score.accuracy:.4f}, acc_norm {score.accuracy_per_character:.4f}, as lm-eval")


@pytest.mark.slow
@pytest.mark.parametrize("task", [*COMMONSENSE, *OWN])
def test_acc_and_acc_norm_are_those_of_lm_eval(task):
    assert_equal(task, make_model(context=LONGEST), tokenizer())


@pytest.mark.slow
def test_a_run_is_a_model_of_lm_eval(world):
    from lm_eval.api.registry import get_model

    from moslora.evaluation import harness

    assert get_model("moslora") is harness.HarnessModel
    arguments = f"run={world / 'model'},dtype=float32"
    ours = harness.HarnessModel.create_from_arg_string(arguments, {"batch_size": 1, "device": None})
    task = "winogrande"  # its options come before the same end
    rows = sample_rows(task)
    theirs = by_lm_eval(task, rows, hf_harness(make_model(), tokenizer(), longest=512))
    for sample, expected in zip(by_lm_eval(task, rows, ours), theirs, strict=True):
        assert (sample["acc"], sample["acc_norm"]) == (expected["acc"], expected["acc_norm"])
        for (value, greedy), (their_value, their_greedy) in zip(
            sample["filtered_resps"], expected["filtered_resps"], strict=True
        ):
            assert float(value) == pytest.approx(float(their_value), rel=1e-5, abs=1e-4)
            assert greedy == their_greedy


TEXTS_ASKED: list[dict[str, Any]] = [
    {"until": ["\n\n", "answer"], "max_gen_toks": 24, "do_sample": False},
    {"until": "e", "max_gen_toks": 9},
    {"until": [], "max_gen_toks": 460, "temperature": 0.0},
]
"""Settings of texts, as tasks of lm-eval have them; behind the last a prompt loses its beginning."""


def test_a_run_writes_what_lm_eval_writes(world):
    """Of the requests of several tasks at once, which are not sorted."""
    from lm_eval.api.instance import Instance

    from moslora.evaluation import harness

    ours = harness.HarnessModel(str(world / "model"), dtype="float32")
    theirs = hf_harness(make_model(), tokenizer(), longest=512)
    examples = make_examples("siqa", 12)
    prompts = [FORMATS["label"].options(example)[0].prompt for example in examples]

    def requests():  # lm-eval changes their settings
        asked = []
        for number, prompt in enumerate(prompts):
            settings = copy.deepcopy(TEXTS_ASKED[number % len(TEXTS_ASKED)])
            asked.append(Instance("generate_until", doc={}, arguments=(prompt, settings), idx=number))
        return asked

    written = ours.generate_until(requests())
    assert written == theirs.generate_until(requests())
    assert len(set(written)) > 6
