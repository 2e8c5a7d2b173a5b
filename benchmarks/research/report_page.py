"""The picture of a report in docs/comparing.md: the beginning of the page of `moslora report` about two methods.

The page itself, as XHTML within an SVG: its texts are texts, and its colours follow the reader's light or dark scheme.
The runs are invented, since a picture must be the same on every machine.
"""

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from moslora.evaluation.journal import Journal
from moslora.recipe import load_recipe
from moslora.report import write_report
from moslora.runs.conditions import Conditions, TaskRecord, Weights
from moslora.runs.predictions import Prediction

STEPS = 400
QUESTIONS = {"boolq": 300, "piqa": 300, "obqa": 200}
TEXTS = {"passages": 60}

ARMS = {"lora": (0.6, 0.02), "moslora": (0.75, 0.05)}
"""Method -> what it adds to the right option's score, and to the nats per byte of other texts."""

BASE = Weights("bfloat16", "cpu", batch_tokens=8192, block_size=64, base="smollm2-135m", fingerprint="0" * 16)

CONDITIONS = Conditions("choice", "label", 2048, dict.fromkeys((*QUESTIONS, *TEXTS), "0" * 64), BASE)

WIDTH = 1160
HEIGHT = 1090
"""Pixels that the beginning takes."""


def pictures() -> dict[str, str]:
    """Path in docs/ -> SVG."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [invented_run(Path(folder) / name, *change) for name, change in ARMS.items()]
        page = write_report(runs, out=Path(folder) / "report")
        text = page.read_text(encoding="utf-8")
    return {"report.svg": beginning(text)}


def invented_run(run: Path, gain: float, forgotten: float) -> Path:
    """A run that was trained and scored, and whose base was."""
    overrides = [f"extends=methods/{run.name}", f"training.max_steps={STEPS}"]
    recipe = load_recipe("smollm2-135m", overrides)
    run.mkdir()
    (run / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    card = {
        "steps": STEPS,
        "trained_rows": 3000,
        "data": {"sha256": "0" * 64},
    }
    (run / "run.json").write_text(json.dumps(card), encoding="utf-8")
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _metrics(gain)), encoding="utf-8")
    for suffix, adapter, change in (("", run.name, (gain, forgotten)), ("-base", None, (0.0, 0.0))):
        conditions = replace(CONDITIONS, answered_by=replace(BASE, adapter=adapter))
        journal = Journal(run / "eval" / f"choice-label-bfloat16{suffix}", conditions)
        journal.record({task: TaskRecord(asked=n) for task, n in {**QUESTIONS, **TEXTS}.items()})
        journal.keep(list(_answers(run.name, *change)))
        journal.finish()
    return run


def _metrics(gain: float) -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    rows = []
    for step in range(0, STEPS + 1, 10):
        loss = 1.1 - 0.8 * gain * (1 - np.exp(-step / 90))
        row = {"step": step, "seconds": 2.7 * step, "peak_memory_gb": 1.9}
        rows.append({**row, "loss": loss + 0.03 * draw.standard_normal(), "grad_norm": 1.0})
        if step % 100 == 0:
            rows.append({"step": step, "validation_loss": loss + 0.05})
    return rows


def _answers(method: str, gain: float, forgotten: float) -> Iterator[Prediction]:
    """Questions are as hard for each model, what is learned is its own."""
    hard = np.random.default_rng(1)
    learned = np.random.default_rng([2, *method.encode()])
    for task, n in QUESTIONS.items():
        for number in range(n):
            gold = int(hard.integers(0, 2))
            scores = hard.standard_normal(2)
            scores[gold] += 0.1 + gain * learned.uniform(0, 2)
            log_p = (scores - np.logaddexp(*scores)).round(6).tolist()
            yield Prediction(f"{task}/test/{number}", task, gold, int(np.argmax(log_p)), tuple(log_p))
    for task, n in TEXTS.items():
        for number in range(n):
            nats = 100 * (0.9 + 0.1 * hard.uniform() + forgotten * learned.uniform())
            yield Prediction(f"{task}/test/{number}", task, 0, 0, (-round(nats, 4),), bytes=100)


def beginning(page: str) -> str:
    """The page up to what is folded, as an SVG.

    Raises:
        ParseError: what was cut out is no XML.
    """
    style = page.partition("<style>")[2].partition("@media (max-width")[0]  # no layout for phones: the size is fixed
    style = re.sub(r"^svg\b", "main svg", style, flags=re.M)  # not the picture itself
    main = page.partition("<main>")[2].partition("<section>\n<details>")[0]
    svg = f"""\
<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{WIDTH}" height="{HEIGHT}"
  viewBox="0 0 {WIDTH} {HEIGHT}">
<style>
{style.strip()}
</style>
<foreignObject width="100%" height="100%">
<body xmlns="http://www.w3.org/1999/xhtml" style="height: {HEIGHT}px; overflow: hidden">
<main>
{main.strip()}
</main>
</body>
</foreignObject>
</svg>
"""
    svg = svg.replace("<svg role=", '<svg xmlns="http://www.w3.org/2000/svg" role=')
    ElementTree.fromstring(svg)
    return svg
