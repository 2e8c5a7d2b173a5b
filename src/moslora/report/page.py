"""The page of a report: what it says is collected, its figures are drawn, and ``page.html`` is filled."""

import os
from collections.abc import Sequence
from pathlib import Path

from jinja2 import StrictUndefined, Template

from moslora.evaluation.display import heading, remarks, table
from moslora.report import PAGE, figures
from moslora.report.canvas import VARIABLES, Canvas
from moslora.report.comparisons import against_bases, against_each_other
from moslora.report.runs import ReportedRun
from moslora.report.tables import differing, glance
from moslora.runs.results import results_of


def page(runs: Sequence[ReportedRun], paths: Sequence[Path], *, folder: Path) -> str:
    """The text of the page on the ``runs`` that were found at ``paths``; the PNGs are written into ``folder``."""
    arms = list(dict.fromkeys(run.arm for run in runs))
    results = {}
    for run in runs:
        for name, answered in ((run.name, run.tuned and run.tuned.evaluation), (run.base_name, run.base)):
            if answered and answered.conditions and name not in results:
                results[name] = results_of(answered)
    notes = [f"{run.name}: {run.left_out}" for run in runs if run.left_out]
    for name, found in results.items():
        notes += [f"{name}: {remark}" for remark in remarks(found)]
    each_other = against_each_other(runs, paths)
    bases = against_bases(runs)
    canvas = Canvas(folder, arms)
    curves = figures.of_training(canvas, runs)
    answers = figures.of_answers(canvas, runs, bases, each_other)
    strengths = figures.of_strengths(canvas, runs)
    mixers = figures.of_mixers(canvas, runs)
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    template = Template(text, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return template.render(
        title=", ".join(arms),
        files=[PAGE, *sorted(os.listdir(folder))],
        arms={arm: VARIABLES[canvas.style(arm).color] for arm in arms},
        remarks=notes,
        glance=glance(runs, results),
        answers=answers,
        comparisons=sorted([*each_other, *bases], key=lambda one: not one.contrasts),
        curves=curves,
        strengths=strengths,
        mixers=mixers,
        scores={f"{name}: {heading(found)}": table(found) for name, found in results.items()},
        differing=differing(runs),
    )
