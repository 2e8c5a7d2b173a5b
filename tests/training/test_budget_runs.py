"""Whole runs with a rank budget. They resume: test_resume.py."""

import shutil
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from changes_kit import edit_tensors
from message_kit import in_order
from methods_kit import BUDGET
from moslora.errors import MosloraError, UsageError
from moslora.recipe import Recipe
from moslora.training import loop, train_recipe
from moslora.training.budget import RankBudget, budget_at
from training_kit import losses_logged, sign

MakeRecipe = Callable[..., Recipe]


def kept(folder):
    weights = load_file(folder / "adapter.safetensors")
    return [(value != 0).tolist() for key, value in sorted(weights.items()) if key.endswith("mixer.weight")]


def test_a_run_ends_with_the_target_and_logs_its_way(with_budget):
    straight = with_budget.out
    counts = [sum(map(sum, kept(straight / "checkpoints" / f"step-{step}"))) for step in range(1, 11)]
    plan = {"first": 24, "target": 12, "warmup": 4, "final": 2, "total": 10}
    assert counts[1:] == [budget_at(step, **plan) for step in range(2, 11)] == [24, 24, 24, 17, 13, 12, 12, 12, 12]
    assert counts[0] == 0, "the first update has the learning rate zero"
    assert kept(straight / "checkpoints" / "step-8") == kept(straight / "adapter")
    rows = losses_logged(straight)
    assert [row["rank_budget"] for row in rows] == [24, *counts[1:]]
    assert all(0 < row["penalty"] < 1 for row in rows)


def test_a_run_is_not_resumed_without_its_scores(with_budget, recipe, tmp_path):
    run = shutil.copytree(with_budget.out, tmp_path / "run")
    shutil.rmtree(run / "adapter")
    newest = run / "checkpoints" / "step-10"
    scores = newest / "rank_budget.safetensors"
    first = min(load_file(scores))
    edit_tensors(scores, lambda state: state.pop(first))
    sign(newest)
    with pytest.raises(MosloraError, match=in_order("rank_budget.safetensors: ", first, "missing")):
        train_recipe(recipe(*BUDGET), out=run, resuming=True)


def test_too_short_run_is_refused_before_its_folder(recipe, tmp_path):
    short = (*BUDGET, "training.max_steps=1", "training.warmup_steps=0")
    with pytest.raises(UsageError, match=in_order("training.rank_budget", "0 steps", "1 steps")):
        train_recipe(recipe(*short), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def poison(monkeypatch, steps, seen):
    """Make the gradients of these steps infinite or NaN, and record the scores after every update."""
    accumulate, update = loop.accumulate, RankBudget.prune
    calls = {"step": 0}

    def poisoned(parts, *arguments, **options):
        calls["step"] += 1
        losses = accumulate(parts, *arguments, **options)
        if calls["step"] in steps:
            for p in parts.optimizer.param_groups[0]["params"]:
                p.grad.fill_(torch.inf)
            losses.fill_(torch.nan)
        return losses

    def watched(self, step, *, skipped):
        metrics = update(self, step, skipped=skipped)
        seen.append(self.scores().clone())
        return metrics

    monkeypatch.setattr(loop, "accumulate", poisoned)
    monkeypatch.setattr(RankBudget, "prune", watched)


def test_skipped_steps_keep_the_scores(recipe, tmp_path, monkeypatch):
    """Skipped are a step of the descent, and the whole final phase with the step of the choice."""
    seen = []
    poison(monkeypatch, {6, 8, 9, 10}, seen)
    train_recipe(recipe(*BUDGET, "model.dtype=float16"), out=tmp_path / "run")
    assert all(scores.isfinite().all() for scores in seen) and len(seen) == 10
    same = [after.equal(before) for before, after in pairwise(seen)]
    assert [number for number, rests in enumerate(same, start=2) if rests] == [6, 8, 9, 10]
    assert sum(map(sum, kept(tmp_path / "run" / "adapter"))) == 12
    rows = losses_logged(tmp_path / "run")
    assert [row["rank_budget"] for row in rows][4:] == [17, 13, 12, 12, 12, 12]
    assert rows[5]["penalty"] is None and rows[5]["loss"] is None
