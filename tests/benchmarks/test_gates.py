"""Texts under the gate of one task, against transformers' own loss of the model that this gate makes."""

import copy

import pytest
import torch

from benchmarks.research.gates import UnderGate
from evaluation_kit import make_model, tokenizer
from moslora.adapters import describe_task, inject, named_adapters
from moslora.evaluation import Request
from moslora.evaluation.evaluator import ModelWithQuestions
from moslora.tasks import Plain, Task
from moslora.tasks.task import Columns
from reference import perturb

SET = Task(name="mine", columns=Columns(), wording=Plain(), splits={})
TEXTS = ["a red fox sat near the old stone bridge", "two birds sang", "rain fell on the old bridge"]
TASKS = ("boolq", "obqa", "piqa")


@torch.no_grad()
def merged(model, plain, task):
    """The plain model in float64 with W + s · B · M · A, M being that of the task's gate."""
    describe_task(model, task)
    made = copy.deepcopy(plain).double()
    for name, layer in named_adapters(model):
        delta = layer.scale * layer.lora_b.double() @ layer.mixer.matrix().double() @ layer.lora_a.double()
        made.get_submodule(name).weight += delta
    return made


def test_a_text_is_read_under_the_gate_that_is_named():
    plain = make_model()
    model = copy.deepcopy(plain)
    mixer = {"kind": "task-gate", "experts": 2, "tasks": TASKS}
    inject(model, rank=4, alpha=8, mixer=mixer, target_modules=["q_proj", "down_proj"])
    perturb((p for p in model.parameters() if p.requires_grad), size=0.5)
    model.eval()
    asked = ModelWithQuestions.of(model, tokenizer(), {"mine": [SET.text(text) for text in TEXTS]}, Request())
    found = {}
    for task in TASKS:
        gated = UnderGate(model, tokenizer(), asked.model.batch_tokens, gate=task)
        found[task] = {prediction.id: -prediction.scores[0] for prediction in asked.prepared.ask(gated)}
    for task in TASKS:
        of_gate = merged(model, plain, task)
        for text in TEXTS:
            ids = tokenizer()(text, return_tensors="pt").input_ids
            with torch.inference_mode():
                nats = float(of_gate(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
            assert found[task][SET.text(text).id] == pytest.approx(nats, rel=1e-5)
    assert abs(sum(found["boolq"].values()) - sum(found["obqa"].values())) > 1e-2
