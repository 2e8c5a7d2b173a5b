"""Arguments and options that several commands share. An option has its parameter's name, unless it is a flag."""

import functools
import gc
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from moslora import choices
from moslora.cli import completion
from moslora.prompts.protocols import ProtocolName

SOURCES = "Source of the rows: wheel (PyPI), hub, commonsense_170k, a file, or a folder in LLM-Adapters' layout."
Source = Annotated[str, typer.Option(help=SOURCES)]
SourceOrRecipes = Annotated[str | None, typer.Option(help=f"{SOURCES} [default: the recipe's, or wheel]")]
TARGET = typer.Argument(
    help="Run, adapter folder (also PEFT's), model folder or hub id.", autocompletion=completion.runs
)
RecipeName = Annotated[
    str,
    typer.Argument(
        help="Built-in recipe, recipe file, or run.",
        autocompletion=completion.recipes_and_runs,
    ),
]
Run = Annotated[
    Path,
    typer.Argument(
        help="Run, its adapter/, one of its checkpoints/step-N, or PEFT's folder.", autocompletion=completion.runs
    ),
]
Task = Annotated[str | None, typer.Option(help="Task of the result. Required if the adapter has a task gate.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run the Python code that comes with the base model.")]


def output_folder(out: Path | None) -> Path | None:
    """Return the folder of ``--out``, which must not lie in an adapter or among the checkpoints of a run."""
    if out is not None:
        from moslora.runs.run import refuse_inside_adapter

        refuse_inside_adapter(out)
    return out


Out = Annotated[
    Path | None,
    typer.Option(help="Output folder. [default: in the run's folder, or in runs/]", callback=output_folder),
]
ServedModel = Annotated[str | None, typer.Option(help="Name of the model on the server. [default: its only one]")]
AtOnce = Annotated[int, typer.Option(help="Number of requests to the server at the same time.", min=1)]
Evaluation = Annotated[
    str | None, typer.Option(help="Name of a folder in the run's eval/. [default: the recipe's]", metavar="NAME")
]
TASKS = typer.Option(
    help="Tasks, separated by commas: commonsense, single sets, passages, the run's own tasks, YAML files with tasks.",
    autocompletion=completion.tasks,
)
Tasks = Annotated[str, TASKS]
Format = Annotated[choices.FormatName | None, typer.Option(help="Prompt format. [default: the recipe's]")]
Tokenizer = Annotated[str | None, typer.Option(help="Model whose tokenizer is used. [default: the recipe's]")]
MaxLength = Annotated[int | None, typer.Option(help="Maximum number of tokens per row. [default: the recipe's]", min=1)]
Processes = Annotated[
    int | None, typer.Option(help="Number of processes on this machine. [default: its GPUs, or 1]", min=1)
]
Restarts = Annotated[
    int | None,
    typer.Option(help="Number of restarts after a killed process. [default: 3 with several processes, or 0]", min=0),
]
Strategy = Annotated[
    choices.Strategy | None,
    typer.Option(help="ddp: each process holds the whole model; fsdp: each holds a shard. [default: as trained]"),
]
DType = Annotated[
    choices.DType | None, typer.Option(help="Precision of weights and computation. [default: the recipe's]")
]
Engine = Annotated[
    choices.EngineChoice | None,
    typer.Option(help="What computes the model: own, padded, transformers, or auto. [default: as trained]"),
]
Protocol = Annotated[ProtocolName | None, typer.Option(help="Protocol: how an answer is read from the model.")]
BatchTokens = Annotated[int | None, typer.Option(help="Maximum number of tokens per forward pass.", min=1)]
MaxQuestionLength = Annotated[
    int | None, typer.Option(help="Maximum number of tokens per question with its answer.", min=1)
]
Beams = Annotated[int | None, typer.Option(help="Number of beams for protocol generate. 1 is greedy.", min=1)]
Server = Annotated[str | None, typer.Option(help="Address of a server to ask instead, such as http://localhost:8000.")]
Base = Annotated[bool, typer.Option("--base", help="Use the base model without the adapter.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="training.learning_rate=1e-4", help="Overrides of the recipe, as key.sub=value."),
]


@dataclass(frozen=True)
class Answering:
    """Options of the commands that ask a model or a server the questions of a file or a set."""

    protocol: Protocol = None
    format: Format = None
    base: Base = False
    dtype: DType = None
    engine: Engine = None
    batch_tokens: BatchTokens = None
    max_length: MaxQuestionLength = None
    beams: Beams = None
    server: Server = None
    model: ServedModel = None
    at_once: AtOnce = 8
    processes: Processes = None
    strategy: Strategy = None
    trust: Trust = False

    @property
    def how(self) -> dict[str, Any]:
        """Arguments of `open_target`."""
        return {
            "base": self.base,
            "dtype": self.dtype,
            "engine": self.engine,
            "strategy": self.strategy,
            "trust_remote_code": self.trust,
        }

    @property
    def overrides(self) -> dict[str, Any]:
        """Settings of the evaluation that the user set."""
        names = ("protocol", "format", "batch_tokens", "max_length", "beams")
        return drop_unset(**{name: getattr(self, name) for name in names})


def with_answering(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, in place of its last parameter ``answering``, the options of `Answering`."""
    parameters = inspect.signature(command).parameters
    common = inspect.signature(Answering).parameters

    @functools.wraps(command)
    def with_options(**values: Any) -> None:
        answering = Answering(**{name: values.pop(name) for name in common})
        command(answering=answering, **values)

    own = [parameter for name, parameter in parameters.items() if name != "answering"]
    signature = inspect.Signature([*own, *common.values()])
    with_options.__signature__ = signature  # type: ignore[attr-defined]
    with_options.__annotations__ = {name: each.annotation for name, each in signature.parameters.items()}
    return with_options


def drop_unset(**values: Any) -> dict[str, Any]:
    """Keep the options that the user set; the commands' own code knows the defaults of the others."""
    return {name: value for name, value in values.items() if value is not None}


@contextmanager
def importing() -> Iterator[None]:
    """Import torch and transformers in the block without garbage collection, which would be a seventh of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
