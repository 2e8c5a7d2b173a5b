"""The page of a report, from its runs."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from moslora.compare.arms import load_arms
from moslora.compare.comparison import compare_loaded
from moslora.compare.conclusion import lines, tables
from moslora.compare.find import Read
from moslora.errors import MosloraError
from moslora.evaluation import Results
from moslora.evaluation.display import remarks
from moslora.evaluation.percent import percent
from moslora.recipe.recipe import flat
from moslora.report import PAGE, figures, weights
from moslora.report.bases import base_model
from moslora.report.canvas import SERIES, Canvas
from moslora.report.questions import Changed, most_changed, texts
from moslora.report.runs import Reported, ReportedRun

CURVES = {
    "loss": "Training loss",
    "validation_loss": "Validation loss",
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_second": "Tokens per second",
}
BY_LAYER = (
    ("mixer-distance", "distance", "M: distance from its start, ‖M − M₀‖ / ‖M₀‖"),
    ("delta-rank", "effective_rank", "ΔW: effective rank"),
)
"""Name, attribute of a `LearnedLayer`, and title."""

QUESTIONS = 8
"""Questions that gained most, and as many that lost most."""


def page(found: Reported, paths: Sequence[Path], *, folder: Path, evaluation: str | None, read: Read) -> str:
    """The text of the page about the runs ``found`` at ``paths``; the PNGs are written into ``folder``. ``read`` reads
    an evaluation."""
    runs, shared, line = found
    arms = list(dict.fromkeys(run.arm for run in runs))
    canvas = Canvas(folder, arms)
    firsts = [next(run for run in runs if run.arm == arm) for arm in arms]
    first = firsts[0]
    bases: dict[str, ReportedRun] = {}  # the name of a base -> the first run that has it
    for run in runs:
        if run.base:
            bases.setdefault(run.base_name, run)
    base = next(iter(bases.values())).base if len(bases) == 1 else None
    changed: list[tuple[str, list[Changed]]] = []
    if first.tuned and first.base:
        examples = texts(first.run.recipe.questions, first.tuned.settings)
        both = most_changed(first.base, first.tuned, examples, most=QUESTIONS)
        changed = list(zip(("gained", "lost"), both, strict=True)) if any(both) else []
    evaluations = [one for one in (base, *(run.tuned for run in runs)) if one]
    asked = {str((one.settings.asked, {**one.settings.model, "base": base_model(one.settings)})) for one in evaluations}
    alike = base is not None and bool(shared) and len(asked) == 1  # else their distances from it mean nothing
    answers = [(run.arm, run.tuned) for run in runs if run.tuned and alike]
    scored = [(run.name, run.tuned_results) for run in runs]
    scored += [(name, run.base_results) for name, run in bases.items()]
    compared = list(_comparisons(canvas, runs, paths, evaluation=evaluation, read=read))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        title=", ".join(arms),
        arms={arm: f"c{number % len(SERIES)}" for number, arm in enumerate(arms)},
        glance=_glance(runs, counted=not shared),
        remarks=[
            *filter(None, [line]),
            *(f"{n}: {text}" for n, one in scored if one for text in remarks(one)),
        ],
        curves=[figure for name, title in CURVES.items() if (figure := figures.curve(canvas, runs, name, title))],
        accuracy=figures.accuracy(canvas, runs, averaged=bool(shared)),
        traded=figures.gain_and_forgetting(canvas, answers, base) if base and answers else None,
        compared=compared,
        above=[part for part in compared if part["against_base"]] or compared,
        maps={run.arm: figure for run in firsts if (figure := weights.heat_maps(canvas, run))},
        weights=[figure for part in BY_LAYER if (figure := weights.by_layer(canvas, firsts, *part))],
        changed=changed,
        first=first.name,
        differing=_differing(runs),
        cards={run.name: json.dumps(run.run.facts, indent=2, ensure_ascii=False) for run in runs},
        files=[PAGE, *sorted(path.name for path in folder.iterdir())],  # the last argument: the figures are drawn
    )


def _glance(runs: Sequence[ReportedRun], *, counted: bool) -> list[list[str]]:
    """A row per run, header first; averages with their number of questions if they are not of the same ones."""

    def average(results: Results) -> str:
        if not results.macro:
            return "–"
        value = percent(results.macro.value(results.settings.primary)[0])
        return f"{value} (n {results.macro.n:,})" if counted else value

    several = len({run.base_name for run in runs if run.base}) > 1

    def scores(run: ReportedRun) -> tuple[str, str]:
        if not run.tuned_results:
            return "–", "–"
        before = average(run.base_results) if run.base_results else "–"
        if several and run.base:
            before += run.base_name.removeprefix("base")
        return before, average(run.tuned_results)

    rows = [["run", "method", "seed", "trained", "validation loss", "base", "tuned", "minutes", "peak GB"]]
    for run in runs:
        card, losses = run.run.facts, run.curve("validation_loss")[1]
        done = max((row["step"] for row in run.metrics), default=0)
        seconds, memory = (run.curve(name)[1] for name in ("seconds", "peak_memory_gb"))
        rows.append([
            run.name,
            run.run.recipe.adapter.summary(),
            str(run.run.recipe.seed),
            f"{done:,} of {card.get('steps', 0):,} steps",
            f"{losses[-1]:.4f}" if losses else "–",
            *scores(run),
            f"{seconds[-1] / 60:.1f}" if seconds else "–",
            f"{max(memory):.1f}" if memory else "–",
        ])  # fmt: skip
    return rows


class Wanted(NamedTuple):
    """A comparison of what is at ``places``, with the name of its figures, and that of the base that all are held
    against, if it is one."""

    figure: str
    title: str
    places: Sequence[Path]
    base: str = ""


def _wanted(runs: Sequence[ReportedRun], paths: Sequence[Path]) -> list[Wanted]:
    """The arms against each other, if there are several, and the runs of each base against it."""
    wanted = []
    if len({run.arm for run in runs}) > 1:
        wanted.append(Wanted("differences", "Against each other", paths))
    by_base: dict[str, list[ReportedRun]] = {}
    for run in runs:
        if run.base:
            by_base.setdefault(run.base_name, []).append(run)
    for name, its in by_base.items():
        base = its[0].base
        assert base is not None
        if len(by_base) == 1:
            wanted.append(Wanted("differences-from-base", "Against the base", [base.folder, *paths], name))
        else:
            figure = "differences-from-" + re.sub(r"\W+", "-", name).strip("-")
            places = [base.folder, *(run.run.path for run in its)]
            wanted.append(Wanted(figure, f"Against the {name}", places, name))
    return wanted


def _comparisons(
    canvas: Canvas, runs: Sequence[ReportedRun], paths: Sequence[Path], *, evaluation: str | None, read: Read
) -> Iterator[dict[str, Any]]:
    """The comparisons that are :func:`_wanted`, or the reason why there is none."""
    for name, title, places, base in _wanted(runs, paths):
        part = {"title": title, "against_base": bool(base)}
        try:
            arms = load_arms(places, evaluation=evaluation, read=read)
            found = compare_loaded(arms, places)
        except MosloraError as error:
            said = [f"Not compared: {line}" for line in str(error).splitlines()]
            yield {**part, "figures": [], "tables": [], "lines": [], "verdicts": said}
            continue
        contrasts = [*(found.exploratory or found.named)]
        if base:
            contrasts = [replace(one, before=base) for one in contrasts]
        how = "each 95 % interval by itself" if found.named and not found.main else "95 % interval"
        firsts = dict.fromkeys(one.before for one in contrasts)
        groups = [[one for one in contrasts if one.before == first] for first in firsts]
        drawn = [figures.differences(canvas, name + f"-{n}" * (n > 1), its, how) for n, its in enumerate(groups, 1)]
        said, verdicts = list[str](), list[str]()
        for line in lines(found) if found.named else ():
            (verdicts if line.startswith("Conclusion: ") else said).append(line)
        yield {**part, "figures": drawn, "tables": tables(found), "lines": said, "verdicts": verdicts}


def _differing(runs: Sequence[ReportedRun]) -> list[list[str]]:
    """The facts of the cards that are not the same in all runs, header first."""
    cards = []
    for facts in (run.run.facts for run in runs):
        others = {key: fact for key, fact in facts.items() if key not in ("recipe", "results")}
        cards.append(flat(facts.get("recipe", {})) | flat(others))
    rows = [["", *(run.name for run in runs)]]
    for key in dict.fromkeys(key for card in cards for key in card):
        values = [card.get(key, "–") for card in cards]
        rows.append([key, *(f"{value:.5g}" if isinstance(value, float) else str(value) for value in values)])
    return [row for row in rows if row is rows[0] or len({*row[1:]}) > 1]
