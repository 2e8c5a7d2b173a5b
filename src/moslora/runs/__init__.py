"""Runs on disk: finding them, their manifest, and the adapter folder that commands pass on."""

from pathlib import Path

RUNS = Path("runs")
"""Default folder of runs, each in a folder named after its recipe; also of the results of models without a run."""
