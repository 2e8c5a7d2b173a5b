"""One command from nothing to a merged model: train, evaluate before and after, merge, on this machine's terms."""

import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from moslora.adapters import inject
from moslora.checkpoint import stored_recipe
from moslora.console import say
from moslora.data.encode import IGNORE_INDEX, Encoded
from moslora.data.steps import collate, cut
from moslora.errors import MosloraError, UsageError, stopped
from moslora.evaluation import PairedDifference, Prediction, paired_difference
from moslora.evaluation.batches import BLOCK_SIZE
from moslora.evaluation.results import Results
from moslora.evaluation.target import evaluate_target, open_target
from moslora.files import in_use, locked, refuse_used
from moslora.launch import run_in_processes
from moslora.merge import merge
from moslora.model import load_base
from moslora.recipe import Recipe, load_recipe
from moslora.runs import locate_adapter
from moslora.training.objective import LabelLoss

RECIPE = "smollm2-135m"

BUDGET_SECONDS = 14 * 60
"""For training and both evaluations by the probe's estimate, which is cautious about the evaluations."""

LEAST_ROWS, LEAST_QUESTIONS = 50, 40
"""Per task; fewer would show nothing."""


LENGTHS = (13, 15, 17, 18, 20, 21, 23, 24, 26, 28, 30, 33, 38, 46, 60, 104)
"""Tokens of typical rows, for the probe: sixteen quantiles of the quickstart's own."""

OPTIONS = 3.1
"""Options of a question, on average over the eight sets."""

CROWDING = 1.15
"""How much longer a step takes while the other cores work, too, and the gradients are reduced."""


@dataclass(frozen=True)
class Speed:
    """What the probe measured.

    Attributes:
        dtype: the faster of bfloat16 and float32.
        row_seconds: to train on one row.
        question_seconds: to score one question.
    """

    dtype: str
    row_seconds: float
    question_seconds: float


def quickstart(*, out: Path) -> tuple[list[list[str]], list[str]]:
    """Runs the whole path, or what is left of it, in the folder ``out``.

    Returns:
        The table (header first) and the verdict's lines.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; training was told to save first.
        UsageError: ``out`` holds something else.
    """
    try:
        return _quickstart(out)
    except KeyboardInterrupt as stop:
        raise stopped("stopped; what was done is saved, and the same command goes on from there", stop) from None


def _quickstart(out: Path) -> tuple[list[list[str]], list[str]]:
    began = time.monotonic()
    with locked(out):  # a look before the measuring: training locks the folder by itself
        pass
    if (out / "recipe.yaml").exists():
        recipe = begun_recipe(out)
        say(f"going on with {out} (remove that folder to start anew)")
    else:
        refuse_used(out)
        recipe = fitting_recipe()
    if not (out / "adapter").exists():
        _train(recipe, out)
    results = []
    for base in (True, False):
        say(f"scoring the {'base' if base else 'tuned'} model ...")
        results.append(evaluate_target(open_target(str(out), base=base))[0])
    if not in_use(out / "merged"):  # a killed merge leaves its lock
        say(f"merging into {out / 'merged'} ...")
        say(str(merge(locate_adapter(out), out=out / "merged")))
    say(f"done in {(time.monotonic() - began) / 60:.1f} minutes")
    return comparison(*results), verdict(*results)


def begun_recipe(out: Path) -> Recipe:
    """The recipe of the quickstart that was begun in ``out``, whatever was decided for the machine then.

    Raises:
        UsageError: the run there is none of the quickstart.
    """
    found, own = stored_recipe(out), load_recipe(RECIPE)
    decided = {
        "model": own.model.model_copy(update={"dtype": found.model.dtype}),
        "data": own.data.model_copy(update={"rows": found.data.rows}),
        "evaluation": own.evaluation.model_copy(update={"limit": found.evaluation.limit}),
    }
    then, now = found.model_dump(), own.model_copy(update=decided).model_dump()
    if other := [key for key in now if then[key] != now[key]]:
        raise UsageError(
            f"{out}: holds a run of another recipe than the quickstart's ({', '.join(other)}); choose another folder"
            " with --out"
        )
    return found


