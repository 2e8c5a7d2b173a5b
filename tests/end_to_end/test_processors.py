"""Other processors, as far as this one can take their place: the libraries are told to use fewer instructions.

`make test-processors` runs the whole suite so. As a program, ``RECIPE OUT``, this trains, scores and merges once.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evaluation_kit import read_results
from moslora.convert.merge import merge
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.recipe import load_recipe
from moslora.training import train_recipe
from training_kit import adapter, importing_tests

DTYPES = {"float32": 1e-4, "bfloat16": 0.02}
"""How far weights and mean log-probabilities may be apart after six steps."""

# Micro-batches of as many tokens as real ones: few are multiplied in another way.
CHANGES = ("training.max_steps=6", "adapter.dropout=0", "training.warmup_steps=0", "training.micro_batch_tokens=2000")


def train_score_merge(recipe, out):
    for dtype in DTYPES:
        run = out / dtype
        train_recipe(load_recipe(recipe, (*CHANGES, f"model.dtype={dtype}")), out=run)
        evaluate_target(open_target(str(run)), protocol="cloze")
        merge(run / "adapter", out=run / "merged")


@pytest.fixture(scope="module")
def here(world, tmp_path_factory):
    """With all that this processor has."""
    out = tmp_path_factory.mktemp("here")
    train_score_merge(world / "recipe.yaml", out)
    return out


@pytest.mark.slow
def test_it_trains_scores_and_merges_and_gives_the_same(here, world, tmp_path):
    """Torch's own attention packs bfloat16 where oneDNN may use AMX, and then fails without AVX-512 of its own: both
    have fewer."""
    command = [sys.executable, __file__, world / "recipe.yaml", tmp_path]
    fewer = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "default"}
    subprocess.run(command, env=importing_tests() | fewer, capture_output=True, check=True, timeout=240)
    for dtype, apart in DTYPES.items():
        runs = here / dtype, tmp_path / dtype
        one, other = map(adapter, runs)
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=0.05, atol=apart)
        scores = [read_results(next(run.glob("eval/*"))).macro.log_probability for run in runs]
        assert scores[0] == pytest.approx(scores[1], abs=apart)


if __name__ == "__main__":
    train_score_merge(*map(Path, sys.argv[1:]))
