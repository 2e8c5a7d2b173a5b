"""Page of a report: its numbers are collected, its figures drawn, and the template ``page.html`` filled."""

import os
from collections.abc import Sequence
from pathlib import Path

from jinja2 import StrictUndefined, Template

from moslora.evaluation.display import heading, remarks, table
from moslora.report import PAGE, figures
from moslora.report.canvas import VARIABLES, Canvas
from moslora.report.comparisons import against_bases, against_each_other
from moslora.report.runs import ReportedRun
from moslora.report.tables import differing, overview
from moslora.runs.results import results_of


def page(runs: Sequence[ReportedRun], paths: Sequence[Path], *, folder: Path) -> str:
    """Return the text of the page, and write its figures as PNG.

    Args:
        runs: runs at ``paths``.
        paths: as the user named them.
        folder: folder of the PNGs.
    """
    arms = list(dict.fromkeys(run.arm for run in runs))
    results = {}
    for run in runs:
        for name, answered in ((run.name, run.tuned and run.tuned.evaluation), (run.base_name, run.base)):
            if answered and answered.conditions and name not in results:
                results[name] = results_of(answered)
    notes = [f"{run.name}: {run.left_out}" for run in runs if run.left_out]
    for name, result in results.items():
        notes += [f"{name}: {remark}" for remark in remarks(result)]
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
        overview=overview(runs, results),
        answers=answers,
        comparisons=sorted([*each_other, *bases], key=lambda comparison: not comparison.contrasts),
        curves=curves,
        strengths=strengths,
        mixers=mixers,
        scores={f"{name}: {heading(result)}": table(result) for name, result in results.items()},
        differing=differing(runs),
    )
