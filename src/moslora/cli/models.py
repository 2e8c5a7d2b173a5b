"""The commands on one model: ``train``, ``plan``, ``eval``, ``ask``, ``merge``, ``verify``.

Commands parse options, refuse mistakes before torch is loaded, call one function of another package, and print its
result.
"""

import re
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from moslora import choices
from moslora.cli import completion, early, examples, options
from moslora.cli.following import after_scoring, after_training, say_next, say_strength
from moslora.cli.peft_folder import adapter_to_convert, as_run, imported
from moslora.cli.processes import run_in_processes
from moslora.cli.table import print_table
from moslora.console import say
from moslora.errors import UsageError, on_interrupt
from moslora.process_rank import is_main_process
from moslora.prompts.protocols import ScoringProtocolName
from moslora.runs import RUNS

if TYPE_CHECKING:
    from moslora.evaluation.ask import Chat
    from moslora.recipe import Recipe

app = typer.Typer()


@app.command(epilog=examples.TRAIN)
def train(
    recipe: options.RecipeName,
    overrides: options.Overrides = None,
    out: options.Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    processes: options.Processes = None,
    max_restarts: options.Restarts = None,
) -> None:
    """Train an adapter from a recipe.

    Uses all GPUs of this machine. --resume continues an interrupted run.
    """
    from moslora.recipe import load_recipe
    from moslora.runs.run import Run
    from moslora.training import refuse_training

    path = Path(recipe)
    is_named_run = path.is_dir() or (path.parent == RUNS and not path.exists())
    if resume and is_named_run:
        run = Run(path)
        resolved = run.recipe_to_resume(overrides or ())
    else:
        resolved = load_recipe(recipe, overrides or ())
        run = Run(RUNS / resolved.name)
    if out is not None:
        run = Run(out)
    if dry_run:
        _print_plan(resolved, _as_typed(recipe, overrides))
    refuse_training(resolved, run, resuming=resume)
    then = "the same command with --resume continues from the last checkpoint"
    most = resolved.training.global_batch_size
    run_in_processes(processes, then=then, restarts=max_restarts, run=run.path, most=most)
    with options.importing():
        from moslora.plan.slow_cpu import note_training
        from moslora.training.session import train_run

    note_training(resolved, overrides=_as_typed(recipe, overrides))
    train_run(resolved, run, resuming=resume)
    say_strength(run)
    say_next(*after_training(run))


@app.command(epilog=examples.PLAN)
def plan(
    recipe: options.RecipeName,
    overrides: options.Overrides = None,
    processes: Annotated[
        int | None, typer.Option(help="Number of processes, one per device. [default: the GPUs here, or 1]", min=1)
    ] = None,
    gpu_memory: Annotated[
        str | None, typer.Option(help="Memory per GPU, such as 80GB. [default: this machine's]")
    ] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Run a few steps here to measure the time.")] = False,
) -> None:
    """Estimate the memory, disk and time of a run.

    Loads no weights, except with --probe. Downloads at most a model's config, and data sets that the recipe's
    source or tasks name, to count their rows. The exit code is 1 if the run does not fit.
    """
    from moslora.plan.sizes import parse_bytes
    from moslora.recipe import load_recipe

    resolved = load_recipe(recipe, overrides or ())
    if gpu_memory is not None:
        parse_bytes(gpu_memory)
    _print_plan(resolved, _as_typed(recipe, overrides), processes=processes, gpu_memory=gpu_memory, probing=probe)


def _limit(text: str) -> int:
    """Parse a number of questions per task, or "all" as 0."""
    if text == "all":
        return 0
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise typer.BadParameter("must be a number of questions per task, or all")
    return int(text)


