"""The command `quickstart`: train, evaluate before and after, and merge, at a size that suits the machine."""

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from moslora.choices import DType, SizeName
from moslora.compare.arms import Arm
from moslora.compare.compared_run import ComparedRun
from moslora.compare.comparison import compare_arms
from moslora.compare.conclusion import conclusions, lines
from moslora.compare.display import tables
from moslora.console import say, without_output
from moslora.convert.merge import merge
from moslora.errors import UsageError, on_interrupt
from moslora.evaluation.evaluate_target import evaluate_target, questions_of
from moslora.evaluation.evaluator import ModelWithQuestions
from moslora.evaluation.loading import load_model, tokenizer_of
from moslora.evaluation.target import open_target
from moslora.files import in_use, refuse_used
from moslora.processes.devices import device, free_memory, gpus, multiplies_bfloat16
from moslora.recipe import Recipe, load_recipe
from moslora.runs.evaluation import Evaluation
from moslora.runs.run import Run
from moslora.training.launch import train_in_processes, worker_processes

RECIPE = "smollm2-135m"

SIZES: Mapping[SizeName, tuple[int, int]] = {"full": (1, 256), "half": (2, 192), "third": (3, 192)}
"""Sizes, the largest first: the number by which the recipe's training rows are divided, and questions per set.

The gain depends little on the rows, and its standard error on the questions: 2.1 points with 64 per set, 1.5 with 128,
1.2 with 192 and 1.0 with 256. A third of the rows gained 4.4 to 4.8 points, over three standard errors with 192."""

VALIDATION_ROWS = 120
"""Number of validation rows, for every size. Their loss is computed; they are not asked as questions, of which a run of
this length could afford so few that their share would say nothing."""

SECONDS_TO_CHOOSE = 280
"""Maximum estimated seconds of the size that is chosen by itself: five minutes less a fifteenth."""

PROBED_STEPS = 3
"""Number of training steps that are timed to measure this machine, after a first step that is not."""

PROBED_QUESTIONS = 8
"""Number of questions of each set that are scored to measure this machine."""

# Work that is not measured, from two cores of an AMD EPYC. docs/speed.md compares estimated and taken times.
TRAINING_TOKENS = 65_600  # of the full size
VALIDATION_TOKENS = 3_500  # as many tokens of training take as long as a run's validations
FIXED_SECONDS = 30.0  # loading the model four times, starting processes, the merge, its proof


def overrides(size: SizeName, recipe: Recipe) -> list[str]:
    """List the overrides by which a size changes ``recipe``; empty for the full size, or if the recipe does not set a
    number of rows for each task."""
    divisor, questions = SIZES[size]
    rows = recipe.data.rows
    if divisor == 1 or not isinstance(rows, dict):
        return []
    limits = [f"data.rows.{task}={round(number / divisor)}" for task, number in rows.items()]
    return [*limits, f"evaluation.limit={questions}"]


def seconds(size: SizeName, *, training: float, scoring: float) -> float:
    """Estimate the seconds of the quickstart after the measurement.

    Args:
        size: the size.
        training: tokens a second of all worker processes together.
        scoring: seconds for a question of each of the eight sets, which the base and the tuned model are asked.
    """
    divisor, questions = SIZES[size]
    trained = (TRAINING_TOKENS / divisor + VALIDATION_TOKENS) / training
    return FIXED_SECONDS + trained + 2 * questions * scoring


@on_interrupt("stopped: the work so far is saved, and the same command continues from there")
def quickstart(*, out: Path, size: SizeName | None = None) -> tuple[list[list[str]], list[str]]:
    """Run all steps in the folder ``out``, or the steps that are missing there.

    Args:
        out: the run's folder.
        size: of a new run; ``None`` for the largest that takes this machine less than five minutes. A run that is
            continued keeps its size.

    Returns:
        The table, header first, and the lines below it: the conclusion, and commands to try next.
    """
    began = time.monotonic()
    run = Run(out)
    _train(run, size)
    base = _scored(out, "base")
    tuned = _scored(out, "tuned")
    merged = out / "merged"
    if not in_use(merged):
        say(f"merging into {merged} ...")
        say(str(merge(run.result, out=merged)))
    minutes = (time.monotonic() - began) / 60
    say(f"done in {minutes:.1f} minutes")
    by_accuracy = compare_arms([base, tuned], outcome="accuracy")
    by_log_probability = compare_arms([base, tuned], outcome="log_probability")
    quoted = shlex.quote(str(out))
    return tables(by_accuracy)[-1], [
        *lines(by_accuracy),
        *conclusions(by_log_probability),
        "try next:",
        f"  moslora ask {quoted}    # ask your own question",
        f"  moslora compare {quoted} --outcome log_probability    # how sure it is of the right options",
        f"  moslora eval {quoted} --limit all    # every test question",
        "  moslora train llama3-8b --dry-run    # the plan of a run of LLaMA-3-8B",
    ]


