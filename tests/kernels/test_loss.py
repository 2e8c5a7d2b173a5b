"""Loss and log-probabilities against float64 over the same logits, of which the target's own is not rounded."""

import pytest
import torch

from moslora.kernels import loss, vocabulary
from moslora.kernels.loss import ChunkedLoss, log_probabilities

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
VOCABULARY = 120


def certain(dtype):
    """States and output layer of a model that is nearly certain of the labels: 1 − p is from 0.5 to 1e-9."""
    torch.manual_seed(0)
    weight = torch.randn(VOCABULARY, 32).to(dtype)
    labels = torch.randint(VOCABULARY, (400,))
    sizes = torch.linspace(0.1, 0.9, 400)[:, None]
    return (sizes * weight[labels]).to(dtype), weight, labels


def softmax(hidden, weight, targets):
    """p over the vocabulary in float64."""
    logits = (hidden @ weight.T).double()
    exact = (hidden.double() * weight.double()[targets]).sum(1, keepdim=True)
    return logits.scatter(1, targets[:, None], exact).log_softmax(1).exp()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("piece", [(1_000, 1_000), (7, 30)])
def test_no_log_probability_is_above_zero(monkeypatch, piece, dtype):
    monkeypatch.setattr(vocabulary, "PIECE_ON_CPU", piece)
    hidden, weight, labels = certain(dtype)
    places = [*range(400)] * 2
    targets = torch.cat([labels, labels.flip(0)])  # likely and unlikely ones after the same tokens
    given = log_probabilities(hidden, weight, places, targets.tolist())
    assert given.max() <= 0
    expected = softmax(hidden[places], weight, targets).gather(1, targets[:, None])[:, 0].log()
    torch.testing.assert_close(given.double(), expected, rtol=1e-4, atol=5e-3 if dtype.itemsize == 2 else 2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("piece", [(1_000, 1_000), (7, 30)])
@pytest.mark.parametrize("compute", [loss._by_pieces, vocabulary.label_loss])
def test_no_loss_is_below_zero(monkeypatch, compute, piece, dtype):
    """Each label's by itself, on the way of a CPU and that of a GPU; the gradient is (p − e_y) W with the same p."""
    monkeypatch.setattr(vocabulary, "PIECE_ON_CPU", piece)
    monkeypatch.setattr(loss, "_by_pieces", compute)
    hidden, weight, labels = certain(dtype)
    hidden.requires_grad_()
    losses = torch.stack(
        [ChunkedLoss.apply(state, weight, label) for state, label in zip(hidden.split(1), labels.split(1), strict=True)]
    )
    assert losses.min() >= 0
    together = ChunkedLoss.apply(hidden, weight, labels)
    p = softmax(hidden.detach(), weight, labels)
    expected = -p.gather(1, labels[:, None]).log().sum()
    assert together.item() == pytest.approx(expected.item(), rel=2e-3)
    (gradient,) = torch.autograd.grad(together, hidden)
    p_minus_one = p - torch.nn.functional.one_hot(labels, VOCABULARY)
    of_others = -p_minus_one.gather(1, labels[:, None])[:, 0]
    right = p_minus_one @ weight.double()
    error = (gradient.double() - right).norm(dim=1) / right.norm(dim=1)
    assert error[of_others > 1e-3].max() < 0.01
