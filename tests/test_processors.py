"""Other processors, as far as this one can take their place: the libraries are told to use fewer instructions.

`make test-processors` runs the whole suite so.
"""

import os
from pathlib import Path

import pytest
import torch

from moslora.evaluation import load_results
from moslora.evaluation.target import evaluate_target, open_target
from moslora.recipe import load_recipe
from moslora.training import train_recipe
from training_kit import adapter, moslora

CHANGES = ("training.max_steps=6", "adapter.dropout=0", "training.warmup_steps=0")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def here(request: pytest.FixtureRequest, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and its scores with all that this processor has; with several tokens in a micro-batch, as in real runs."""
    out = tmp_path_factory.mktemp("here") / request.param
    changes = (*CHANGES, f"model.dtype={request.param}", "training.micro_batch_tokens=2000")
    train_recipe(load_recipe(world / "recipe.yaml", changes), out=out)
    evaluate_target(open_target(str(out)), protocol="cloze")
    return out


@pytest.mark.parametrize(
    ("variable", "value"),
    [("ONEDNN_MAX_CPU_ISA", "AVX2"), ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE"), ("ATEN_CPU_CAPABILITY", "default")],
)
def test_it_trains_scores_and_merges_and_gives_the_same(here: Path, tmp_path: Path, variable: str, value: str) -> None:
    (tmp_path / "recipe.yaml").write_bytes((here / "recipe.yaml").read_bytes())
    there = tmp_path / "run"
    for command in (
        ("train", tmp_path / "recipe.yaml", "--out", there),
        ("eval", there, "--protocol", "cloze"),
        ("merge", there),
    ):
        process = moslora(*command, env=os.environ | {variable: value})
        said, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    rough = here.name == "bfloat16"
    for name, value_here in adapter(here).items():
        torch.testing.assert_close(adapter(there)[name], value_here, rtol=0.05, atol=0.02 if rough else 1e-4)
    one, other = (load_results(next(run.glob("eval/*"))).macro.log_probability for run in (here, there))
    assert one == pytest.approx(other, abs=0.02 if rough else 1e-4)
    assert "merged against adapter model" in said
