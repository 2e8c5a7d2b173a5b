"""The loss of training."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moslora.adapters import adapter_penalty, describe_batch
from moslora.data.steps import MicroBatch
from moslora.kernels.attention import as_rows, use_rows
from moslora.kernels.loss import sum_of_losses


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
        return sum_of_losses(hidden[0].index_select(0, batch.predicted_from), weight, batch.labels), penalty
