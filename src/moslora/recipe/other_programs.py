"""Keys and values of PEFT, the Trainer, TRL, axolotl, LLaMA-Factory, torchtune, Unsloth and Soup, answered with a
recipe's: `other_programs.yaml` has them."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .yaml_text import parse


@cache
def translations() -> Any:
    """The data: ``keys``, ``values`` and ``instead``."""
    return parse(Path(__file__).with_suffix(".yaml").read_text("utf-8"))


def answer(word: str, value: object, section: str) -> str | None:
    """What to do about another program's ``word`` with its ``value``, written in ``section`` (empty at the top level).

    Returns:
        our key and what it counts, or why there is none; ``None`` for a word that is nobody's.
    """
    for written in (f"`{word}: {str(value).lower()}`", f"`{word}`"):
        for key, theirs in translations()["keys"].items():
            if written in " ".join(theirs.values()):
                return f"did you mean {key.removeprefix(f'{section}.')}?{what_counts(key)}"
    for reason, words in translations()["instead"].items():
        if word in words:
            return f"delete it: {reason}"
    return None


def what_counts(key: str) -> str:
    """What our ``key`` counts, in brackets, if theirs count something else."""
    counted = translations()["keys"].get(key, {}).get("counts")
    return f" ({counted})" if counted else ""


def our_value(value: str, choices: Sequence[str]) -> str | None:
    """That of our ``choices`` which another program calls ``value``; ``None`` if there is none."""
    for choice in choices:
        if value in translations()["values"].get(choice, ()):
            return choice
    return None
