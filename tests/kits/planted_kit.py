"""Validation losses by step, so that no arithmetic decides which is the best. As a program, `moslora` with them."""

from collections.abc import Callable

import pytest

from moslora.cli import main
from moslora.training.tracking import Tracker
from moslora.training.train import Training
from moslora.training.validation import Validator

BEST_STEP = 3
VALIDATE = Training.validate


def loss_at(step: int) -> float:
    """Falls to the best step, and rises behind it."""
    return 2 + abs(step - BEST_STEP) / 8


def plant(patch: pytest.MonkeyPatch, loss: Callable[[int], float] = loss_at) -> None:
    def validate(training: Training, tracker: Tracker, step: int) -> bool:
        with pytest.MonkeyPatch.context() as here:
            here.setattr(Validator, "loss", lambda validator, parts: loss(step))
            return VALIDATE(training, tracker, step)

    patch.setattr(Training, "validate", validate)


if __name__ == "__main__":
    plant(pytest.MonkeyPatch())
    main()
