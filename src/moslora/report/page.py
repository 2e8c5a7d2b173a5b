"""The page of a report, from its runs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from moslora.compare.comparison import Comparison, compare
from moslora.compare.conclusion import lines, tables
from moslora.errors import MosloraError
from moslora.evaluation.predictions import percent
from moslora.recipe.recipe import flat
from moslora.report import PAGE, figures, weights
from moslora.report.canvas import SERIES, Canvas
from moslora.report.learned import LearnedLayer
from moslora.report.questions import Changed, confusion, most_changed, texts
from moslora.report.runs import ReportedRun

CURVES = {
    "loss": "Training loss",
    "validation_loss": "Validation loss",
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_second": "Tokens per second",
}
MAPS = 6
"""Layers whose M is drawn."""

QUESTIONS = 8
"""Questions that gained most, and as many that lost most."""


@dataclass(frozen=True)
class Compared:
    """A comparison as the page shows it, or the reason why there is none."""

    title: str
    figure: Markup | None = None
    tables: Sequence[list[list[str]]] = ()
    lines: Sequence[str] = ()


def page(runs: Sequence[ReportedRun], paths: Sequence[Path], *, folder: Path, evaluation: str | None) -> str:
    """The text of the page about ``runs``, which were found at ``paths``; the PNGs are written into ``folder``."""
    arms = list(dict.fromkeys(run.arm for run in runs))
    canvas = Canvas(folder, arms)
    firsts = [next(run for run in runs if run.arm == arm) for arm in arms]
    gained, lost = _changed_questions(firsts[0])
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        title=", ".join(arms),
        arms={arm: f"c{number % len(SERIES)}" for number, arm in enumerate(arms)},
        glance=_glance(runs),
        remarks=_remarks(runs),
        curves=[figure for name, title in CURVES.items() if (figure := figures.curve(canvas, runs, name, title))],
        accuracy=figures.accuracy(canvas, runs),
        compared=list(_comparisons(canvas, runs, paths, evaluation)),
        confusions=list(_confusions(canvas, firsts)),
        maps={
            run.arm: weights.heat_maps(canvas, f"mixer-{run.name}", shown) for run in firsts if (shown := _some(run))
        },
        weights=list(_weights(canvas, firsts)),
        changed=[("gained", gained), ("lost", lost)] if gained or lost else [],
        first=firsts[0].name,
        differing=_differing(runs),
        cards={run.name: json.dumps(run.run.facts, indent=2, ensure_ascii=False) for run in runs},
        files=[PAGE, *sorted(path.name for path in folder.iterdir())],  # the last argument: the figures are drawn
    )


def _glance(runs: Sequence[ReportedRun]) -> list[list[str]]:
    """A row per run, header first."""
    rows = [["run", "method", "seed", "trained", "validation loss", "base", "tuned", "minutes", "peak GB"]]
    for run in runs:
        card, losses = run.run.facts, run.curve("validation_loss")[1]
        done = max((row["step"] for row in run.run.metrics), default=0)
        metric = run.tuned.results.settings.primary if run.tuned else ""
        seconds, memory = (run.curve(name)[1] for name in ("seconds", "peak_memory_gb"))
        rows.append([
            run.name,
            run.run.recipe.adapter.summary(),
            str(run.run.recipe.seed),
            f"{done:,} of {card.get('steps', 0):,} steps",
            f"{losses[-1]:.4f}" if losses else "–",
            percent(getattr(run.base.results.macro, metric)) if run.base and metric else "–",
            percent(getattr(run.tuned.results.macro, metric)) if run.tuned else "–",
            f"{seconds[-1] / 60:.1f}" if seconds else "–",
            f"{max(memory):.1f}" if memory else "–",
        ])  # fmt: skip
    return rows


def _remarks(runs: Sequence[ReportedRun]) -> list[str]:
    """What `moslora eval` says below its tables."""
    scored = {run.name: run.tuned for run in runs} | {"base": next((run.base for run in runs if run.base), None)}
    return [f"{name}: {line}" for name, one in scored.items() if one for line in one.results.remarks()]


def _comparisons(
    canvas: Canvas, runs: Sequence[ReportedRun], paths: Sequence[Path], evaluation: str | None
) -> Iterator[Compared]:
    """The arms against each other, if there are several, and all against the base."""
    base = next((run.base for run in runs if run.base), None)
    if len(canvas.arms) > 1:
        yield _compared(canvas, "differences", "Against each other", paths, evaluation)
    if base:
        with_base = paths if len(runs) == 1 else [base.folder, *paths]
        yield _compared(canvas, "differences-from-base", "Against the base", with_base, evaluation)


def _compared(canvas: Canvas, name: str, title: str, paths: Sequence[Path], evaluation: str | None) -> Compared:
    try:
        found: Comparison = compare(paths, evaluation=evaluation)
    except MosloraError as error:
        return Compared(title, lines=[f"Not compared: {line}" for line in str(error).splitlines()])
    contrasts = found.exploratory or ((found.main,) if found.main else ())
    against = f"difference from {contrasts[0].before}"
    figure = figures.differences(canvas, name, contrasts, against)
    return Compared(title, figure, tables(found), lines(found) if found.main else ())


def _confusions(canvas: Canvas, firsts: Sequence[ReportedRun]) -> Iterator[tuple[str, Markup]]:
    """A figure per task: the base, and the first run of every arm, at most four."""
    found = {}
    if base := next((run.base for run in firsts if run.base), None):
        found["base"] = confusion(base.predictions)
    found |= {run.arm: confusion(run.tuned.predictions) for run in firsts[:4] if run.tuned}
    for task in dict.fromkeys(task for counts in found.values() for task in counts):
        of_task = {name: counts[task] for name, counts in found.items() if task in counts}
        yield task, figures.confusions(canvas, task, of_task)


def _some(run: ReportedRun) -> list[LearnedLayer]:
    """Layers to draw M of: from the first to the last, of one kind after the other."""
    layers = [layer for layer in run.layers if layer.mixer is not None]
    kinds = list(dict.fromkeys(layer.kind for layer in layers))
    most = min(MAPS, len(layers))
    found = []
    for number in range(most):
        same = [layer for layer in layers if layer.kind == kinds[number % len(kinds)]]
        found.append(same[round(number * (len(same) - 1) / max(1, most - 1))])
    return list({layer.name: layer for layer in found}.values())


def _weights(canvas: Canvas, firsts: Sequence[ReportedRun]) -> Iterator[Markup]:
    runs = [run for run in firsts if run.layers]
    for figure in (
        weights.by_layer(canvas, "mixer-distance", runs, "distance", "M: distance from its start, ‖M − M₀‖ / ‖M₀‖"),
        weights.spectra(canvas, "mixer-spectrum", runs, "M: singular values", of_mixers=True),
        weights.by_layer(canvas, "delta-rank", runs, "effective_rank", "ΔW: effective rank"),
        weights.spectra(canvas, "delta-spectrum", runs, "ΔW: singular values", of_mixers=False),
    ):
        if figure:
            yield figure


def _changed_questions(run: ReportedRun) -> tuple[list[Changed], list[Changed]]:
    if not (run.tuned and run.base):
        return [], []
    before, after = run.base.predictions, run.tuned.predictions
    examples = texts(run.run.recipe.questions)
    return most_changed(before, after, examples, most=QUESTIONS)


def _differing(runs: Sequence[ReportedRun]) -> list[list[str]]:
    """The facts of the cards that are not the same in all runs, header first."""
    facts = [run.run.facts for run in runs]
    others = [{key: fact for key, fact in card.items() if key not in ("recipe", "results")} for card in facts]
    cards = [flat(card.get("recipe", {})) | flat(rest) for card, rest in zip(facts, others, strict=True)]
    keys = [key for key in dict.fromkeys(key for card in cards for key in card) if len({*_texts(cards, key)}) > 1]
    return [["", *(run.name for run in runs)], *([key, *_texts(cards, key)] for key in keys)]


def _texts(cards: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    return [f"{value:.5g}" if isinstance(value := card.get(key, "–"), float) else str(value) for card in cards]
