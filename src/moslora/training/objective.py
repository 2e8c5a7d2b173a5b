"""The loss of training."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moslora.adapters import adapter_penalty, describe_batch, layers_of
from moslora.base.engines import engine_of
from moslora.data.steps import MicroBatch


class LabelLoss(nn.Module):
    """Training loss Σ −log p(label | tokens before it) over the labels (a sum, not a mean), and the method's own
    penalty.

    The output layer runs only where there is a label. With the loss on the answers that is one position in ten.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.adapters = layers_of(model)  # a list, so that they are no modules of this one

    def forward(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Compute the label loss and the adapters' penalty (or zero), float32 scalars.

        Without a label in the batch the loss is zero, but still depends on every parameter, so that a process without
        rows takes part in the gradient reduction.
        """
        describe_batch(self.adapters, tokens=batch.real, tasks=batch.tasks)
        loss = engine_of(self.model).loss(batch, batch.predicted_from, batch.places, batch.labels)
        penalty = adapter_penalty(self.adapters) if self.training else None
        if penalty is None:
            penalty = torch.zeros((), device=loss.device)
        return loss, penalty
