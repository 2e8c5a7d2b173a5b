"""Dropout by places: what it keeps, how often, and that the gradient takes the same entries."""

import pytest
import torch

from moslora.adapters.dropout import Dropout


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("p", [0.05, 0.5])
def test_entries_are_dropped_or_scaled_and_so_is_their_gradient(dtype: torch.dtype, p: float) -> None:
    torch.manual_seed(3)
    x = torch.ones(301, 333, dtype=dtype, requires_grad=True)
    out = Dropout(p)(x)
    out.sum().backward()
    kept = out != 0
    assert torch.equal(out, kept * torch.tensor(1 / (1 - p), dtype=dtype))
    assert x.grad is not None and torch.equal(x.grad, out.detach())
    n = x.numel()
    assert abs(float(kept.double().mean()) - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5


def test_the_draw_follows_from_the_seed_and_evaluation_drops_nothing() -> None:
    dropout, x = Dropout(0.3), torch.randn(64, 65).bfloat16()
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(x))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert dropout.eval()(x) is x


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(4)
    kept = (Dropout(0.5)(torch.ones(4, 50_000, dtype=torch.bfloat16)) != 0).double().flatten()
    for distance in (1, 2, 3, 4):
        both = (kept[:-distance] * kept[distance:]).mean()
        assert abs(float(both) - 0.25) < 5 * (0.25 * 0.75 / len(kept)) ** 0.5


def test_as_many_are_dropped_as_of_independent_entries() -> None:
    """Binomial: of n entries n p on average, with variance n p (1 − p)."""
    torch.manual_seed(5)
    n, p, draws = 400, 0.2, 4_000
    counts = torch.stack([(Dropout(p)(torch.ones(n)) == 0).sum() for _ in range(draws)]).double()
    mean, variance = n * p, n * p * (1 - p)
    assert abs(float(counts.mean()) - mean) < 5 * (variance / draws) ** 0.5
    assert abs(float(counts.var()) - variance) < 5 * variance * (2 / draws) ** 0.5