def fitting_recipe() -> Recipe:
    """The quickstart's recipe, with fewer rows and questions where this machine would take too long."""
    recipe = load_recipe(RECIPE)
    rows, limit = recipe.data.rows, recipe.evaluation.limit
    if not isinstance(rows, dict) or limit is None:
        raise MosloraError(f"recipe {RECIPE}: the quickstart needs data.rows for each task, and evaluation.limit")
    if torch.cuda.is_available():
        say(f"using {torch.cuda.get_device_name()}")
        return recipe
    say("measuring this machine for a few seconds ...")
    speed = min((probe(recipe, dtype) for dtype in ("bfloat16", "float32")), key=lambda s: s.row_seconds)
    # In low precision a block of questions is scored whole, though only a part may be wanted.
    block = BLOCK_SIZE if speed.dtype == "bfloat16" else 1
    scoring = 2 * len(recipe.evaluation.tasks) * speed.question_seconds  # seconds for one question of each task
    affordable = int(BUDGET_SECONDS / 2 / scoring) // block * block
    questions = min(limit, max(affordable, block, LEAST_QUESTIONS))
    training = sum(rows.values()) * speed.row_seconds
    share = min(1.0, max(0.0, BUDGET_SECONDS - questions * scoring) / training)
    fewer = {task: max(LEAST_ROWS, int(n * share)) for task, n in rows.items()}
    say(
        f"{speed.dtype} is faster here: {1 / speed.row_seconds:.1f} rows/s in training,"
        f" {1 / speed.question_seconds:.1f} questions/s"
    )
    if (fewer, questions) != (rows, limit):
        say(
            f"the whole would take {(training + limit * scoring) / 60:.0f} minutes, so it trains on"
            f" {sum(fewer.values()):,} rows instead of {sum(rows.values()):,} and scores {questions} questions of each"
            f" task instead of {limit}: expect a smaller gain, less surely"
        )
    changes = [f"data.rows.{task}={n}" for task, n in fewer.items()]
    return load_recipe(RECIPE, [f"model.dtype={speed.dtype}", f"evaluation.limit={questions}", *changes])


def _train(recipe: Recipe, out: Path) -> None:
    """Trains in processes of one thread each where there is no GPU: two of them do a third more than two threads."""
    processes = worker_processes()
    environment = {"OMP_NUM_THREADS": str(threads_each(processes))}
    if not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"] = "true"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{recipe.name}.yaml"
        file.write_text(recipe.to_yaml(), encoding="utf-8")
        command = [sys.executable, "-m", "moslora", "train", str(file), "--out", str(out)]
        command += ["--resume"] if (out / "recipe.yaml").exists() else []
        code = run_in_processes(command, processes=processes, environment=environment)
    if code:
        fault = UsageError if code == UsageError.exit_code else MosloraError
        raise fault(f"training ended with exit code {code}; the lines above say why")


def worker_processes() -> int:
    """One on a GPU, otherwise one per core up to four, each with its share of a step's rows."""
    return 1 if torch.cuda.is_available() else min(4, os.cpu_count() or 1)


