"""How often `moslora verify` is wrong, and how few questions a fault needs.

    python -m benchmarks.checks.verdicts RUN FOLDER ...     # folders that `moslora verify --out` has written

Of each server's answers, 200 bootstrap samples of 8 to 64 questions are judged again. A true server must never be
called another one; a fault must be called what it is.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.tables import markdown
from moslora.evaluation.evaluate_server import asked_of
from moslora.evaluation.server import Server
from moslora.evaluation.target import open_target
from moslora.runs.evaluation import read_evaluation
from moslora.runs.run import Run
from moslora.verify.evidence import evidence
from moslora.verify.verdict import Evidence, judge
from moslora.verify.verification import prepare_questions, read_known

SAMPLES = 200
SIZES = (8, 16, 32, 64)


def evidences(run: Path, folders: Sequence[Path]) -> Iterator[Evidence]:
    """What the answers in each folder show of the questions that the run has answered."""
    answered = read_evaluation(Run(run).evaluation())
    for folder in folders:
        server = read_evaluation(folder)
        chosen = answered.only({task: answers.ids for task, answers in server.tasks.items()})
        questions = asked_of(prepare_questions(open_target(str(run)), chosen, Server("")))
        yield evidence(questions, server, read_known(chosen), dtype="bfloat16")


def samples(whole: Evidence, size: int) -> Iterator[Evidence]:
    """Bootstrap samples of the questions."""
    random = np.random.default_rng(size)
    for _ in range(SAMPLES):
        yield of_questions(whole, random.integers(0, len(whole.lengths), size).tolist())


def of_questions(whole: Evidence, places: Sequence[int]) -> Evidence:
    """The evidence of some of the questions."""
    return replace(
        whole,
        server=[whole.server[place] for place in places],
        run=[whole.run[place] for place in places],
        base=[whole.base[place] for place in places] if whole.base is not None else None,
        others={name: [answers[place] for place in places] for name, answers in whole.others.items()},
        lengths=[whole.lengths[place] for place in places],
        scales=[whole.scales[place] for place in places],
    )


def verdicts(whole: Evidence, size: int) -> str:
    """How often each verdict is given, the most frequent first."""
    counts = Counter(judge(sample)[0].kind for sample in samples(whole, size))
    return ", ".join(f"{kind} {count}" for kind, count in counts.most_common())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="an evaluated run")
    parser.add_argument("folders", type=Path, nargs="+", help="that `moslora verify --out` has written")
    given = parser.parse_args(arguments)
    table = [["server", *(f"{size} questions" for size in SIZES)]]
    for folder, whole in zip(given.folders, evidences(given.run, given.folders), strict=True):
        table.append([folder.name, *(verdicts(whole, size) for size in SIZES)])
        print(" | ".join(table[-1]), flush=True)
    print(f"{SAMPLES} bootstrap samples of each size", markdown(table), sep="\n\n")


if __name__ == "__main__":
    main()
