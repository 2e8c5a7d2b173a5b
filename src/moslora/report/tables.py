"""The tables of the page: the runs at a glance, and where their cards differ. Header first."""

from collections.abc import Sequence
from typing import Any

from moslora.evaluation import Results
from moslora.evaluation.percent import NONE, percent
from moslora.recipe.recipe import flat
from moslora.report.runs import ReportedRun


def glance(runs: Sequence[ReportedRun]) -> list[list[str]]:
    """A row per run. Averages are of the questions that the run and its base answered."""
    rows = [["run", "method", "seed", "trained", "validation loss", "questions", "base", "tuned", "minutes", "peak GB"]]
    for run in runs:
        recipe = run.run.recipe
        questions = NONE
        if run.tuned_results and run.tuned_results.macro:
            questions = f"{run.tuned_results.macro.n:,}"
        rows.append(
            [
                run.name,
                recipe.adapter.summary(),
                str(recipe.seed),
                _steps(run),
                _validation_loss(run),
                questions,
                _average(run.base_results),
                _average(run.tuned_results),
                _last(run, "seconds", per=60),
                _last(run, "peak_memory_gb", per=1),
            ]
        )
    return rows


def _average(results: Results | None) -> str:
    if results is None or not results.macro:
        return NONE
    value, _ = results.macro.value(results.metric)
    return percent(value)


def _steps(run: ReportedRun) -> str:
    done = max((row["step"] for row in run.metrics), default=0)
    planned = run.run.facts.get("steps", 0)
    steps = f"{done:,} of {planned:,} steps"
    if run.best is not None:
        steps += f", best {run.best.step:,}"
    return steps


def _validation_loss(run: ReportedRun) -> str:
    """That of the result, or the last one so far."""
    loss = run.validation_loss
    if loss is None:
        return NONE
    return f"{loss:.4f}"


def _last(run: ReportedRun, metric: str, *, per: float) -> str:
    """The last value of a metric that only rises."""
    _, values = run.curve(metric)
    if not values:
        return NONE
    return f"{values[-1] / per:.1f}"


def differing(runs: Sequence[ReportedRun]) -> list[list[str]]:
    """A row per fact of the cards that is not the same in all runs."""
    cards = [_facts(run) for run in runs]
    keys: dict[str, None] = {}
    for card in cards:
        keys |= dict.fromkeys(card)
    rows = [["", *(run.name for run in runs)]]
    for key in keys:
        values = [_in_words(card.get(key, NONE)) for card in cards]
        if len(set(values)) > 1:
            rows.append([key, *values])
    return rows


def _facts(run: ReportedRun) -> dict[str, Any]:
    """Key -> fact, of the run's recipe and of its card, without scores."""
    card = run.run.facts
    others = {key: fact for key, fact in card.items() if key not in ("recipe", "results")}
    return flat(card.get("recipe", {})) | flat(others)


def _in_words(fact: Any) -> str:
    if isinstance(fact, float):
        return f"{fact:.5g}"
    return str(fact)