def threads_each(processes: int) -> int:
    """The cores, shared out."""
    return max(1, (os.cpu_count() or 1) // processes)


def probe(recipe: Recipe, dtype: str, *, seconds: float = 3.0) -> Speed:
    """Times a training step and a forward pass on rows as long as the quickstart's, cut as in training."""
    model = load_base(recipe.model.model_copy(update={"dtype": dtype}))
    inject(model, **recipe.adapter.model_dump())
    rows = [_row(length) for length in LENGTHS]
    batches = [collate([rows[i] for i in batch], device=torch.device("cpu")) for batch in cut(LENGTHS, tokens=2048)]
    objective = LabelLoss(model)
    processes, threads = worker_processes(), torch.get_num_threads()
    torch.set_num_threads(threads_each(processes))
    objective.train()
    step = _time(lambda: [sum(objective(batch)).backward() for batch in batches], seconds=seconds)
    torch.set_num_threads(threads)
    objective.eval()
    with torch.inference_mode():
        forward = _time(lambda: [objective(batch) for batch in batches], seconds=seconds / 2)
    return Speed(
        dtype,
        row_seconds=CROWDING * step / processes / len(rows),
        question_seconds=OPTIONS * forward / len(rows),
    )


def _row(length: int) -> Encoded:
    ids = list(range(100, 100 + length))
    return Encoded(
        id="probe", task="probe", input_ids=ids, labels=[IGNORE_INDEX] * (length - 6) + ids[-6:], truncated=False
    )


def _time(run: Callable[[], object], *, seconds: float) -> float:
    """Seconds of one call: the mean of as many as fit, after one to warm up."""
    run()
    began, calls = time.perf_counter(), 0
    while calls < 2 or time.perf_counter() - began < seconds:
        run()
        calls += 1
    return (time.perf_counter() - began) / calls


def comparison(base: Results, tuned: Results) -> list[list[str]]:
    """Task by task: size, majority class, base, tuned, their paired difference, and the right option's log p."""
    metric = base.settings.primary
    paired = paired_difference(base.predictions, tuned.predictions, metric=metric)
    rows = [["task", "n", "majority", "base", "tuned", "difference ± s.e.", "log p base", "log p tuned"]]
    scores = {
        **{task: (base.tasks[task], tuned.tasks[task]) for task in base.tasks},
        "average": (base.macro, tuned.macro),
    }
    for task, (before, after) in scores.items():
        pair = paired["macro" if task == "average" else task]
        rows.append(
            [
                task,
                f"{before.n:,}",
                f"{100 * before.majority_class:.1f}",
                f"{100 * getattr(before, metric):.1f}",
                f"{100 * getattr(after, metric):.1f}",
                f"{100 * pair.difference:+.1f} ± {100 * _error(pair):.1f}",
                f"{before.log_probability:.3f}",
                f"{after.log_probability:.3f}",
            ]
        )
    return rows


def verdict(base: Results, tuned: Results) -> list[str]:
    """What the table says and what it does not, in words."""
    metric = base.settings.primary
    gain = paired_difference(base.predictions, tuned.predictions, metric=metric)
    over_majority = paired_difference(majority(base.predictions), tuned.predictions, metric=metric)
    better = paired_difference(base.predictions, tuned.predictions, metric="log_probability")["macro"]
    lines = []
    for name, pair in (("the base model", gain["macro"]), ("the majority class", over_majority["macro"])):
        sure = pair.difference > 2 * _error(pair)
        lines.append(
            f"average {100 * pair.difference:+.1f} points against {name}: {'above' if sure else 'NOT above'} two"
            f" standard errors ({200 * _error(pair):.1f})"
        )
    lines.append(
        f"log-probability of the right option {better.difference:+.3f} nats:"
        f" {'higher' if better.difference > 0 else 'NOT higher'} than the base model's"
    )
    moved = [task for task, pair in gain.items() if task != "macro" and abs(pair.difference) > 2 * _error(pair)]
    still = [task for task in base.tasks if task not in moved]
    if still:
        lines.append(f"within two standard errors of no change: {', '.join(still)}")
    return lines


def _error(pair: PairedDifference) -> float:
    """The standard error; infinite where a single question leaves it open."""
    return math.inf if pair.standard_error is None else pair.standard_error


def majority(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The predictions of always choosing a task's most frequent right position."""
    counts: dict[str, dict[int, int]] = {}
    for p in predictions:
        counts.setdefault(p.task, {}).setdefault(p.gold, 0)
        counts[p.task][p.gold] += 1
    best = {task: max(golds, key=golds.__getitem__) for task, golds in counts.items()}
    constant = []
    for p in predictions:
        positions = range(max(len(p.scores), best[p.task] + 1))
        scores = tuple(0.0 if i == best[p.task] else -1.0 for i in positions)
        constant.append(replace(p, prediction=best[p.task], scores=scores, characters=(1,) * len(scores)))
    return constant
