"""Training: the loop and the run around it."""

from moslora.training.train import train_recipe, train_run

__all__ = ["train_recipe", "train_run"]
