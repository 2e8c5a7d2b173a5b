"""What a run takes on the disk."""

from transformers import PreTrainedModel

from moslora.base.adapted import adapter_state
from moslora.recipe import TrainingSection

BYTES_OF_MOMENTS = 8
"""AdamW's two moments of a trained number, in float32."""


def disk_line(model: PreTrainedModel, training: TrainingSection) -> str:
    """The size of the result and of the checkpoints that are kept beside it: weights and AdamW's moments; with the best
    step as result, of each kept checkpoint also that of its best step, if it is another one."""
    adapter = sum(weight.numel() * weight.element_size() for weight in adapter_state(model).values())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    checkpoint = adapter + BYTES_OF_MOMENTS * trained
    kept = training.keep_checkpoints
    if training.result == "best":
        kept *= 2
    total = adapter + kept * checkpoint
    return (
        f"on the disk up to {_megabytes(total)} MB: {kept} checkpoints of {_megabytes(checkpoint)} MB, a result of"
        f" {_megabytes(adapter)}"
    )


def _megabytes(size: int) -> str:
    """With one digit after the point below 100 MB, otherwise with none."""
    if size < 1e8:
        return f"{size / 1e6:,.1f}"
    return f"{size / 1e6:,.0f}"
