"""Every built-in method on the small world: it trains, saves, reloads and is scored. It resumes: test_resume.py."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from evaluation_kit import log_probability, make_examples, make_model, tokenizer
from methods_kit import METHODS, logits_of
from moslora.adapters import adapter_state_dict, describe_task, inject
from moslora.base.adapted import with_adapters
from moslora.base.load import load_base
from moslora.data.encode import IGNORE_INDEX, Encoded, Encoder
from moslora.data.sources import load_examples
from moslora.data.steps import collate
from moslora.evaluation import Request, evaluate
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.prompts.formats import FORMATS
from moslora.runs.adapted_model import load_adapted
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.evaluation import read_predictions
from moslora.tasks import COMMONSENSE, TASKS
from moslora.training.objective import LabelLoss
from reference import perturb
from training_kit import losses_logged

FIXED = {
    "methods/controls/moslora-frozen": ("mixer.weight",),
    "methods/lora-fa": ("lora_a",),
    "methods/lora-xs": ("lora_a", "lora_b"),
    "methods/pissa": ("start_a", "start_b"),
}
"""Method -> what its adapters keep and training leaves alone."""

PENALTY = ("methods/adalora", "methods/lora-moe-topk")


@pytest.mark.parametrize("method", METHODS)
def test_method_trains_all_its_weights(finished, method):
    """The loss starts at the base's (but for dropout) and falls; against the start, drawn anew, exactly the weights
    that are to be fixed have not moved. A penalty and a budget are logged where it has them."""
    done = finished(method)
    rows = losses_logged(done.out)
    assert rows[0]["loss"] == pytest.approx(losses_logged(finished("methods/lora").out)[0]["loss"], abs=0.03)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert sum(row["loss"] for row in rows[-3:]) < sum(row["loss"] for row in rows[:3])
    assert all((row.get("penalty", 0) > 0) == (method in PENALTY) for row in rows)
    fresh = load_base(done.recipe.model)
    with_adapters(fresh, done.recipe)
    start = adapter_state_dict(fresh)
    end = load_file(done.out / "adapter" / "adapter.safetensors")
    assert start.keys() == end.keys()
    rests = {key for key, value in end.items() if value.equal(start[key])}
    assert rests == {key for key in end if key.endswith(FIXED.get(method, ("nothing",)))}
    assert all(value.isfinite().all() for value in end.values())


@pytest.mark.parametrize("method", METHODS)
def test_method_reloads_to_the_same_logits(finished, method):
    done = finished(method)
    model = load_adapted(open_adapter(done.out / "adapter"))
    base = load_base(done.recipe.model)
    assert logits_of(model).equal(done.logits)
    assert (logits_of(base) - done.logits).abs().max() > 0.01


@pytest.mark.parametrize("method", METHODS)
def test_scores_equal_those_of_the_whole_model(finished, method):
    """Authority for protocol choice over three tasks: Σ log p of every label's tokens, one sequence at a time."""
    target = open_target(str(finished(method).out))
    _, out = evaluate_target(target, limit=2)
    model = load_adapted(open_adapter(finished(method).out / "adapter"))
    encoder = Encoder(tokenizer(), max_length=128)
    form = FORMATS["label"]
    scores = {prediction.id: prediction.scores for prediction in read_predictions(out)}
    assert len(scores) == 6
    for task in ("boolq", "arc_easy", "obqa"):
        describe_task(model, task)
        for example in load_examples(TASKS[task], "test", source=target.request.source):
            if example.id in scores:
                pairs = [(option.prompt, option.answer) for option in form.options(example)]
                texts = encoder.encode_all(pairs, joint=form.joint, eos=False)
                sums = [log_probability(model, t.ids[: t.answer_start], t.ids[t.answer_start :]) for t in texts]
                expected = torch.log_softmax(torch.tensor(sums, dtype=torch.float64), 0)
                found = torch.tensor(scores.pop(example.id), dtype=torch.float64)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not scores


# The task gate


@pytest.mark.parametrize(
    ("tasks", "rows"), [(("boolq",), [0]), (("obqa", "piqa"), [7]), (("piqa", "obqa"), [1]), (("instruction",), [8])]
)
def test_gradient_reaches_embeddings_of_the_rows_tasks(tasks, rows):
    """Through the batch as training collates it, only the first row labelled; a row of no set takes the last one."""
    model = make_model()
    inject(
        model,
        rank=8,
        alpha=8,
        mixer={"kind": "task-gate", "tasks": COMMONSENSE},
        target_modules=["q_proj", "down_proj"],
    )
    perturb((p for p in model.parameters() if p.requires_grad), size=0.1)
    ids = list(range(5, 12))
    nothing = [IGNORE_INDEX] * len(ids)
    drawn = [Encoded(task, task, ids, nothing, truncated=False) for task in tasks]
    drawn[0] = replace(drawn[0], labels=[*nothing[:4], *ids[4:]])
    loss, _ = LabelLoss(model)(collate(drawn, device=torch.device("cpu"), tasks=COMMONSENSE))
    loss.backward()
    for name, parameter in model.named_parameters():
        if name.endswith("embedding"):
            assert parameter.grad is not None
            assert parameter.grad.any(1).nonzero().flatten().tolist() == rows, name


def test_rows_of_a_mixed_batch_go_each_by_their_own_task(finished):
    model = load_adapted(open_adapter(finished("methods/moelora").out / "adapter"))
    mixed = logits_of(model, ("boolq", "obqa"))
    one = logits_of(model, ("boolq",))
    other = logits_of(model, ("obqa",))
    torch.testing.assert_close(mixed[0], one[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed[1], other[1], rtol=1e-5, atol=1e-5)
    swapped = logits_of(model, ("obqa", "boolq"))
    assert (swapped - mixed).abs().amax((1, 2)).min() > 1e-3


@pytest.mark.parametrize(("protocol", "format"), [("choice", "label"), ("cloze", "cloze")])
def test_a_question_is_scored_by_its_own_task(finished, protocol, format):
    """Spoiling the embedding of one task changes the scores of its questions and of no others."""
    folder = open_adapter(finished("methods/moelora").out / "adapter")
    examples = {task: make_examples(task, 3) for task in ("obqa", "boolq", "arc_easy")}

    def scored(spoiled):
        model = load_adapted(folder)
        for name, parameter in model.named_parameters():
            if spoiled and name.endswith("embedding"):
                parameter.data[folder.recipe.data.tasks.index(spoiled)] *= -3
        path = folder.path.parent / f"eval-{protocol}-{spoiled}"
        evaluate(model, tokenizer(), examples, Request(protocol=protocol, format=format), out=path)
        lines = map(json.loads, (path / "predictions.jsonl").read_text().splitlines())
        found = {task: [] for task in examples}
        for line in lines:
            found[line["id"].partition("/")[0]].append(line["scores"])
        return found

    before = scored(None)
    for task in examples:
        after = scored(task)
        assert {name for name in examples if after[name] != before[name]} == {task}
