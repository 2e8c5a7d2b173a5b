"""The training objective."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from moslora.data.encode import IGNORE_INDEX
from moslora.model import final_hidden


class LabelLoss(nn.Module):
    """Σ −log p(label | what came before), over the labelled positions only; a sum, not a mean.

    The output layer runs only where there is a label: with the loss on the answers that is one position in ten,
    and the logits of a 128,256-token vocabulary are the largest tensors of a step.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """All arguments int64 ``(batch, length)``, padded on the right; returns a float32 scalar.

        With no label in the batch the result is zero and still depends on every parameter, so that a process
        without rows takes part in the gradient reduction.
        """
        hidden = final_hidden(self.model, input_ids, attention_mask)  # (batch, length, hidden)
        targets = labels[:, 1:]
        labelled = targets != IGNORE_INDEX
        if not labelled.any():
            return (hidden.float() * 0).sum()
        logits = self.model.get_output_embeddings()(hidden[:, :-1][labelled])  # (labelled, vocabulary)
        loss: Tensor = F.cross_entropy(logits.float(), targets[labelled], reduction="sum")
        return loss


@torch.inference_mode()
def mean_loss(objective: nn.Module, batches: list[dict[str, Tensor]], *, labels: int) -> float:
    """Mean loss per label token over ``batches`` (their label tokens number ``labels``), dropout off."""
    was_training = objective.training
    objective.eval()
    total = sum(float(objective(**batch)) for batch in batches)
    objective.train(was_training)
    return total / labels
