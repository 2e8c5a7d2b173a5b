"""Attention in rows against the model of transformers on a padded batch, and against the formula."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel, Qwen3Config

from moslora.kernels import rows as rows_module
from moslora.kernels.attention import _padded as padded_attention
from moslora.kernels.attention import as_rows, attend_in_rows, use_rows
from moslora.kernels.rows import Rows, lay

LENGTHS = (7, 6, 12, 1, 7)  # the first two are one group, with padding
SHAPES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SHAPES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS = {
    "llama": LlamaConfig(**SHAPES),
    "mistral": MistralConfig(**SHAPES, sliding_window=5),
    "qwen3": Qwen3Config(**SHAPES),
}


def model_of(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="sdpa")
    return model.double().eval()


def hidden(model: PreTrainedModel, embedded: Tensor, **keywords: object) -> Tensor:
    return model.get_decoder()(inputs_embeds=embedded, use_cache=False, **keywords).last_hidden_state


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_end_to_end_are_a_padded_batch_in_values_and_gradients(name: str) -> None:
    model = model_of(name)
    embedded = torch.randn(len(LENGTHS), max(LENGTHS), 32, dtype=torch.float64)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    weights = torch.randn(sum(LENGTHS), 32, dtype=torch.float64)

    batch = embedded.clone().requires_grad_()
    expected = hidden(model, batch, attention_mask=mask.long())[mask]
    (expected * weights).sum().backward()

    use_rows(model)
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
def test_both_ways_of_computing_it_are_the_formula(
    monkeypatch: pytest.MonkeyPatch, padding: int, most: int, window: int | None, continues: tuple[int | None, ...]
) -> None:
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
    padded = padded_attention(query[0], key[0], value[0], rows, 0.3, window)
    assert torch.allclose(padded.transpose(0, 1), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ampere", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_keys_are_shared_among_heads_only_where_a_fused_kernel_does(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, ampere: bool
) -> None:
    """Elsewhere torch would fall back to the plain formula, whose scores take the memory that fused attention saves."""
    given, fused = [], torch.nn.functional.scaled_dot_product_attention

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        given.append((k.shape[1], options["enable_gqa"]))
        return fused(q, k, v, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    monkeypatch.setattr("moslora.kernels.attention.multiplies_bfloat16", lambda device: ampere)
    query, key, value = (torch.randn(heads, 9, 8).to(dtype) for heads in (4, 2, 2))
    rows = Rows((4, 5), torch.device("cpu"))
    padded_attention(query, key, value, rows, 0.3, None)
    assert set(given) == {(2, True) if ampere and dtype == torch.float16 else (4, False)}


@pytest.mark.parametrize("continues", [(), (None, 0, 0), (None, 0, 1), (None, None, 0)])
@pytest.mark.parametrize("window", [None, 3])
def test_the_gradient_written_out_is_that_of_finite_differences(
    window: int | None, continues: tuple[int | None, ...]
) -> None:
    torch.manual_seed(2)
    rows = Rows((4, 5, 1), torch.device("cpu"), continues)
    heads = [torch.randn(1, n, 10, 3, dtype=torch.float64, requires_grad=True) for n in (4, 2, 2)]
    options = {"rows": rows, "scaling": 0.7, "sliding_window": window}
    assert torch.autograd.gradcheck(lambda *qkv: attend_in_rows(torch.nn.Module(), *qkv, None, **options)[0], heads)


def test_what_texts_begin_with_is_laid_once() -> None:
    tokens, rows, places = lay([[[7, 8, 1, 2, 3], [7, 8], [7, 8, 4]], [[9, 9]], [[5], [6]]], torch.device("cpu"))
    assert rows.lengths == (2, 2, 1, 1, 1, 3) and rows.continues == (None, None, None, None, 0, 0)
    assert tokens == [7, 8, 9, 9, 5, 6, 4, 1, 2, 3]
    assert places == [[0, 1, 7, 8, 9], [0, 1], [0, 1, 6], [2, 3], [4], [5]]
    assert rows.positions.tolist() == [[0, 1, 0, 1, 0, 0, 2, 2, 3, 4]]


@pytest.mark.parametrize(
    ("padding", "most", "groups"),
    [(0, 999, [1, 1, 1, 1, 1]), (26, 999, [2, 1, 1, 1]), (999, 432, [3, 2]), (999, 100, [2, 1, 2])],
)
def test_neighbours_are_a_group_where_padding_and_scores_are_few(
    monkeypatch: pytest.MonkeyPatch, padding: int, most: int, groups: list[int]
) -> None:
    monkeypatch.setattr(rows_module, "PADDING", padding)
    monkeypatch.setattr(rows_module, "SCORES", most)
    assert [group.shape[0] for group in Rows(LENGTHS, torch.device("cpu")).groups()] == groups
