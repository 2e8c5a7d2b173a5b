"""Modules as commands, and measurements in separate processes."""

import argparse
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from benchmarks import ROOT


def command(main: Callable[..., Any], *workers: Callable[..., Any], **choices: Collection[str]) -> None:
    """Call ``main`` with the command line: its keywords are the options, its other parameters the arguments.

    Args:
        main: function whose result is the exit code.
        workers: functions called instead if the command line begins with their name; their result is printed as JSON.
        choices: parameter -> allowed values.
    """
    words = sys.argv[1:]
    for worker in workers:
        if words and words[0] == worker.__name__:
            found = worker(**_parsed(worker, words[1:], {}))
            if found is not None:
                print("\n" + json.dumps(found))
            return
    sys.exit(main(**_parsed(main, words, choices)))


def _parsed(function: Callable[..., Any], words: Sequence[str], choices: dict[str, Collection[str]]) -> dict[str, Any]:
    """Parse ``words`` into the parameters of ``function``, by the types of their annotations."""
    about = sys.modules[function.__module__].__doc__
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    types = get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        kind = types[name]
        settings: dict[str, Any] = {}
        if parameter.default is not parameter.empty:
            settings["default"] = parameter.default
        if kind is bool:
            settings["action"] = "store_true"
        else:
            settings["type"] = next(iter(get_args(kind)), kind)  # of a tuple its entries', of `Path | None` Path
            settings["choices"] = choices.get(name)
        if get_origin(kind) is tuple:
            settings["nargs"] = "+"
        if parameter.kind is parameter.KEYWORD_ONLY:
            name = f"--{name.replace('_', '-')}"
        elif "default" in settings:
            settings["nargs"] = "?"
        parser.add_argument(name, **settings)
    return vars(parser.parse_args(words))


def in_process(
    work: Callable[..., Any],
    *words: object,
    launch: Sequence[str] = (),
    environment: dict[str, str] | None = None,
) -> Any:
    """Run a worker of a module's `command` in a separate process and return its result.

    Args:
        work: the worker.
        words: its arguments.
        launch: options of Python that start several processes.
        environment: additional environment variables.

    Raises:
        RuntimeError: it failed, with the end of its error output.
    """
    module: Any = sys.modules[work.__module__]
    line = [sys.executable, *launch, "-m", module.__spec__.name, work.__name__, *(str(word) for word in words)]
    quiet = os.environ | {"TQDM_DISABLE": "1"} | (environment or {})
    ran = subprocess.run(line, capture_output=True, text=True, check=False, env=quiet, cwd=ROOT)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(line)}: {ran.stderr[-2000:]}")
    return json.loads(ran.stdout.splitlines()[-1])


def in_turns(
    work: Callable[..., Any], contestants: Sequence[str], *words: object, repetitions: int = 1
) -> dict[str, list[dict[str, Any]]]:
    """Results of each contestant's processes, which take turns, so that other load slows all alike."""
    found: dict[str, list[dict[str, Any]]] = {who: [] for who in contestants}
    for _ in range(repetitions):
        for who in contestants:
            one = in_process(work, who, *words)
            found[who].append(one)
            print(
                who,
                *words,
                {key: round(value, 2) for key, value in one.items() if isinstance(value, float)},
                flush=True,
            )
    return found


def run_command(*words: str | Path) -> None:
    """Print and run a command."""
    print("$", *words, flush=True)
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)
