"""Runs on disk: their folders, manifests, evaluations and scores. What trains, asks or compares models is elsewhere."""

from pathlib import Path

RUNS = Path("runs")
"""Default folder of runs, each named after its recipe, and of evaluations of models without a run."""
