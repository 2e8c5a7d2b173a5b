"""How often `moslora verify` is wrong, and how few questions a fault needs.

    python -m benchmarks.checks.verdicts RUN FOLDER ...     # folders that `moslora verify --out` has written

Of each server's answers, 200 bootstrap samples of 8 to 64 questions are judged again. A true server must never be
called another one; a fault must be called what it is.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.commands import command
from benchmarks.tables import markdown
from moslora.evaluation.evaluate_target import ServerSource
from moslora.evaluation.server import Server
from moslora.runs.evaluation import read_evaluation
from moslora.verify.evidence import evidence
from moslora.verify.verdict import Evidence, judge
from moslora.verify.verification import checkpoints_of, open_as_evaluated, prepare_questions, with_base

SAMPLES = 200
SIZES = (8, 16, 32, 64)


def of_questions(whole: Evidence, places: Sequence[int]) -> Evidence:
    """The evidence of some of the questions."""
    return replace(
        whole,
        server=[whole.server[place] for place in places],
        run=[whole.run[place] for place in places],
        base=[whole.base[place] for place in places] if whole.base is not None else None,
        checkpoints={name: [answers[place] for place in places] for name, answers in whole.checkpoints.items()},
        lengths=[whole.lengths[place] for place in places],
    )


def verdicts(whole: Evidence, size: int) -> str:
    """How often each verdict is given to bootstrap samples of the questions, the most frequent first."""
    random = np.random.default_rng(size)
    counts = Counter[str]()
    for _ in range(SAMPLES):
        sample = of_questions(whole, random.integers(0, len(whole.lengths), size).tolist())
        counts[judge(sample)[0].kind] += 1
    return ", ".join(f"{kind} {count}" for kind, count in counts.most_common())


def main(run: Path, folders: tuple[Path, ...]) -> None:
    target, own = open_as_evaluated(run, None)
    answered = read_evaluation(own)
    table = [["server", *(f"{size} questions" for size in SIZES)]]
    for folder in folders:
        server = read_evaluation(folder)
        chosen = answered.only({task: answers.ids for task, answers in server.tasks.items()})
        questions = prepare_questions(target, chosen, ServerSource(Server(""), at_once=1)).encoded()
        checkpoints = checkpoints_of(chosen)
        whole = evidence(questions, server, with_base(chosen), checkpoints=checkpoints, dtype="bfloat16")
        table.append([folder.name, *(verdicts(whole, size) for size in SIZES)])
        print(" | ".join(table[-1]), flush=True)
    print(f"{SAMPLES} bootstrap samples of each size", markdown(table), sep="\n\n")


if __name__ == "__main__":
    command(main)
