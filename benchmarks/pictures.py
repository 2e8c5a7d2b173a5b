"""Draws every picture of the documents from what is committed; nothing is measured or trained.

    python -m benchmarks.pictures                   # all of them, in some minutes
    python -m benchmarks.pictures report results    # those of some sources

README.md has the commands that make the numbers. ``tests/benchmarks/test_pictures.py`` compares what each picture says
with what is drawn today.
"""

import argparse
from collections.abc import Callable

from benchmarks import DOCS
from benchmarks.article import ablation, argument, proof, rates, report_page, results
from benchmarks.speed import growth
from benchmarks.svg import write_pictures


def of_results() -> dict[str, str]:
    """Path in docs/ -> SVG, from docs/experiments/article."""
    found = results.load(DOCS / "experiments" / "article")
    return {f"results/{name}": svg for name, svg in results.pictures(found).items()}


def of_rates() -> dict[str, str]:
    """Path in docs/ -> SVG, from docs/experiments/article-second."""
    return rates.pictures(results.load(rates.FOLDER))


def of_proof() -> dict[str, str]:
    """Path in docs/ -> SVG, of trajectories that are computed in a minute."""
    return proof.pictures(proof.measure())


SOURCES: dict[str, Callable[[], dict[str, str]]] = {
    "ablation": ablation.pictures,
    "argument": argument.pictures,
    "proof": of_proof,
    "report": report_page.pictures,
    "rates": of_rates,
    "results": of_results,
    "speed": growth.pictures,
}
"""Where pictures come from, and what draws them."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of the documents.")
    parser.add_argument("names", nargs="*", default=list(SOURCES), metavar="NAME", help=", ".join(SOURCES))
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in SOURCES]
    if unknown:
        parser.error(f"{', '.join(unknown)}: must be one of {', '.join(SOURCES)}")
    for name in given.names:
        write_pictures(SOURCES[name]())


if __name__ == "__main__":
    main()
