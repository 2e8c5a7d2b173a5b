"""The command line: parses, calls, prints. What it calls is imported when it is called."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from moslora import completion
from moslora.completion import RUNS
from moslora.errors import MosloraError, Terminated, UsageError, stopped
from moslora.launch import is_main_process

if TYPE_CHECKING:
    from moslora.recipe import Recipe


class Commands(TyperGroup):
    """The commands, with what ends one early turned into its line; Typer by itself exits without a word."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt as stop:
            raise stopped("stopped; nothing was left half written", stop) from None
        except BrokenPipeError:  # the reader of `moslora … | head` has seen enough
            _drop_output()
            raise typer.Exit(128 + signal.SIGPIPE) from None
        return result


app = typer.Typer(
    name="moslora",
    cls=Commands,
    help="Fine-tune LLaMA with MoSLoRA: low-rank adapters with a mixer between the factors, ΔW = s · B · M · A.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
recipes_app = typer.Typer(help="List, show and copy the recipes that come with moslora.", invoke_without_command=True)
data_app = typer.Typer(help="Fetch, look at and audit the eight commonsense sets.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")
app.add_typer(data_app, name="data")

_sources, _dtypes = completion.among("wheel", "hub"), completion.among("bfloat16", "float16", "float32")
Source = Annotated[
    str,
    typer.Option(
        "--source",
        help="wheel (from PyPI), hub, or a file or folder in LLM-Adapters' format.",
        autocompletion=_sources,
    ),
]
RecipeName = Annotated[
    str,
    typer.Argument(
        help="Name of a recipe that comes along, a file, or a run.", autocompletion=completion.recipes_and_runs
    ),
]
Run = Annotated[
    Path,
    typer.Argument(help="A run, its adapter/, or one of its checkpoints/step-N.", autocompletion=completion.runs),
]
Task = Annotated[str | None, typer.Option("--task", help="Of a task gate: the one task that the result is for.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write into.")]
Push = Annotated[
    str | None, typer.Option("--push", metavar="OWNER/NAME", help="Upload the folder to this repository on the hub.")
]
Public = Annotated[bool, typer.Option("--public", help="With --push: for everybody to see. [default: private]")]


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe file, the name of one that comes along, or a run to resume.",
            autocompletion=completion.recipes_and_runs,
        ),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value …, laid over the recipe.")] = None,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be trained, and stop.")] = False,
) -> None:
    """Train the adapter that a recipe describes."""
    run = Path(recipe)
    if resume and (run.is_dir() or (run.parent == RUNS and not run.exists())):
        from moslora.checkpoint import stored_recipe

        resolved, out = stored_recipe(run, overrides or ()), out or run
    else:
        resolved = _load_recipe(recipe, overrides)
    if dry_run:
        from moslora.training.dry_run import dry_run as preview

        for line in preview(resolved):
            print(line)
        return
    from moslora.training import train_recipe

    train_recipe(resolved, out=out or RUNS / resolved.name, resuming=resume)


