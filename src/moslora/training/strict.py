"""What a checkpoint keeps beside the weights has to be all that a run needs, and nothing else."""

from collections.abc import Mapping

from torch import Tensor

from moslora.errors import some


def refuse_misfit(saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Compares keys and shapes.

    Raises:
        ValueError: tensors are missing, nobody's, or of another shape; all three are told.
    """
    common = wanted.keys() & saved.keys()
    shapes = (
        f"{key} {tuple(saved[key].shape)}, here {tuple(wanted[key].shape)}"
        for key in common
        if saved[key].shape != wanted[key].shape
    )
    faults = {
        "missing": wanted.keys() - common,
        "of nothing in this run": saved.keys() - common,
        "of another shape": shapes,
    }
    if lines := [f"{what}: {named}" for what, keys in faults.items() if (named := some(sorted(keys)))]:
        raise ValueError("; ".join(lines))
