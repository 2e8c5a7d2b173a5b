"""Scores from batches without padding against a plain loop: every option by itself, the whole model, every logit."""

import copy
import random

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, PreTrainedModel, Qwen3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from evaluation_kit import all_tasks, log_probability, tokenizer
from moslora.adapters import inject
from moslora.base.load import name_task
from moslora.data.encode import Encoder
from moslora.evaluation import Request, evaluate
from moslora.kernels.attention import ROWS
from moslora.prompts import FORMATS
from reference import perturb

SHAPES = {
    "vocab_size": len(tokenizer()),
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "initializer_range": 0.1,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPES),
    "mistral": MistralConfig(**SHAPES, sliding_window=9),
    "qwen3": Qwen3Config(**SHAPES),
}
TOKEN_GATE = {"kind": "token-gate", "experts": 2}
TASK_GATE = {"kind": "task-gate", "experts": 2}


def model_of(name: str, mixer: dict[str, object] | None = None) -> PreTrainedModel:
    torch.manual_seed(3)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager")
    if mixer:
        inject(model, rank=4, alpha=8, mixer=mixer, target_modules=["q_proj", "v_proj", "down_proj"])
        with torch.no_grad():
            perturb(p for p in model.parameters() if p.requires_grad)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "mixer"),
    [("llama", None), ("mistral", None), ("qwen3", None), ("llama", TOKEN_GATE), ("llama", TASK_GATE)],
)
@pytest.mark.parametrize(("protocol", "format"), [("rank", "label"), ("cloze", "cloze")])
def test_scores_are_those_of_a_plain_loop(
    name: str, mixer: dict[str, object] | None, protocol: str, format: str
) -> None:
    examples = all_tasks(4)
    model = model_of(name, mixer)
    plain = copy.deepcopy(model).double()
    results = evaluate(model, tokenizer(), examples, Request(protocol=protocol, format=format, batch_tokens=400))  # type: ignore[arg-type]
    assert model.config._attn_implementation == ROWS
    encoder = Encoder(tokenizer(), max_length=CONFIGS[name].max_position_embeddings)
    by_id = {example.id: example for rows in examples.values() for example in rows}
    for prediction in results.predictions:
        name_task(plain, prediction.task)
        scores, longest = [], 0
        for option in FORMATS[format].options(by_id[prediction.id]):
            text = encoder.encode(option.prompt, option.answer, eos=False)
            scores.append(log_probability(plain, text.ids[: text.answer_start], text.ids[text.answer_start :]))
            longest = max(longest, len(text.ids) - text.answer_start)
        expected = torch.tensor(scores, dtype=torch.float64)
        if protocol == "rank":
            expected = expected.log_softmax(0)
        given = torch.tensor(prediction.scores, dtype=torch.float64)
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-5 * longest)


@pytest.mark.parametrize("name", ["llama", "mistral"])
@pytest.mark.parametrize("beams", [1, 3])
def test_texts_written_in_batches_are_those_written_one_by_one(name: str, beams: int) -> None:
    examples = all_tasks(6)
    model = model_of(name, TOKEN_GATE)
    texts = []
    for tokens in (1, 2_000):
        request = Request(protocol="generate", format="label", beams=beams, batch_tokens=tokens)
        shuffled = {task: random.Random(tokens).sample(rows, 6) for task, rows in examples.items()}
        results = evaluate(model, tokenizer(), shuffled, request)
        texts.append({prediction.id: (prediction.text, prediction.answer) for prediction in results.predictions})
    assert texts[0] == texts[1]
    assert len(set(texts[0].values())) > (20 if name == "llama" else 10)
