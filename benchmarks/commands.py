"""Modules as commands, and measurements in processes of their own."""

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
    """Calls ``main`` with what the command line says: its keywords are the options, its other parameters arguments.

    Args:
        main: its result is the exit code.
        workers: called instead where the command line begins with their name; what they return is printed as JSON.
        choices: what a parameter of that name may be.
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
    """The parameters of ``function``, of the types of their annotations."""
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
    """What a worker of a module's `command` finds in a process of its own.

    Args:
        work: the worker.
        words: its arguments.
        launch: what of Python's options starts several processes instead.
        environment: what is added to this one's.

    Raises:
        RuntimeError: it failed; the end of what it said.
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
    """What each contestant's processes have found. They take turns, so that whatever slows the machine slows all."""
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
    """Prints and runs it."""
    print("$", *words, flush=True)
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)