@app.command("eval", epilog=examples.EVAL)
@options.with_answering
def evaluate(
    target: Annotated[str | None, options.TARGET] = None,
    tasks: Annotated[str | None, options.TASKS] = None,
    limit: Annotated[int | None, typer.Option(help="Number of questions per task, or all.", parser=_limit)] = None,
    source: Annotated[
        str | None, typer.Option(help="Source of the questions, like evaluation.source in a recipe.")
    ] = None,
    out: options.Out = None,
    *,
    answering: options.Answering,
) -> None:
    """Score a model on test questions, by default the newest run.

    The tasks are those of the run's recipe, or the commonsense sets. Uses all GPUs of this machine. If it was stopped,
    the same command continues.

    With --server, a server with OpenAI's interface answers instead of the model. MOSLORA_SERVER_KEY may have its key.
    """
    overrides = answering.overrides | options.drop_unset(source=source)
    if limit is not None:
        overrides["limit"] = limit or None
    early.refuse_mixed_models(answering)
    from moslora.evaluation.target import open_target
    from moslora.runs.run import newest_run

    words = sys.argv[1:]
    is_newest = target is None
    if target is None:
        target = str(newest_run(RUNS, Path()).path)
        words = ["eval", target, *sys.argv[2:]]
    opened = open_target(target, **answering.how)
    early.refuse_evaluation(opened, tasks=tasks, overrides=overrides, out=out)
    opened = imported(opened, target, **answering.how)
    if answering.server is None:
        run_in_processes(answering.processes, then="the same command continues from the scores so far")
    if is_newest:
        say(f"newest run: {target}")
    with options.importing():
        from moslora.evaluation.display import heading, remarks, table, tables_by_option
        from moslora.evaluation.evaluate_target import evaluate_target
        from moslora.evaluation.server import open_server
        from moslora.plan.slow_cpu import note_evaluation

    with on_interrupt("stopped: the scores so far are kept, and the same command continues from there"):
        opened_server = open_server(answering.server, answering.model) if answering.server else None
        if opened_server is None:
            note_evaluation(opened.model, opened.request_with(overrides), opened.tasks_to_ask(tasks))
        results, folder = evaluate_target(
            opened, tasks=tasks, out=out, server=opened_server, at_once=answering.at_once, **overrides
        )
    if is_main_process():
        print_table(table(results), above=[heading(results)])
        for rows in tables_by_option(results, opened.tasks_to_ask(tasks)):
            print()
            print_table(rows)
        print(*remarks(results), f"written to {folder}", sep="\n")
        if opened.run and out is None:
            say_next(*after_scoring(folder, opened.run, words=words))


@app.command(epilog=examples.ASK)
def ask(
    target: Annotated[str, options.TARGET],
    question: Annotated[str | None, typer.Option(help="Question. [default: read from the terminal]")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="Answer option; repeat it for each. [default: the options of the run's own task]"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Task whose prompt to use. [default: the run's own, else boolq for yes/no, else arc_easy]",
            autocompletion=completion.tasks,
        ),
    ] = None,
    protocol: Annotated[
        ScoringProtocolName | None, typer.Option(help="Protocol: how the options are scored. [default: the run's]")
    ] = None,
    format: options.Format = None,
    system: Annotated[str, typer.Option(help="System message before a question without options.")] = "",
    max_tokens: Annotated[
        int | None, typer.Option(help="Maximum number of tokens of an answer in words. [default: 256]", min=1)
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="Temperature of an answer in words; 0 for the likeliest tokens.", min=0)
    ] = 0.0,
    base: options.Base = False,
    dtype: options.DType = None,
    engine: options.Engine = None,
    trust: options.Trust = False,
) -> None:
    """Ask a model a question, with or without options, or talk.

    Prints the options with their probabilities, the best score first. Without options, the model answers in words. If
    all questions of the run's own task have the same options, these are the default.

    Without --question, a terminal starts a conversation in the chat template, which an empty line ends. If the run was
    trained in another format, or the input is no terminal, the command reads one question and then its options, one per
    line, up to an empty line.

    The prompt is that of the run's own task, else BoolQ's for yes/no, else ARC's. --task selects another one: a
    winogrande sentence has a _ in the place of the options, and a hellaswag text starts with its activity and a colon.
    """
    from moslora.evaluation.target import open_target
    from moslora.evaluation.typed_question import as_example, read_typed

    how: dict[str, Any] = {"base": base, "dtype": dtype, "engine": engine, "trust_remote_code": trust}
    opened = open_target(target, **how)
    may_chat = question is None and not (option or task or protocol) and sys.stdin.isatty()
    if not may_chat or (opened.recipe is not None and (format or opened.request.format) != "chat"):
        if question is None:
            question, option = read_typed(sys.stdin, options=option or ())
        as_example(question, option or (), task=task, own=opened.own_tasks)  # refuses before torch is loaded
    with options.importing():
        from moslora.evaluation.ask import Chat, InWords, has_turns
        from moslora.evaluation.ask import ask as ask_target

    opened = imported(opened, target, **how)
    in_words = InWords(system=system, max_tokens=max_tokens, temperature=temperature)
    if question is None and has_turns(opened, format):
        _talk(Chat.of(opened, in_words))
        return
    if question is None:
        question, option = read_typed(sys.stdin, options=())
    overrides = options.drop_unset(protocol=protocol, format=format)
    answers = ask_target(opened, question=question, options=option or (), task=task, in_words=in_words, **overrides)
    print(answers)
    if not answers.options:
        print((answers.prediction.text or "").strip())
    for answer in answers.options:
        print(
            f"{answer.probability:7.1%}  score {answer.score:8.3f}  log p {answer.log_probability:8.3f}"
            f"  {answer.option}"
        )


