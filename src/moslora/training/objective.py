"""The loss of training."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moslora.adapters import adapter_penalty, describe_batch
from moslora.data.steps import MicroBatch
from moslora.kernels.attention import as_rows, use_rows
from moslora.kernels.linear import product
from moslora.kernels.vocabulary import label_loss, pieces, sizes


class LabelLoss(nn.Module):
    """Σ −log p(label | tokens before it) over the labels (a sum, not a mean), and the method's own penalty.

    The output layer runs only where there is a label: with the loss on the answers that is one position in ten.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        use_rows(model)
        self.model = model

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """The label loss and the adapters' penalty (or zero), float32 scalars.

        Without a label in the batch the loss is zero, but still depends on every parameter, so that a process without
        rows takes part in the gradient reduction.
        """
        describe_batch(self.model, tokens=batch.rows.real, tasks=batch.tasks)
        decoder = self.model.get_decoder()
        output = decoder(input_ids=batch.input_ids, use_cache=False, **as_rows(batch.rows))
        hidden: Tensor = output.last_hidden_state  # (1, T, H)
        penalty = adapter_penalty(self.model) if self.training else None
        if penalty is None:
            penalty = torch.zeros((), device=hidden.device)
        if not len(batch.labels):
            return (hidden.float() * 0).sum(), penalty
        weight = self.model.get_output_embeddings().weight
        return _ChunkedLoss.apply(hidden[0].index_select(0, batch.predicted_from), weight, batch.labels), penalty


class _ChunkedLoss(torch.autograd.Function):
    """Σ_i (log Σ exp z_i − z_i[y_i]) with z_i = h_i Wᵀ, some positions at a time and each with its gradient, so that
    their logits can be freed before the next. W is frozen."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        """``hidden`` ``(N, H)``, ``weight`` ``(V, H)``, ``labels`` int64 ``(N,)``; a float32 scalar."""
        ctx.gradient = torch.empty_like(hidden)
        positions, _ = sizes(len(hidden), len(weight), weight.device)
        compute = label_loss
        if weight.device.type == "cpu":
            compute = _by_pieces
        losses = []
        chunks = zip(hidden.split(positions), labels.split(positions), ctx.gradient.split(positions), strict=True)
        for states, of_chunk, gradient in chunks:
            if not ctx.needs_input_grad[0]:
                gradient = None
            losses.append(compute(states, weight, of_chunk, gradient))
        return sum(losses[1:], start=losses[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.gradient * gradient.to(ctx.gradient.dtype), None, None


def _by_pieces(states: Tensor, weight: Tensor, labels: Tensor, gradient: Tensor | None) -> Tensor:
    """The same as `label_loss`, a piece of the vocabulary at a time.

    The gradient is Σ_tokens p W − W[y]. With q the softmax within a piece and s the piece's share of the whole, it is
    Σ_pieces s (q − e_y) W − (1 − s_y) W[y]: a label's 1 is subtracted within its piece.
    """
    _, tokens = sizes(len(states), len(weight), weight.device)
    wanted = weight.index_select(0, labels)
    sums = []  # of each piece: log Σ exp z
    means = []  # of each piece: the mean of W under p
    for piece in pieces(states, weight):
        sums.append(piece.log_sum)
        if gradient is not None:
            means.append(product(piece.p_minus_one_hot(labels[:, None]).to(states.dtype), piece.weight.T))
    log_sums = torch.cat(sums, 1)
    total = log_sums.logsumexp(1, keepdim=True)
    if gradient is not None:
        gradient.zero_()
        shares = (log_sums - total).exp()
        for mean, share in zip(means, shares.to(gradient.dtype).split(1, 1), strict=True):
            gradient.addcmul_(mean, share)
        others = shares.scatter(1, labels[:, None] // tokens, 0).sum(1, keepdim=True)  # 1 − s_y
        gradient.addcmul_(wanted, others.to(gradient.dtype), value=-1)
    return total.sum() - torch.linalg.vecdot(states.to(total.dtype), wanted.to(total.dtype)).sum()