@app.command("eval")
def evaluate(
    target: Annotated[
        str | None,
        typer.Argument(
            help="A run, an adapter folder, a model folder or a hub id. [default: newest run]",
            autocompletion=completion.runs,
        ),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="commonsense, or names with commas.", autocompletion=completion.tasks)
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="rank, cloze or generate.", autocompletion=completion.protocols)
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help="label, llm-adapters, cloze or cloze-passage.", autocompletion=completion.formats),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Score the base model, without the adapter.")] = False,
    limit: Annotated[int | None, typer.Option(help="Questions per task.", min=1)] = None,
    source: Annotated[
        str | None, typer.Option(help="Where the questions come from, as in a recipe.", autocompletion=_sources)
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32.", autocompletion=_dtypes)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Most sequences in one forward pass.", min=1)] = None,
    beams: Annotated[int | None, typer.Option(help="Beams of generate; 1 is greedy.", min=1)] = None,
    out: Out = None,
) -> None:
    """Score a model on the commonsense sets."""
    from moslora.checkpoint import newest_run
    from moslora.evaluation.target import evaluate_target, open_target
    from moslora.tasks import resolve_tasks

    if target is None:
        target = str(newest_run(RUNS))
        print(f"newest run: {target}")
    try:
        results, folder = evaluate_target(
            open_target(target, base=base, dtype=dtype, runs=RUNS),
            tasks=resolve_tasks(tasks) if tasks else None,
            protocol=protocol,
            format=format,
            limit=limit,
            source=source,
            batch_size=batch_size,
            beams=beams,
            out=out,
            progress=lambda task, done, total: print(f"  {task}: {done}/{total}", flush=True),
        )
    except KeyboardInterrupt as stop:
        raise stopped("stopped; what was scored is kept, and the same command goes on from there", stop) from None
    settings = results.settings
    print(f"protocol {settings.protocol}, format {settings.format}, {settings.precision}; shares in percent ± s.e.")
    _print_table(results.table())
    if leaks := results.leak_line():
        print(leaks)
    if results.drift is not None and results.macro.close_calls:
        print(
            f"{results.macro.close_calls} answers are closer than the arithmetic's own noise ({results.drift:.2g});"
            " --dtype float32 decides them"
        )
    print(f"written to {folder}")


@app.command()
def ask(
    target: Annotated[
        str,
        typer.Argument(help="A run, an adapter folder, a model folder or a hub id.", autocompletion=completion.runs),
    ],
    question: Annotated[str | None, typer.Option(help="The question. [default: read from the terminal]")] = None,
    option: Annotated[list[str] | None, typer.Option(help="One of its options; give two or more.")] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Whose prompt. [default: boolq for yes and no or true and false, else arc_easy]",
            autocompletion=completion.task,
        ),
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="rank or cloze. [default: the run's]", autocompletion=completion.protocols)
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help="label, llm-adapters or cloze. [default: the run's]", autocompletion=completion.formats),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Ask the base model, without the adapter.")] = False,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32.", autocompletion=_dtypes)] = None,
) -> None:
    """Answer a question of yours: its options with their probabilities, the likeliest first.

    Without --question it is read, a line, then the options, one a line, up to an empty line. It is put as a question of
    ARC is (Question: …, with any number of options), or of BoolQ (yes or no). Any other set's prompt is had by --task:
    winogrande's sentence has a _ where the options go, hellaswag's text begins with its activity and a colon.
    """
    from moslora.evaluation.ask import ask as ask_target
    from moslora.evaluation.ask import read_typed
    from moslora.evaluation.target import open_target

    opened = open_target(target, base=base, dtype=dtype, runs=RUNS)
    if question is None or (not option and task != "boolq"):
        question, option = read_typed(sys.stdin, question=question, options=option or ())
    answers = ask_target(opened, question=question, options=option or (), task=task, protocol=protocol, format=format)
    print(answers)
    for answer in answers.options:
        print(f"{answer.probability:7.1%}  log p {answer.log_probability:8.3f}  {answer.option}")


@app.command()
def merge(
    run: Run,
    onto: Annotated[
        str, typer.Option(help="Of a quantised base: its original weights, or dequantized, as the adapter met them.")
    ] = "original",
    task: Task = None,
    out: Out = None,
    push: Push = None,
    public: Public = False,
) -> None:
    """Fold the adapter into the base's weights: an ordinary Hugging Face model."""
    from moslora.checkpoint import locate_adapter, run_folder
    from moslora.merge import merge as merge_adapter

    _check_push(push, public)
    adapter = locate_adapter(run)
    out = out or run_folder(adapter) / "merged"
    print(merge_adapter(adapter, out=out, onto=onto, task=task))
    print(f"written to {out}")
    _push(out, push, public)


