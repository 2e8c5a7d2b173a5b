"""The commands ``experiment``, ``compare``, ``runs``, ``report`` and ``reproduce``."""

import os
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from moslora.choices import Required
from moslora.cli import completion, examples
from moslora.cli.early import refuse_paths
from moslora.cli.options import Evaluation, Out, Trust
from moslora.cli.peft_folder import as_run
from moslora.cli.table import print_described, print_table
from moslora.compare.margin import Margin, read_margin
from moslora.errors import UsageError
from moslora.runs import RUNS

app = typer.Typer()

PACK = typer.Option(
    metavar="FOLDER",
    help="Write the finished runs into this folder, as tables that compare reads, and run nothing.",
)
ON = typer.Option(
    help="here: runs on this machine, one per GPU at a time; ray: many at once, on the cluster at RAY_ADDRESS or here."
)


@app.command(epilog=examples.EXPERIMENT)
def experiment(
    file: Annotated[
        str | None,
        typer.Argument(
            help="Experiment file, or built-in experiment. [default: list these]",
            autocompletion=completion.experiments,
        ),
    ] = None,
    arms: Annotated[
        list[str] | None, typer.Argument(metavar="ARM", help="Arms to run, or all. [default: the file's first]")
    ] = None,
    out: Out = None,
    table: Annotated[bool, typer.Option("--table", help="Print the results so far and run nothing.")] = False,
    pack: Annotated[Path | None, PACK] = None,
    any_code: Annotated[
        bool, typer.Option("--any-code", help="Also count results of other versions of the code.")
    ] = False,
    any_rate: Annotated[
        bool,
        typer.Option("--any-rate", help="Also score arms whose best learning rate is the lowest or highest tried."),
    ] = False,
    on: Annotated[Literal["here", "ray"], ON] = "here",
    power: Annotated[
        bool,
        typer.Option(
            "--power",
            help="Print which differences more seeds or questions would show, and run nothing. Takes a folder of runs"
            " instead of the file.",
        ),
    ] = False,
) -> None:
    """Train and score several methods over several seeds.

    Each method is scored at its best learning rate. If it was stopped, the same command continues.
    """
    if file is None:
        from moslora.recipe import list_recipes

        print_described(list_recipes("experiment"))
        return
    if power:
        if arms or out is not None:
            raise UsageError("--power: takes only a folder of runs, such as moslora experiment runs/mine --power")
        from moslora.experiment.power import power_of

        sizes, lines = power_of(Path(file))
        _print([sizes], lines)
        return
    from moslora.experiment.file import load_experiment

    plan = load_experiment(file)
    chosen = plan.chosen_arms(tuple(arms or ()))
    from moslora.experiment.study import Study

    study = Study(plan, out or RUNS / plan.name, chosen, any_code, any_rate, fetching=not table)
    if pack is not None:
        from moslora.experiment.pack import pack_runs

        print(*pack_runs(study, pack), sep="\n")
        return
    if on == "ray":
        from moslora.experiment.on_ray import on_ray, refuse_missing_ray

        refuse_missing_ray()
        study = replace(study, start=on_ray)
    complete = table or study.run()
    _print(study.tables(), study.closing())
    if not complete:
        raise typer.Exit(1)


OUTCOME = typer.Option(
    "--outcome",
    "--metric",
    help="Number to compare per question: accuracy or log_probability (cloze: per character), log_probability_summed,"
    " brier, nats_per_byte (of texts); validation_loss per run; or a metric of the logs. [default: the first of"
    " accuracy, acc_norm, acc, exact_match, score, nats_per_byte that all have]",
)


