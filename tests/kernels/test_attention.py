"""Attention in rows against the model of transformers on a padded batch, and against the formula."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

import flash_kit  # noqa: F401 — computes flash attention
from moslora.kernels import attention
from moslora.kernels import rows as rows_module
from moslora.kernels.attention import GROUPED, PADDED, UNPADDED, as_rows, attend_in_rows, use_rows
from moslora.kernels.exchange import exchange
from moslora.kernels.rotary import RotaryAttention, own_attention
from moslora.kernels.rows import Rows, concatenate

LENGTHS = (7, 6, 12, 1, 7)  # the first two are one group, with padding
SHAPES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SHAPES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS = {
    "llama": LlamaConfig(**SHAPES),
    "mistral": MistralConfig(**SHAPES, sliding_window=5),
    "qwen2": Qwen2Config(**SHAPES, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3": Qwen3Config(**SHAPES),
}


def model_of(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="sdpa")
    return model.double().eval()


def hidden(model, embedded, **keywords):
    return model.get_decoder()(inputs_embeds=embedded, use_cache=False, **keywords).last_hidden_state


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kernel", [GROUPED, UNPADDED, PADDED])
@pytest.mark.parametrize("name", CONFIGS)
def test_rows_equal_a_padded_batch(monkeypatch, name, kernel, own):
    """With the attention module of transformers and with ours."""
    monkeypatch.setattr(attention, "kernel", lambda *_: kernel)
    model = model_of(name)
    embedded = torch.randn(len(LENGTHS), max(LENGTHS), 32, dtype=torch.float64)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    weights = torch.randn(sum(LENGTHS), 32, dtype=torch.float64)

    batch = embedded.clone().requires_grad_()
    expected = hidden(model, batch, attention_mask=mask.long())[mask]
    (expected * weights).sum().backward()

    use_rows(model)
    exchange(model, *[own_attention] * own)
    assert sum(isinstance(module, RotaryAttention) for module in model.modules()) == 2 * own
    rows = Rows(LENGTHS, torch.device("cpu"))
    packed = embedded[mask][None].clone().requires_grad_()
    found = hidden(model, packed, **as_rows(rows))[0]
    (found * weights).sum().backward()
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    assert batch.grad is not None and packed.grad is not None
    assert torch.allclose(packed.grad[0], batch.grad[mask], rtol=0, atol=1e-10)
    assert torch.allclose(hidden(model, embedded, attention_mask=mask.long())[mask], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("continues", [(), (None, 0, 1, 0, None), (None, None, 1, 1, 0), (None, 0, 0, 0, 0)])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(("padding", "most"), [(rows_module.PADDING, rows_module.SCORES), (20, 999), (0, 1)])
def test_every_kernel_equals_the_formula(monkeypatch, padding, most, window, continues):
    monkeypatch.setattr(rows_module, "PADDING", padding)
    monkeypatch.setattr(rows_module, "SCORES", most)
    torch.manual_seed(1)
    query, key, value = (torch.randn(1, heads, sum(LENGTHS), 8, dtype=torch.float64) for heads in (4, 2, 2))
    rows = Rows(LENGTHS, torch.device("cpu"), continues)
    sees = torch.zeros(sum(LENGTHS), sum(LENGTHS), dtype=torch.bool)
    for path in rows.paths:
        for at, token in enumerate(path):
            sees[token, path[max(0, at + 1 - window) if window else 0 : at + 1]] = True
    scores = 0.3 * query[0] @ key[0].repeat_interleave(2, 0).transpose(1, 2)
    expected = scores.masked_fill(~sees, -torch.inf).softmax(-1) @ value[0].repeat_interleave(2, 0)

    found, _ = attend_in_rows(torch.nn.Module(), query, key, value, None, rows=rows, scaling=0.3, sliding_window=window)
    assert torch.allclose(found[0].transpose(0, 1), expected, rtol=0, atol=1e-12)
    for attend in (attention._padded, attention._unpadded):
        found = attend(query[0], key[0], value[0], rows, 0.3, window)
        assert torch.allclose(found.transpose(0, 1), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", [PADDED, UNPADDED])
@pytest.mark.parametrize("window", [None, 4])
def test_gpu_gradients_equal_cpu_gradients(window, kernel):
    """Also of keys that several rows share."""
    torch.manual_seed(3)
    heads = [torch.randn(n, sum(LENGTHS), 8, dtype=torch.float64, requires_grad=True) for n in (4, 2, 2)]
    weight = torch.randn(sum(LENGTHS), 4, 8, dtype=torch.float64)
    rows = Rows(LENGTHS, torch.device("cpu"), (None, None, 1, 1, 0))
    ways = {GROUPED: attention._Grouped.apply, PADDED: attention._padded, UNPADDED: attention._unpadded}
    found, expected = (
        torch.autograd.grad((ways[way](*heads, rows, 0.3, window) * weight).sum(), heads) for way in (kernel, GROUPED)
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_flash_attention_is_chosen_in_16_bits(monkeypatch):
    gpu, half = torch.device("cuda"), torch.bfloat16
    for has in (True, False):
        monkeypatch.setattr(attention, "has_flash_attention", lambda _, has=has: has)
        assert attention.kernel(gpu, half, 128) == (UNPADDED if has else PADDED)
        assert attention.kernel(gpu, torch.float32, 128) == attention.kernel(gpu, half, 100) == PADDED
        assert attention.kernel(torch.device("cpu"), half, 128) == GROUPED


@pytest.mark.parametrize("continues", [(), (None, 0, 0), (None, 0, 1), (None, None, 0)])
@pytest.mark.parametrize("window", [None, 3])
def test_gradcheck(window, continues):
    torch.manual_seed(2)
    rows = Rows((4, 5, 1), torch.device("cpu"), continues)
    heads = [torch.randn(1, n, 10, 3, dtype=torch.float64, requires_grad=True) for n in (4, 2, 2)]
    options = {"rows": rows, "scaling": 0.7, "sliding_window": window}
    assert torch.autograd.gradcheck(lambda *qkv: attend_in_rows(torch.nn.Module(), *qkv, None, **options)[0], heads)


def test_common_beginning_is_stored_once():
    tokens, rows, places = concatenate(
        [[[7, 8, 1, 2, 3], [7, 8], [7, 8, 4]], [[9, 9]], [[5], [6]]], torch.device("cpu")
    )
    assert rows.lengths == (2, 2, 1, 1, 1, 3) and rows.continues == (None, None, None, None, 0, 0)
    assert tokens == [7, 8, 9, 9, 5, 6, 4, 1, 2, 3]
    assert places == [[0, 1, 7, 8, 9], [0, 1], [0, 1, 6], [2, 3], [4], [5]]
    assert rows.positions.tolist() == [[0, 1, 0, 1, 0, 0, 2, 2, 3, 4]]


@pytest.mark.parametrize(
    ("padding", "most", "groups"),
    [(0, 999, [1, 1, 1, 1, 1]), (26, 999, [2, 1, 1, 1]), (999, 432, [3, 2]), (999, 100, [2, 1, 2])],
)
def test_grouping_limits_padding_and_scores(monkeypatch, padding, most, groups):
    monkeypatch.setattr(rows_module, "PADDING", padding)
    monkeypatch.setattr(rows_module, "SCORES", most)
    assert [group.shape[0] for group in Rows(LENGTHS, torch.device("cpu")).groups()] == groups
