"""Scores from batches without padding against a plain loop: every option by itself, the whole model, every logit."""

import copy
import random

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Phi3Config, Qwen3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from evaluation_kit import all_tasks, log_probability, make_examples, make_model, tokenizer
from moslora.adapters import describe_task, inject
from moslora.base.shapes import context_length
from moslora.data.encode import Encoder
from moslora.errors import UsageError
from moslora.evaluation import Request, evaluate
from moslora.kernels.attention import ROWS
from moslora.plan.outline import outline
from moslora.prompts.formats import FORMATS
from moslora.training import train_recipe
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


def model_of(name, mixer=None):
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager")
    if mixer:
        inject(model, rank=4, alpha=8, mixer=mixer, target_modules=["q_proj", "v_proj", "down_proj"])
        with torch.no_grad():
            perturb(p for p in model.parameters() if p.requires_grad)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "mixer"),
    [("llama", None), ("mistral", None), ("qwen3", None), ("llama", TOKEN_GATE), ("llama", TASK_GATE)],
)
@pytest.mark.parametrize(("protocol", "format"), [("choice", "label"), ("choice", "llm-adapters"), ("cloze", "cloze")])
def test_scores_are_those_of_a_plain_loop(name, mixer, protocol, format):
    """All tokens of every option, also where one of them decides, in float64."""
    examples = all_tasks(4)
    model = model_of(name, mixer)
    plain = copy.deepcopy(model).double()
    results = evaluate(model, tokenizer(), examples, Request(protocol=protocol, format=format, batch_tokens=400))
    assert model.config._attn_implementation == ROWS
    encoder = Encoder(tokenizer(), max_length=CONFIGS[name].max_position_embeddings)
    form = FORMATS[format]
    by_id = {}
    for rows in examples.values():
        by_id |= {example.id: example for example in rows}
    for prediction in results.predictions:
        describe_task(plain, prediction.task)
        scores = []
        longest = 0
        options = form.options(by_id[prediction.id])
        for option in options:
            text = encoder.encode(option.prompt, option.answer, joint=form.joint, eos=False)
            scores.append(log_probability(plain, text.ids[: text.answer_start], text.ids[text.answer_start :]))
            longest = max(longest, len(text.ids) - text.answer_start)
        expected = torch.tensor(scores, dtype=torch.float64)
        if protocol == "choice":
            expected = expected.log_softmax(0)
        given = torch.tensor(prediction.scores, dtype=torch.float64)
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-5 * longest)
        assert prediction.prediction == int(expected.argmax())
        characters = ()
        if protocol == "cloze":
            characters = tuple(option.characters for option in options)
        assert prediction.characters == characters


@pytest.mark.parametrize(("protocol", "format"), [("choice", "label"), ("cloze", "cloze-passage")])
@pytest.mark.parametrize("batch_tokens", [1, 500, 5_000])
def test_float32_predictions_do_not_depend_on_batches(protocol, format, batch_tokens):
    examples = all_tasks(20)
    shuffled = {task: random.Random(batch_tokens).sample(rows, 20) for task, rows in reversed(examples.items())}
    request = Request(protocol=protocol, format=format)
    expected = evaluate(make_model(), tokenizer(), examples, request)
    given = evaluate(make_model(), tokenizer(), shuffled, request.model_copy(update={"batch_tokens": batch_tokens}))
    by_id = {prediction.id: prediction for prediction in given.predictions}
    assert len(by_id) == 8 * 20 and given.macro.drift < 1e-5 and given.macro.close_calls == 0
    for prediction in expected.predictions:
        other = by_id[prediction.id]
        assert other.prediction == prediction.prediction
        assert np.argmax(other.deciding_scores) == np.argmax(prediction.deciding_scores)
        assert other.deciding_scores == pytest.approx(prediction.deciding_scores, rel=0, abs=1e-5)


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]}
SCALED_BY_LENGTH = {
    "longrope": Phi3Config(
        **SHAPES,
        pad_token_id=0,
        max_position_embeddings=128,
        original_max_position_embeddings=32,
        rope_parameters={"rope_theta": 1e4, **LONGROPE},
    ),
    "dynamic": LlamaConfig(
        **SHAPES,
        max_position_embeddings=32,
        rope_parameters={"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0},
    ),
}


@pytest.mark.parametrize("rope", SCALED_BY_LENGTH)
def test_no_row_is_computed_by_the_length_of_another(recipe, tmp_path, rope):
    """Beyond the original context a long row would change a short one beside it."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(SCALED_BY_LENGTH[rope]).eval()
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert context_length(model.config) == 32
    results = evaluate(
        model, tokenizer(), {"piqa": make_examples("piqa", 3)}, Request(protocol="choice", format="label")
    )
    assert results.tasks["piqa"].truncated == 3
    too_long = recipe(f"model.name={tmp_path}", "data.max_length=33")
    with pytest.raises(UsageError, match=r"data.max_length = 33: .* at most 32"):
        train_recipe(too_long, out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"data.max_length = 33: .* at most 32"):
        outline(too_long)
