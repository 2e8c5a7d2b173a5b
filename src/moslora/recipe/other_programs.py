"""Translations of keys and values of PEFT, the Trainer, TRL, axolotl, LLaMA-Factory, torchtune, Unsloth and Soup into a
recipe's. `other_programs.yaml` has them."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .yaml_text import parse


@cache
def translations() -> Any:
    """Content of `other_programs.yaml`.

    ``keys`` and ``values`` map ours to those of other programs that mean it. ``instead`` maps what happens here
    to their keys for which there is none of ours.
    """
    return parse(Path(__file__).with_suffix(".yaml").read_text("utf-8"))


def answer(word: str, value: object, section: str) -> str | None:
    """Answer another program's key in a recipe.

    Args:
        word: the key.
        value: its value.
        section: our section that has it, or "" for the top level.

    Returns:
        our key and the unit of its value, or why there is none; ``None`` if no program has this key.
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
    """Name the unit of our ``key`` in brackets, if other programs count in another unit."""
    unit = translations()["keys"].get(key, {}).get("counts")
    return f" ({unit})" if unit else ""


def our_value(value: str, choices: Sequence[str]) -> str | None:
    """Translate another program's ``value`` into one of our ``choices``; ``None`` if there is none."""
    for choice in choices:
        if value in translations()["values"].get(choice, ()):
            return choice
    return None