def _margin(text: str) -> Margin:
    try:
        return read_margin(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


MARGIN = typer.Option(
    metavar="NUMBER|SHARE%",
    help="Largest negligible difference: a number, or a share of what the first arm gained over its base, such as 20%."
    " [default: the experiment's, or 0.5 points, 0.01 nats, 0.005 nats per byte]",
    parser=_margin,
)
CLUSTER = typer.Option(
    metavar="COLUMN",
    help="Column of the logs that groups dependent questions, such as doc.passage (lm-eval) or metadata.NAME (Inspect)."
    " [default: none]",
)
ALLOW = typer.Option(
    help="Fields that may differ between arms, separated by commas: rows, steps, one key, or seeds (then unpaired).",
    metavar="FIELD",
)


@app.command(epilog=examples.COMPARE)
def compare(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="A [B …]",
            help="Runs, PEFT's folders, folders of runs, or an experiment. A single run is compared with its base. Or"
            " logs of lm-eval or Inspect, folders of them, or JSONL or CSV files with id and score.",
            autocompletion=completion.runs,
        ),
    ],
    contrast: Annotated[
        str | None,
        typer.Option(
            metavar="ARM,ARM", help="Comparison chosen beforehand: the second arm against the first. [default: A,B]"
        ),
    ] = None,
    outcome: Annotated[str | None, OUTCOME] = None,
    margin: Annotated[Margin | None, MARGIN] = None,
    evaluation: Evaluation = None,
    tasks: Annotated[str | None, typer.Option(help="Tasks to compare, separated by commas. [default: all]")] = None,
    cluster: Annotated[str | None, CLUSTER] = None,
    allow: Annotated[list[str] | None, ALLOW] = None,
    require: Annotated[
        Required | None,
        typer.Option(help="Required conclusion about the second arm. The exit code is 4 if it is not reached."),
    ] = None,
    better: Annotated[
        Literal["higher", "lower"] | None,
        typer.Option(help="Which numbers of a log are better, if their name does not say it."),
    ] = None,
    min_questions: Annotated[int, typer.Option(help="Minimum number of questions to compare.", min=0)] = 0,
    min_share: Annotated[
        float | None,
        typer.Option(
            help="Minimum share of each side's questions that all sides answered. [default: 0.9 with --require]",
            min=0,
            max=1,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the conclusion as JSON.")] = False,
) -> None:
    """Compare runs, question by question and seed by seed.

    Runs whose recipes differ only in the seed form one arm. Arms are paired by seed. The last lines say which
    conclusions hold.
    """
    contrasts = []
    if contrast is not None:
        before, _, after = contrast.partition(",")
        if not (before and after):
            raise UsageError(f"--contrast {contrast}: must be two arms, such as --contrast init-only,learned")
        contrasts.append((before, after))
    paths = [as_run(path, evaluated=True) for path in paths]
    refuse_paths(paths, evaluation=evaluation)
    from moslora.compare.comparison import compare_paths
    from moslora.compare.conclusion import lines
    from moslora.compare.display import tables
    from moslora.compare.gate import NOT_CONCLUDED, Gate

    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        comparison = compare_paths(
            paths,
            contrasts=contrasts,
            outcome=outcome,
            evaluation=evaluation,
            tasks=tasks,
            allowed=[field.strip() for fields in allow or () for field in fields.split(",")],
            cluster=cluster,
        ).within(margin)
    if better:
        comparison = comparison.with_direction(1 if better == "higher" else -1)
    if min_share is None:
        min_share = 0.9 if require else 0.0
    comparison.refuse_few(questions=min_questions, share=min_share)
    gate = Gate(comparison, require) if require or as_json else None
    if gate and as_json:
        print(gate.to_json())
    else:
        _print(tables(comparison), lines(comparison))
    if gate and require:
        if not as_json:
            print(gate)
        if not gate.concluded:
            raise typer.Exit(NOT_CONCLUDED)


@app.command()
def runs(folder: Annotated[Path, typer.Argument(help="Folder to look in.", file_okay=False)] = RUNS) -> None:
    """List runs with their adapter, steps, state and scores."""
    from moslora.runs.listing import table_of_runs

    print_table(table_of_runs(folder))


@app.command(epilog=examples.REPORT)
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN …",
            help="Runs, PEFT's folders, folders of runs, or an experiment.",
            autocompletion=completion.runs,
        ),
    ],
    out: Out = None,
    evaluation: Evaluation = None,
) -> None:
    """Write an HTML page about one or more runs.

    Shows their training, answers and mixers side by side. Every figure is also a PNG. Writes RUN/report, or report
    for several runs.
    """
    from moslora.report import write_report

    runs = [as_run(run) for run in runs]
    beside = runs[0] if len(runs) == 1 else Path()
    page = write_report(runs, out=out or beside / "report", evaluation=evaluation)
    print(f"written to {page}")


@app.command(epilog=examples.REPRODUCE)
def reproduce(
    run: Annotated[Path, typer.Argument(help="Finished run.", autocompletion=completion.runs)],
    out: Out = None,
    trust: Trust = False,
) -> None:
    """Train a run again and compare the two.

    Writes RUN-again, and prints whether the weights are bitwise equal, equal within a tolerance, or different.
    """
    from moslora.runs.resuming import refuse_reproduction
    from moslora.runs.run import Run

    beside = Path(os.path.abspath(run))
    out = out or beside.with_name(f"{beside.name}-again")
    refuse_reproduction(Run(run), out)
    from moslora.experiment.reproduce import reproduce as train_again

    print(train_again(Run(run), out=out, trust_remote_code=trust))


def _print(tables: Iterable[list[list[str]]], lines: Iterable[str]) -> None:
    """Print tables, an empty line below each, and then lines."""
    for table in tables:
        print_table(table)
        print()
    print(*lines, sep="\n")