def _train(run: Run, size: SizeName | None) -> None:
    """Train a new run, or continue an existing one and say so; a run with a result is not trained further."""
    if run.exists:
        recipe = run.recipe_to_resume()
        if recipe.name != load_recipe(RECIPE).name:
            other = f"already has a run of another recipe, {recipe.name}"
            raise UsageError(f"{run.path}: {other}; choose another folder with --out")
        say(f"continuing {run.path} at the --size that it was started with (remove that folder to start again)")
        words = [str(run.path), "--resume"]
    else:
        refuse_used(run.path)
        changes = [
            f"model.dtype={fast_dtype()}",
            f"data.validation_rows={VALIDATION_ROWS}",
            "training.validation_questions=0",
        ]
        recipe = load_recipe(RECIPE, changes)
        changes += overrides(_choose_size(size, recipe, changes), recipe)
        words = [RECIPE, *changes]
        recipe = load_recipe(RECIPE, changes)
    if not run.result.exists():
        train_in_processes(words, out=run.path, processes=worker_processes(recipe.training))


def _choose_size(size: SizeName | None, recipe: Recipe, changes: Sequence[str]) -> SizeName:
    """Choose a size if the user gave none: on a GPU the full one, on a CPU the largest that takes less than five
    minutes, or the smallest. On a CPU, print how long it takes, the measurement included.

    Args:
        size: the size that the user gave.
        recipe: recipe of the full size.
        changes: overrides that made ``recipe``.
    """
    if gpus():
        return size or "full"
    say("measuring this machine ...")
    began = time.monotonic()
    training, scoring = _measure(changes, processes=worker_processes(recipe.training))
    free_memory()
    spent = time.monotonic() - began
    total = {name: spent + seconds(name, training=training, scoring=scoring) for name in SIZES}
    fitting = [name for name in SIZES if total[name] <= SECONDS_TO_CHOOSE]
    size = size or [*fitting, "third"][0]
    measured = f"it trains {training:,.0f} tokens and scores {8 / scoring:.1f} questions a second"
    say(f"{measured}, so size {size} takes about {total[size] / 60:.1f} minutes")
    if size != "full":
        _, questions = SIZES["full"]
        say(f"(all rows and {questions} questions of each set: --size full, about {total['full'] / 60:.0f} minutes)")
    return size


def _measure(changes: Sequence[str], *, processes: int) -> tuple[float, float]:
    """Measure the speeds of `seconds`: train a few steps as the run will, by its engine and in as many ``processes``,
    and score a few questions with the result, twice. The first step and the first round only warm up. Nothing is kept.
    """
    steps = ["data.validation_rows=0", f"training.max_steps={1 + PROBED_STEPS}"]
    with TemporaryDirectory() as folder, without_output():
        run = Run(Path(folder) / "run")
        train_in_processes([RECIPE, *changes, *steps], out=run.path, processes=processes)
        target = open_target(str(run.path))
        request, questions = questions_of(target, None, {"limit": None})
        few = {task: rows[:PROBED_QUESTIONS] for task, rows in questions.items()}
        asked = ModelWithQuestions.of(load_model(target), tokenizer_of(target), few, request)
        asked.ask()
        began = time.monotonic()
        asked.ask()
        scoring = (time.monotonic() - began) / PROBED_QUESTIONS
        return run.metrics[-1]["tokens_per_second"], scoring  # the first step has a row of its own


def _scored(out: Path, name: str) -> Arm:
    """Score the run in ``out`` (``name`` "tuned"), or its base ("base"), as an arm of this name."""
    say(f"scoring the {name} model ...")
    target = open_target(str(out), base=name == "base")
    results, folder = evaluate_target(target)
    evaluation = Evaluation.of(folder, results.conditions, results.predictions)
    return Arm(name, {None: ComparedRun.of(evaluation)})


def fast_dtype() -> DType:
    """Fastest dtype that trains well on this machine: bfloat16 only if the hardware multiplies it."""
    if multiplies_bfloat16(device()):
        return "bfloat16"
    if gpus():
        return "float16"
    return "float32"
