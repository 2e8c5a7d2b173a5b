"""Attention in rows against the model of transformers on a padded batch, and against the formula."""

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel, Qwen3Config

from moslora.base import rows as rows_module
from moslora.base.attention import _padded as padded_attention
from moslora.base.attention import as_rows, attend_in_rows, use_rows
from moslora.base.rows import Rows, send

LENGTHS = (7, 6, 12, 1, 7)  # the first two are one group, with padding
SHAPES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
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


@pytest.mark.parametrize("branches", [(), ((2, 3), (), (4, 0, 5), (1,), (3, 4))])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(("most", "groups"), [(rows_module.SCORES, 4), (1, 5)])
def test_both_ways_of_computing_it_are_the_formula(
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    groups: int,
    window: int | None,
    branches: tuple[tuple[int, ...], ...],
) -> None:
    monkeypatch.setattr(rows_module, "SCORES", most)
    torch.manual_seed(1)
    query, key, value = (torch.randn(1, heads, sum(LENGTHS), 8, dtype=torch.float64) for heads in (4, 2, 2))
    rows = Rows(LENGTHS, torch.device("cpu"), branches)
    assert len(rows.groups(2)) == groups
    sees = torch.zeros(sum(LENGTHS), sum(LENGTHS), dtype=torch.bool)
    for path in rows.paths:
        for at, token in enumerate(path):
            sees[token, path[max(0, at + 1 - window) if window else 0 : at + 1]] = True
    scores = 0.3 * query[0] @ key[0].repeat_interleave(2, 0).transpose(1, 2)
    expected = scores.masked_fill(~sees, -torch.inf).softmax(-1) @ value[0].repeat_interleave(2, 0)

    found, _ = attend_in_rows(torch.nn.Module(), query, key, value, None, rows=rows, scaling=0.3, sliding_window=window)
    assert torch.allclose(found[0].transpose(0, 1), expected, rtol=0, atol=1e-12)
    assert torch.allclose(padded_attention(query[0], key[0], value[0], rows, 0.3, window), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [None, 3])
def test_the_gradient_written_out_is_that_of_finite_differences(window: int | None) -> None:
    torch.manual_seed(2)
    rows = Rows((4, 5, 1), torch.device("cpu"))
    heads = [torch.randn(1, n, 10, 3, dtype=torch.float64, requires_grad=True) for n in (4, 2, 2)]
    assert torch.autograd.gradcheck(
        lambda q, k, v: attend_in_rows(torch.nn.Module(), q, k, v, None, rows=rows, scaling=0.7, sliding_window=window)[
            0
        ],
        heads,
    )


def test_branches_share_what_comes_before_them() -> None:
    rows = Rows((6, 3), torch.device("cpu"), ((3, 1), ()))
    assert rows.paths == [[0, 1, 2, 3, 4], [0, 1, 5], [6, 7, 8]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 4, 2, 0, 1, 2]]


def test_places_are_known_without_a_device() -> None:
    rows = Rows((2, 3), torch.device("cpu"))
    assert rows.positions.tolist() == [[0, 1, 0, 1, 2]]
    there, back = rows.padded
    assert there.tolist() == [0, 1, 0, 2, 3, 4] and back.tolist() == [0, 1, 3, 4, 5]
    assert send([1], torch.device("cpu")).dtype == torch.int64