def _talk(chat: "Chat") -> None:
    """Hold a conversation in the terminal, which an empty line ends."""
    from moslora.evaluation.typed_question import read_line

    while question := read_line(sys.stdin, "> "):
        print(chat.answer(question), flush=True)


@app.command(epilog=examples.MERGE)
def merge(
    run: options.Run,
    out: options.Out = None,
    onto: Annotated[choices.Onto, typer.Option(help="Weights of a quantised base to merge into.")] = "original",
    task: options.Task = None,
    dtype: options.DType = None,
    trust: options.Trust = False,
) -> None:
    """Merge an adapter into its base: a plain Hugging Face model.

    Writes W + ΔW into RUN/merged or RUN/merged-TASK, after comparing it with the adapter.
    """
    adapter, out = adapter_to_convert(run, out, task, name="merged", doing="merging", trust=trust)
    from moslora.convert.card import how_to_use
    from moslora.convert.merge import merge as merge_adapter

    print(merge_adapter(adapter, out=out, onto=onto, task=task, dtype=dtype, trust_remote_code=trust))
    print(how_to_use(out, adapter))


@app.command(epilog=examples.VERIFY)
def verify(
    run: Annotated[Path, typer.Argument(help="Run, PEFT's folder, or a merged model.", autocompletion=completion.runs)],
    server: Annotated[str | None, typer.Option(help="Address of the server, such as http://localhost:8000.")] = None,
    program: Annotated[
        Literal["vllm"] | None,
        typer.Option("--for", help="Without a server, print which modules of the adapter this program applies."),
    ] = None,
    model: options.ServedModel = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks, separated by commas. [default: the evaluated tasks]")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Number of questions per task, or all. [default: 64 in total]", parser=_limit),
    ] = None,
    evaluation: options.Evaluation = None,
    dtype: Annotated[
        choices.DType | None, typer.Option(help="Precision of the server. [default: the run's, or float16]")
    ] = None,
    at_once: options.AtOnce = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    out: options.Out = None,
    trust: options.Trust = False,
) -> None:
    """Check whether a server really serves a run.

    Asks the server the run's own questions and says what it serves: this run, its base, or something else. If the run
    or its base has not answered them yet, it is scored first. Works with servers that have OpenAI's interface, such as
    vLLM, llama.cpp, SGLang and transformers. MOSLORA_SERVER_KEY may have the server's key.

    The last line is the verdict. The exit code is 1 if the server does not serve this run.
    """
    from moslora.runs.run import locate_adapter

    if (server is None) == (program is None):
        raise UsageError("verify: give either --server ADDRESS, or --for vllm, which needs no server")
    progress = sys.stderr if as_json else sys.stdout
    if program is not None:
        from moslora.verify.vllm import applied_modules

        with redirect_stdout(progress):
            modules = applied_modules(run, trust_remote_code=trust)
        print(modules.to_json().rstrip() if as_json else "\n".join(modules.printed))
        raise typer.Exit(not modules.passed)
    assert server is not None
    run = as_run(run, trust_remote_code=trust)
    is_merged = (run / "config.json").is_file()
    if not is_merged:
        locate_adapter(run)  # refuses a folder without an adapter before torch is loaded
    with options.importing():
        from moslora.verify.verification import verify as verify_run

    message = "stopped: the replies so far are kept, and the same command continues from there"
    with on_interrupt(message), redirect_stdout(progress):
        report = verify_run(
            run,
            server,
            model=model,
            tasks=tasks,
            limit=limit,
            evaluation=evaluation,
            dtype=dtype,
            at_once=at_once,
            out=out,
            trust_remote_code=trust,
        )
    if as_json:
        print(report.to_json(), end="")
    else:
        print(*report.printed, sep="\n")
    if not report.verdict.passed:
        raise typer.Exit(1)


def _as_typed(recipe: str, overrides: list[str] | None) -> str:
    """The name of the recipe and its overrides as shell words, for a command that is suggested."""
    return shlex.join([recipe, *(overrides or ())])


def _print_plan(recipe: "Recipe", overrides: str, **options: Any) -> NoReturn:
    """Print the plan of a run, and exit with 1 if the run does not fit this machine."""
    from moslora.data.sources import refuse_missing

    refuse_missing(recipe.training_tasks, "train", source=recipe.data.source)
    from moslora.plan.plan import plan as plan_run

    planned = plan_run(recipe, overrides=overrides, **options)
    print_table(planned.table, above=planned.heading, below=planned.remarks)
    raise typer.Exit(not planned.fits)
