"""Training: the loop, and what a run needs around it."""

from moslora.training.run import train_recipe

__all__ = ["train_recipe"]
