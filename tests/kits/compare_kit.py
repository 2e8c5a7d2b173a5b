"""Answers drawn at random, with the difference between arms known, and experiments in tables that have them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moslora.compare.compared_run import ComparedRun
from moslora.compare.index import ArmCard, Card, ExperimentIndex
from moslora.compare.tables import FinishedRun, write_tables
from moslora.recipe import load_recipe
from moslora.runs.answers import TaskAnswers
from moslora.runs.conditions import Conditions, Weights
from moslora.runs.evaluation import Evaluation

ADAPTED = Weights("float32", "cpu", batch_tokens=2048, block_size=128, base="small", fingerprint="f00d", adapter="abc")
CONDITIONS = Conditions("cloze", "cloze", 512, {}, ADAPTED)
SIZES = {"boolq": 60, "siqa": 40, "obqa": 50}
TEXTS = "passages"  # which are none of the experiments' own questions
WIDE = dict.fromkeys(("boolq", "siqa", "obqa"), 400)


def drawn(
    seed: int,
    *,
    gain: float = 0.0,
    sizes: Mapping[str, int] = SIZES,
    conditions: Conditions = CONDITIONS,
    **adapter: Any,
) -> ComparedRun:
    """A run: questions as hard as in every other one, answers by its seed and adapter, right ones more by ``gain``."""
    hard = np.random.default_rng(0)
    draw = np.random.default_rng([seed, *str(adapter).encode()])
    tasks = {}
    for task, n in sizes.items():
        difficulty = hard.uniform(0.2, 0.8, n)
        gold = hard.integers(0, 3, n)
        right = draw.uniform(size=n) < difficulty + gain
        probability = difficulty + gain + 0.05 * draw.standard_normal(n)
        log_probability = np.log(probability.clip(0.01, 0.99)).round(6)
        ids = sorted(f"{task}/test/{row}" for row in range(n))
        tasks[task] = TaskAnswers(
            tuple(ids),
            tuple(gold.tolist()),
            {"accuracy": tuple(right.astype(float).tolist()), "log_probability": tuple(log_probability.tolist())},
        )
    facts = {"data.rows": "100", "trained_rows": "100", "steps": "50", f"rows.{seed}": f"rows of {seed}"}
    path = Path(f"run-{seed}")
    return ComparedRun(Evaluation(path, conditions, tasks), path, name=f"run-{seed}", seed=seed, training_facts=facts)


def with_evaluation(run: ComparedRun, **changes: Any) -> ComparedRun:
    """The run with another evaluation in these fields."""
    return replace(run, evaluation=replace(run.evaluation, **changes))


def with_tasks(run: ComparedRun, tasks: Mapping[str, TaskAnswers]) -> ComparedRun:
    """The run with these answers instead of its own."""
    return with_evaluation(run, tasks=tasks)


def asked_as(run: ComparedRun, **conditions: Any) -> ComparedRun:
    """The run as if it had been asked under these conditions."""
    assert run.evaluation.conditions is not None
    return with_evaluation(run, conditions=replace(run.evaluation.conditions, **conditions))


def answered_as(run: ComparedRun, **weights: Any) -> ComparedRun:
    """The run as if its model had been this one."""
    return asked_as(run, answered_by=replace(ADAPTED, **weights))


def base(**changes: Any) -> ComparedRun:
    """The model before training."""
    return replace(answered_as(drawn(99, **changes), adapter=None), training_facts={}, seed=None)


def row(arm: str, run: ComparedRun, *, rate: float = 1e-3, **facts: Any) -> FinishedRun:
    """The row of a scored run."""
    return FinishedRun(arm, rate, run.seed, "scored", evaluation=run.evaluation, **facts)


def base_row(run: ComparedRun) -> FinishedRun:
    return FinishedRun(None, None, None, "base", evaluation=run.evaluation)


def write_experiment(folder: Path, rows: Sequence[FinishedRun], *, contrasts: Sequence[tuple[str, str]]) -> Path:
    """Writes an experiment in tables, asked as its first run."""
    folder.mkdir(exist_ok=True)
    write_tables(folder, rows)
    card = ArmCard(load_recipe("smollm2-135m").to_yaml(), ({"code": "c0de"},))
    arms = dict.fromkeys((row.arm for row in rows if row.arm is not None), card)
    asked = next(row.evaluation.conditions for row in rows if row.evaluation is not None)
    first, *others = contrasts
    index = ExperimentIndex("drawn", first, "log_probability", (), tuple(others), card=Card(arms, asked))
    index.write(folder)
    return folder


def with_texts(run: ComparedRun, nats: float) -> ComparedRun:
    """With twenty texts, of which every byte costs the model ``nats``, some more and some less."""
    ids = tuple(f"{TEXTS}/test/{number:02}" for number in range(20))
    column = tuple((nats + 0.1 * np.sin(np.arange(20))).tolist())
    texts = TaskAnswers(ids, (), {"nats_per_byte": column})
    return with_tasks(run, {**run.tasks, TEXTS: texts})


def drawn_arms(gains: Mapping[str, float], *, seeds: int) -> list[FinishedRun]:
    """The rows of arms that gain so much, under the first seeds; each was asked 256 of the WIDE questions."""
    rows = []
    for arm, gain in gains.items():
        for seed in range(seeds):
            run = drawn(seed, gain=gain, sizes=WIDE, arm=arm)
            rows.append(row(arm, replace(run, evaluation=run.evaluation.restricted_to(WIDE, 256))))
    return rows
