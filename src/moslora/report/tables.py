"""Tables of the page, header first: an overview of the runs, and the recipe values and facts in which they differ."""

from collections.abc import Mapping, Sequence

from moslora.recipe.recipe import flat
from moslora.report.runs import ReportedRun
from moslora.runs.intervals import NO_VALUE, percent
from moslora.runs.results import Results
from moslora.runs.strength import strength_of


def overview(runs: Sequence[ReportedRun], results: Mapping[str, Results]) -> list[list[str]]:
    """Return a row per run.

    Args:
        runs: runs of the report.
        results: name of a run or base -> results on the questions that run and base both answered.
    """
    rows = [["run", "method", "seed", "trained", "validation loss", "questions", "base", "tuned", "minutes", "peak GB"]]
    for run in runs:
        recipe = run.run.recipe
        tuned = results.get(run.name)
        questions = f"{tuned.macro.n:,}" if tuned and tuned.macro else NO_VALUE
        loss = run.run.validation_loss
        trained = [_steps(run), NO_VALUE if loss is None else f"{loss:.4f}"]
        averages = [_average(results.get(run.base_name) if run.base else None), _average(tuned)]
        costs = [_last(run, "seconds", per=60), _last(run, "peak_memory_gb", per=1)]
        rows.append([run.name, recipe.adapter.summary(), str(recipe.seed), *trained, questions, *averages, *costs])
    return rows


def _average(results: Results | None) -> str:
    """Return the macro average in percent, or a dash."""
    return percent(results.macro.main.value) if results and results.macro else NO_VALUE


def _steps(run: ReportedRun) -> str:
    """Return the steps done and planned, and the chosen one; or the strength, for a run that `moslora strength` made
    from another."""
    strength = strength_of(run.run.facts)
    if strength is not None:
        return f"strength {strength}"
    done = max((row["step"] for row in run.metrics), default=0)
    best = f", best {run.run.best.step:,}" if run.run.best else ""
    return f"{done:,} of {run.run.facts.get('steps', 0):,} steps{best}"


def _last(run: ReportedRun, metric: str, *, per: float) -> str:
    """Return the last value of a metric that only rises, divided by ``per``."""
    _, values = run.curve(metric)
    return f"{values[-1] / per:.1f}" if values else NO_VALUE


def differing(runs: Sequence[ReportedRun]) -> list[list[str]]:
    """Return a row per recipe value and recorded fact, other than scores, that differs between runs."""
    cards = []
    for run in runs:
        card = {key: fact for key, fact in run.run.facts.items() if key not in ("recipe", "packages", "results")}
        cards.append(flat(run.run.recipe.model_dump(mode="json")) | flat(card))
    rows = [["", *(run.name for run in runs)]]
    for key in dict.fromkeys(key for card in cards for key in card):
        values = [_in_words(card.get(key, NO_VALUE)) for card in cards]
        if len(set(values)) > 1:
            rows.append([key, *values])
    return rows


def _in_words(fact: object) -> str:
    return f"{fact:.5g}" if isinstance(fact, float) else str(fact)
