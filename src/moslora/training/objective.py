"""The training objective."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from moslora.adapters import adapter_penalty, describe_batch
from moslora.data.encode import IGNORE_INDEX
from moslora.model import final_hidden


class LabelLoss(nn.Module):
    """Σ −log p(label | what came before), over the labelled positions only; a sum, not a mean. And what the method
    itself adds to the loss.

    The output layer runs only where there is a label: with the loss on the answers that is one position in ten,
    and the logits of a 128,256-token vocabulary are the largest tensors of a step.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, tasks: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The label loss and the penalty of the adapters (zero where there is none), float32 scalars.

        With no label in the batch the loss is zero and still depends on every parameter, so that a process
        without rows takes part in the gradient reduction.

        Args:
            input_ids: int64 ``(batch, length)``, padded on the right.
            attention_mask: likewise; 1 where there is a token.
            labels: likewise.
            tasks: int64 ``(batch,)``, each row's task, for the mixers that route by it.
        """
        describe_batch(self.model, tokens=attention_mask.bool(), tasks=tasks)
        hidden = final_hidden(self.model, input_ids, attention_mask)  # (batch, length, hidden)
        targets = labels[:, 1:]
        labelled = targets != IGNORE_INDEX
        penalty = adapter_penalty(self.model) if self.training else None
        if penalty is None:
            penalty = torch.zeros((), device=hidden.device)
        if not labelled.any():
            return (hidden.float() * 0).sum(), penalty
        logits = self.model.get_output_embeddings()(hidden[:, :-1][labelled])  # (labelled, vocabulary)
        loss: Tensor = F.cross_entropy(logits.float(), targets[labelled], reduction="sum")
        return loss, penalty


@torch.inference_mode()
def mean_loss(objective: nn.Module, batches: list[dict[str, Tensor]], *, labels: int) -> float:
    """Mean loss per label token over ``batches`` (their label tokens number ``labels``), dropout off."""
    was_training = objective.training
    objective.eval()
    total = sum(float(objective(**batch)[0]) for batch in batches)
    objective.train(was_training)
    return total / labels
