"""Greedy decoding in packed passes against transformers' ``generate(do_sample=False)``, one prompt at a time."""

import random
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from moslora.adapters import describe_task
from moslora.base import decoding, own_engine
from moslora.base.decoding import decode
from moslora.base.load import load_base
from moslora.base.own_engine import use_own_modules
from moslora.errors import MosloraError
from moslora.recipe import ModelSection
from reference import adapted_llama, perturb, tiny_llama

VOCABULARY = 300
SHAPES: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SHAPES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
CONFIGS = {
    "llama": LlamaConfig(**SHAPES),
    "mistral": MistralConfig(**SHAPES, sliding_window=9),
    "qwen2": Qwen2Config(**SHAPES, use_sliding_window=True, sliding_window=9, max_window_layers=1),
    "qwen3": Qwen3Config(**SHAPES, head_dim=16),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_positions=200, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3),
}
NEW = 20
LENGTHS = (31, 1, 17, 4, 44, 9, 9, 23, 2, 60, 12)


def make(name):
    """Random model with norms that are not 1, as stock transformers computes it."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="sdpa")
    perturb([parameter for parameter in model.parameters() if parameter.dim() == 1], size=0.2)
    return model.requires_grad_(False).eval()


def prompts(beginning=0):
    """Prompts of unequal lengths with the same first tokens."""
    draw = random.Random(1)
    first = draw.choices(range(3, VOCABULARY), k=beginning)
    return [first + draw.choices(range(3, VOCABULARY), k=length) for length in LENGTHS]


def alone(model, prompt, *, ends=(), count=NEW):
    """Tokens that transformers writes after a prompt alone."""
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": count, "eos_token_id": list(ends) or None, "pad_token_id": 0}
    written = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()
    return written


def never(row, tokens):
    return False


def written(model, asked, **changes):
    options = {"max_new_tokens": NEW, "ended": never, "ends": (), "batch_tokens": 2_048}
    return decode(model, asked, **options | changes)


@pytest.mark.parametrize("beginning", [0, 30])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_equals_transformers_for_any_batch(name, own, beginning):
    model = make(name)
    asked = prompts(beginning)
    expected = [alone(model, prompt) for prompt in asked]
    assert len({token for row in expected for token in row}) > 20, "the model would write anything alike"
    if own:
        use_own_modules(model)
        model.eval()
    for tokens in (1, 70, 2_048):
        assert written(model, asked, batch_tokens=tokens) == expected, tokens
    assert written(model, asked[3:7]) == expected[3:7]
    assert written(model, asked[::-1]) == expected[::-1]
    assert written(model, asked[:1]) == expected[:1]
    assert written(model, [asked[0], asked[0]]) == [expected[0], expected[0]]


@pytest.mark.parametrize("tokens", [1, 70, 2_048])
def test_a_row_ends_with_an_end_token_and_with_its_last(tokens):
    model = make("llama")
    asked = prompts()
    free = [alone(model, prompt) for prompt in asked]
    ends = [free[0][7], free[1][5]]  # of some rows, and not of others
    expected = [alone(model, prompt, ends=ends) for prompt in asked]
    lengths = {len(row) for row in expected}
    assert min(lengths) < NEW and max(lengths) == NEW
    assert written(model, asked, ends=ends, batch_tokens=tokens) == expected
    assert written(model, asked, max_new_tokens=1, batch_tokens=tokens) == [row[:1] for row in free]


@pytest.mark.parametrize("tokens", [1, 70, 2_048])
def test_a_row_ends_where_its_caller_says_so(tokens):
    model = make("llama")
    asked = prompts(30)
    expected = [alone(model, prompt) for prompt in asked]
    seen = {row: [] for row in range(len(asked))}

    def ended(row, tokens):
        seen[row].append(list(tokens))
        return len(tokens) == row + 1

    found = written(model, asked, ended=ended, batch_tokens=tokens)
    assert found == [row[: number + 1] for number, row in enumerate(expected)]
    for number, row in enumerate(expected):
        assert seen[number] == [row[: count + 1] for count in range(number + 1)], "it is asked after each token, once"


MIXERS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "identity"},
    "dense": {"kind": "dense"},
    "token gate": {"kind": "token-gate", "experts": 2},
    "task gate": {"kind": "task-gate", "experts": 2, "tasks": ("one", "other")},
}


@pytest.mark.parametrize("kind", MIXERS)
def test_adapters_decode_as_under_transformers(kind):
    model = adapted_llama(MIXERS[kind], moved=0.3, target_modules=["q_proj", "v_proj", "down_proj"]).eval()
    describe_task(model, "other")
    asked = prompts(20)
    expected = [alone(model, prompt) for prompt in asked]
    describe_task(model, "one")
    differ = kind == "task gate"
    assert ([alone(model, prompt) for prompt in asked] != expected) == differ
    describe_task(model, "other")
    use_own_modules(model)
    model.eval()
    assert written(model, asked) == expected
    assert written(model, asked, batch_tokens=50) == expected


@pytest.mark.parametrize("config", [peft.LoraConfig(r=4), peft.VeraConfig(r=4), peft.LoraConfig(r=4, use_dora=True)])
def test_peft_decodes_as_under_transformers(config):
    config.task_type = "CAUSAL_LM"
    config.target_modules = {"q_proj", "v_proj"}
    plain = make("llama")
    asked = prompts(20)
    before = [alone(plain, prompt) for prompt in asked]
    model = peft.get_peft_model(plain, config).eval()
    perturb([parameter for parameter in model.parameters() if parameter.requires_grad], size=0.3)
    expected = [alone(model, prompt) for prompt in asked]
    assert expected != before
    use_own_modules(model.base_model.model)
    model.eval()
    assert written(model, asked) == expected
    assert written(model, asked, batch_tokens=50) == expected


def test_4_bit_base_decodes_as_under_transformers(tmp_path):
    tiny_llama(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    section = ModelSection.model_validate({"name": str(tmp_path), "dtype": "float32", "quantization": "nf4"})
    model = load_base(section)
    asked = prompts(20)
    expected = [alone(model, prompt) for prompt in asked]
    assert written(model, asked) == expected
    assert written(model, asked, batch_tokens=50) == expected


def test_logits_that_are_not_finite_are_refused():
    """Float16 weights that overflow give NaN, whose maximum would be any token."""
    model = make("llama")
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    with pytest.raises(MosloraError, match="are not finite; use --dtype"):
        written(model, prompts())


def count_tokens(monkeypatch):
    """Record the number of tokens of each pass from now on."""
    passes = []
    compute = own_engine.final_hidden

    def counted(model, input_ids, rows):
        passes.append(input_ids.numel())
        return compute(model, input_ids, rows)

    monkeypatch.setattr(decoding, "final_hidden", counted)
    return passes


def test_no_token_is_computed_twice_and_no_padding(monkeypatch):
    """Each pass computes: the common beginning once, each prompt's own tokens, and each new token but the last."""
    model = make("llama")
    asked = prompts(30)
    passes = count_tokens(monkeypatch)
    for tokens in (1, 70, 2_048):
        passes.clear()
        written(model, asked, batch_tokens=tokens)
        assert sum(passes) == 30 + sum(LENGTHS) + len(asked) * (NEW - 1), tokens
        longest = max(30, *LENGTHS)
        assert max(passes) <= max(tokens, longest + len(asked))
    assert len(passes) == 1 + NEW, "all enter at once, and the last pass writes the last tokens"
