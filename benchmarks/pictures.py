"""Draws every picture of the documents from what is committed; nothing is measured or trained.

    python -m benchmarks.pictures                          # all of them, in some minutes
    python -m benchmarks.pictures --only report results    # those of some sources

README.md has the commands that make the numbers. ``tests/benchmarks/test_pictures.py`` compares what each picture says
with what is drawn today.
"""

from collections.abc import Callable

from benchmarks import DOCS
from benchmarks.commands import command
from benchmarks.research import ablation, argument, forgetting_page, proof, rates, report_page, results
from benchmarks.speed import growth
from benchmarks.svg import write_pictures

SOURCES: dict[str, Callable[[], dict[str, str]]] = {
    "ablation": ablation.pictures,
    "argument": argument.pictures,
    "forgetting": lambda: forgetting_page.pictures(forgetting_page.load_models()),
    "proof": lambda: proof.pictures(proof.measure()),  # trajectories that are computed in a minute
    "report": report_page.pictures,
    "rates": lambda: rates.pictures(rates.load_models()),
    "results": lambda: results.pictures(results.load(DOCS / "experiments" / "article")),
    "speed": growth.pictures,
}
"""Where pictures come from, and what draws them: path in docs/ -> SVG."""


def main(*, only: tuple[str, ...] = tuple(SOURCES)) -> None:
    for name in only:
        write_pictures(SOURCES[name]())


if __name__ == "__main__":
    command(main, only=SOURCES)
