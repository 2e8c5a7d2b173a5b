"""Entry point of the command line: signals, exit codes, and errors in one line each."""

import atexit
import gc
import io
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from moslora.cli import data, exchange, machine, models, predict, recipes, strength, studies
from moslora.cli.examples import FIRST_STEPS
from moslora.cli.usage import TyperUsageError, one_line
from moslora.console import drop_output, repeat_warnings
from moslora.errors import MosloraError, Terminated, UsageError, on_interrupt
from moslora.files import disk_fault
from moslora.kernels.plain import disabled_kernels
from moslora.process_rank import launched
from moslora.processes.launch import STOPPED, adopt_slurm, end_with_launcher
from moslora.version import __version__
from moslora.versions import import_fault


class Commands(TyperGroup):
    """Group of all commands, which turns usage errors, Ctrl-C and a closed pipe into a line and an exit code."""

    def main(self, *arguments: Any, standalone_mode: bool = True, **others: Any) -> Any:
        others["standalone_mode"] = False  # otherwise Typer prints its errors and exits
        try:
            code = super().main(*arguments, **others)
        except TyperUsageError as error:
            # `moslora data`: the error's text is the help. Its class has another package in each version of Typer.
            if type(error).__name__ == "NoArgsIsHelpError":
                print(error, file=sys.stderr)
                sys.exit(UsageError.exit_code)
            raise UsageError(one_line(error)) from None
        if standalone_mode:
            sys.exit(code)
        return code

    def invoke(self, ctx: Any) -> Any:
        with on_interrupt("stopped: no half-written files were left"):
            try:
                result = super().invoke(ctx)
                sys.stdout.flush()
                return result
            except BrokenPipeError:  # `moslora … | head`
                drop_output()
                raise typer.Exit(128 + signal.SIGPIPE) from None


app = typer.Typer(
    name="moslora",
    cls=Commands,
    help="Fine-tune LLaMA with low-rank adapters, then evaluate, compare and merge them.\n\n"
    "MoSLoRA puts a mixer M between the factors: ΔW = s · B · M · A.",
    epilog="moslora alone prints the first steps. moslora COMMAND --help has examples.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def options(
    ctx: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False
) -> None:
    if version:
        print(f"moslora {__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(FIRST_STEPS)


app.add_typer(models.app)
app.add_typer(predict.app)
app.add_typer(strength.app)
app.add_typer(exchange.app)
app.add_typer(machine.app)
app.add_typer(studies.app)
app.add_typer(recipes.app, name="recipes")
app.add_typer(data.app, name="data")


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def main() -> None:
    """Run the command in ``sys.argv``. Errors of use, of the run and of the disk end in one line each."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every encoding has Δ
    end_with_launcher()
    adopt_slurm()
    _set_defaults_of_libraries()
    atexit.register(gc.freeze)  # otherwise the last garbage collection takes 0.8 s over torch and transformers
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        with on_interrupt("stopped"):  # before a command starts
            disabled_kernels()  # refuses unknown names of kernels
            app(prog_name="moslora")  # also for `python -m moslora`
    except Exception as error:
        fault = error if isinstance(error, MosloraError) else disk_fault(error) or import_fault(error)
        _end_other_processes(fault or error)
        if fault is None:
            raise  # a bug: show the traceback
        _print_fault(fault)
        sys.exit(fault.exit_code)
    finally:
        repeat_warnings()
        signal.signal(signal.SIGTERM, previous)


def _set_defaults_of_libraries() -> None:
    """Set environment variables that the libraries read when they are loaded, unless the user has set them."""
    if launched():  # torch warns of a lost process with a stack of C++
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the old name; steps of many sizes leave gaps in a GPU's memory
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("USE_HUB_KERNELS", "NO")  # transformers would download compiled code, and run it
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # rows are read within seconds
    if "OMP_WAIT_POLICY" not in os.environ:  # torch's threads wait in a loop for milliseconds, on cores others need
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # turns; some 100 µs
        os.environ.setdefault("KMP_BLOCKTIME", "1")  # ms


def _end_other_processes(error: Exception) -> None:
    """End the other processes of a training or an evaluation, which would wait for this one forever.

    In a dry run, and in other commands, no process waits for another.
    """
    if not launched() or "--dry-run" in sys.argv:
        return
    if sys.argv[1] in ("train", "eval", "predict"):
        from moslora.processes.group import end

        end(error)


def _print_fault(fault: MosloraError) -> None:
    """Print each line of an error, with "error: " before it unless the user stopped the command."""
    beginning = "" if fault.exit_code in STOPPED else "error: "
    with suppress(OSError):  # the terminal may be closed
        for line in str(fault).splitlines():
            print(f"{beginning}{line}", file=sys.stderr)
