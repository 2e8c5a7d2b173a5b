"""The loss of training."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moslora.adapters import adapter_penalty, describe_batch
from moslora.base.attention import as_rows, use_rows
from moslora.data.steps import MicroBatch

LOGITS_AT_ONCE = 2**24
"""Logits held at a time: 32 MB in bfloat16. All of a step with LLaMA-3's vocabulary would be gigabytes."""


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
        describe_batch(self.model, tasks=batch.tasks)
        decoder = self.model.get_decoder()
        output = decoder(input_ids=batch.input_ids, use_cache=False, **as_rows(batch.rows))
        hidden: Tensor = output.last_hidden_state  # (1, T, H)
        penalty = adapter_penalty(self.model) if self.training else None
        if penalty is None:
            penalty = torch.zeros((), device=hidden.device)
        if not len(batch.labels):
            return (hidden.float() * 0).sum(), penalty
        weight = self.model.get_output_embeddings().weight
        loss: Tensor = _ChunkedLoss.apply(hidden[0].index_select(0, batch.predicted_from), weight, batch.labels)
        return loss, penalty


class _ChunkedLoss(torch.autograd.Function):
    """−Σ_i log softmax(h_i Wᵀ)[y_i], a chunk at a time. The gradient (softmax(h_i Wᵀ) − onehot(y_i)) W is computed with
    each chunk, so that its logits can be freed before the next. W is frozen.

    On a CPU the softmax is in the logits' dtype, with float32 inside: a float32 copy would take eight times as long.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        """``hidden`` ``(N, H)``, ``weight`` ``(V, H)``, ``labels`` int64 ``(N,)``; a float32 scalar."""
        loss = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        step = max(1, LOGITS_AT_ONCE // len(weight))
        for begin in range(0, len(labels), step):
            part, targets = hidden[begin : begin + step], labels[begin : begin + step]
            logits = part @ weight.T
            log_p = (logits if logits.device.type == "cpu" else logits.to(loss.dtype)).log_softmax(-1)
            loss -= log_p.gather(1, targets[:, None]).to(loss.dtype).sum()
            if gradient is not None:
                p = log_p.exp_().to(hidden.dtype)
                wanted = weight.index_select(0, targets)
                torch.addmm(wanted, p, weight, beta=-1, out=gradient[begin : begin + step])
        ctx.gradient = gradient
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.gradient * gradient.to(ctx.gradient.dtype), None, None