@app.command()
def export(
    run: Run,
    format: Annotated[
        str,
        typer.Option(help="peft: a plain LoRA with the mixer folded in.", autocompletion=completion.among("peft")),
    ] = "peft",
    task: Task = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Leave out rows that are zero, such as those AdaLoRA dropped.")
    ] = False,
    out: Out = None,
    push: Push = None,
    public: Public = False,
) -> None:
    """Write the adapter in the format of another library."""
    from moslora.checkpoint import locate_adapter, run_folder
    from moslora.convert import export_peft

    if format != "peft":
        raise UsageError(f"--format {format}: moslora exports to peft")
    _check_push(push, public)
    adapter = locate_adapter(run)
    out = export_peft(adapter, out=out or run_folder(adapter) / "peft", task=task, compact=compact)
    print(f"written to {out}")
    _push(out, push, public)


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="A folder with adapter_config.json and adapter_model.* in it.")],
    base: Annotated[str | None, typer.Option(help="The base model. [default: the one that the source names]")] = None,
    dtype: Annotated[
        str, typer.Option(help="What the run loads its base in: bfloat16, float16, float32.")
    ] = "bfloat16",
    out: Annotated[Path | None, typer.Option("--out", help="Run folder. [default: runs/NAME OF THE SOURCE]")] = None,
) -> None:
    """Read an adapter of the MoSLoRA repository, or a LoRA of PEFT, as a run of ours.

    A checkpoint of the Trainer (pytorch_model.bin) works too. Everything has to be understood, or nothing is written,
    and what was written is compared with the source's own equations.
    """
    from moslora.convert import import_adapter

    out = out or RUNS / source.resolve().name
    print(import_adapter(source, out=out, base=base, dtype=dtype))
    print(f"written to {out}")


@app.command()
def quickstart(out: Out = None) -> None:
    """Train, evaluate and merge a small model on this machine in a quarter of an hour."""
    from moslora.quickstart import quickstart as run_quickstart

    table, verdict = run_quickstart(out=out or RUNS / "quickstart")
    _print_table(table)
    for line in verdict:
        print(line)


@recipes_app.callback()
def recipes(context: typer.Context) -> None:
    """List the recipes that come with moslora."""
    if context.invoked_subcommand is None:
        from moslora.recipe import list_recipes

        for name, purpose in list_recipes():
            print(f"{name:32}{purpose}")


@recipes_app.command("copy")
def copy(
    name: RecipeName,
    destination: Annotated[Path, typer.Argument(help="File or folder to write.")] = Path("."),
) -> None:
    """Copy a recipe, to be changed."""
    from moslora.recipe import copy_recipe

    print(f"written to {copy_recipe(_recipe_file(name), destination)}")


@recipes_app.command("show")
def show_recipe(
    name: RecipeName,
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value …, laid over the recipe.")] = None,
) -> None:
    """Print every value of a recipe, and the file that it comes from."""
    from moslora.recipe import trace_recipe

    rows = trace_recipe(_recipe_file(name), overrides or ())
    keys, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    for key, value, origin in rows:
        print(f"{key:{keys}}  {value:{min(values, 36)}}  {origin}")


@recipes_app.command("schema")
def schema() -> None:
    """Print the JSON schema of recipe files, for editors."""
    import json

    from moslora.recipe import recipe_schema

    print(json.dumps(recipe_schema(), indent=2, ensure_ascii=False))


@data_app.command("fetch")
def fetch(
    tasks: Annotated[
        str, typer.Option(help="commonsense, or names with commas.", autocompletion=completion.tasks)
    ] = "commonsense",
    source: Source = "wheel",
) -> None:
    """Download the sets into the cache, and count their rows."""
    from moslora.data.sources import load_examples
    from moslora.tasks import TASKS, resolve_tasks

    for task in resolve_tasks(tasks):
        counts = {split: len(load_examples(task, split, source=source)) for split in TASKS[task].splits}
        print(f"{task:16}" + "  ".join(f"{split} {count:,}" for split, count in counts.items()))


@data_app.command("show")
def show(
    task: Annotated[str, typer.Argument(help="Name of a set.", autocompletion=completion.task)],
    format: Annotated[
        str,
        typer.Option(help="label, llm-adapters, cloze or cloze-passage.", autocompletion=completion.formats),
    ] = "label",
    row: Annotated[int, typer.Option(help="Which row, from 0.", min=0)] = 0,
    split: Annotated[
        str, typer.Option(help="train, test or dev.", autocompletion=completion.among("train", "test", "dev"))
    ] = "train",
    source: Source = "wheel",
    model: Annotated[str, typer.Option(help="Whose tokenizer.")] = "smollm2-135m-instruct",
    max_length: Annotated[int, typer.Option(help="Longest row in tokens.", min=1)] = 512,
    loss_on: Annotated[
        str, typer.Option(help="response or all.", autocompletion=completion.among("response", "all"))
    ] = "response",
) -> None:
    """Print one example as text, as tokens, and with its label mask."""
    from moslora.data.show import show_example
    from moslora.model import load_tokenizer

    print(
        show_example(
            task,
            split=split,
            row=row,
            format=format,
            source=source,
            tokenizer=load_tokenizer(model),
            max_length=max_length,
            loss_on=loss_on,
        )
    )


@data_app.command("audit")
def audit(
    tasks: Annotated[
        str, typer.Option(help="commonsense, or names with commas.", autocompletion=completion.tasks)
    ] = "commonsense",
    source: Source = "wheel",
    model: Annotated[str, typer.Option(help="Whose tokenizer.")] = "smollm2-135m-instruct",
    format: Annotated[
        str, typer.Option(help="label, llm-adapters, cloze or cloze-passage.", autocompletion=completion.formats)
    ] = "label",
    max_length: Annotated[int, typer.Option(help="Longest row in tokens.", min=1)] = 512,
    json: Annotated[Path | None, typer.Option("--json", help="File for all counts.")] = None,
) -> None:
    """Count lengths, repeated rows, conflicting answers, and test questions in the training rows."""
    from moslora.data.audit_text import audit_report
    from moslora.model import load_tokenizer
    from moslora.tasks import resolve_tasks

    if json is not None and (json.is_dir() or not json.parent.is_dir()):
        raise UsageError(f"--json {json}: give a file in a folder that exists")
    report = audit_report(
        resolve_tasks(tasks),
        source=source,
        tokenizer=load_tokenizer(model),
        format=format,
        max_length=max_length,
    )
    _print_table(report.table)
    for line in report.lines:
        print(line)
    if json is not None:
        from moslora.checkpoint import write_json

        write_json(json, report.counts)
        print(f"written to {json}")


def _check_push(repo: str | None, public: bool) -> None:
    from moslora.publish import check_repository

    check_repository(repo, public=public)


def _push(folder: Path, repo: str | None, public: bool) -> None:
    from moslora.publish import push

    if repo is not None:
        print(f"uploaded to {push(folder, repo, public=public)}")


def _load_recipe(name: str, overrides: list[str] | None) -> "Recipe":
    from moslora.recipe import load_recipe

    return load_recipe(name, overrides or ())


def _recipe_file(name: str) -> str:
    """The recipe of a run, where `name` is one; unlike `Path.is_file`, this lets any text pass."""
    inside = os.path.join(name, "recipe.yaml")
    return inside if os.path.isfile(inside) else name


def _print_table(rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0], box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows[1:]:
        table.add_row(*row)
    # A table that is piped into a file keeps its columns.
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)


def _drop_output() -> None:
    """Lets Python's last flush go nowhere, where the output is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def main() -> None:
    """Entry point: faults of use, of the run and of the disk end in one line each, without a traceback."""
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except MosloraError as error:
        _end(error)
    except KeyboardInterrupt as stop:  # before a command began
        _end(stopped("stopped", stop))
    except Exception as error:
        from moslora.disk import disk_fault

        if (fault := disk_fault(error)) is None:
            raise  # a mistake of ours, which must be seen
        _end(fault)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _end(error: MosloraError) -> NoReturn:
    """Says what ended the command, on the process that speaks for all, and exits with its code."""
    if is_main_process():
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
