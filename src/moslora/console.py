"""Output of a command while it works: printed once, even by several processes. Does not load torch."""

import codecs
import functools
import io
import json
import os
import sys

from moslora.ranks import is_main_process

SPELT_OUT = {
    "Δ": "Delta ",
    "√": "sqrt",
    "‖": "|",
    "⊗": "x",
    "×": "x",
    "·": "*",
    "∘": "o",
    "±": "+-",
    "−": "-",
    "–": "-",
    "→": "->",
    "←": "<-",
    "≤": "<=",
    "≥": ">=",
    "…": "...",
    "²": "^2",
    "³": "^3",
    "Σ": "sum ",
    "ᵀ": "^T",
    "₁": "1",
    "₂": "2",
    "α": "alpha",
    "β": "beta",
    "ε": "epsilon",
    "µ": "u",
    "’": "'",
}
"""Spellings of the signs that commands print, for a terminal or file whose encoding lacks them."""


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    """A codec's error handler: a sign's name, or its escape in JSON, which also keeps a printed schema valid."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    spelt = ""
    for sign in error.object[error.start : error.end]:
        escape = json.dumps(sign)[1:-1]
        spelt += SPELT_OUT.get(sign, escape)
    return spelt, error.end


def print_in_any_encoding() -> None:
    """Spells out signs that the output's encoding lacks, from now on, where Python would raise an error."""
    codecs.register_error("spell-out", _spell_out)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not closed, nor another program's
            stream.reconfigure(errors="spell-out")


def say(line: str) -> None:
    """Prints on the main process. A closed pipe or terminal does not end hours of work: the rest is dropped."""
    if not is_main_process():
        return
    try:
        print(line, flush=True)
    except OSError:
        drop_output()


def note(line: str) -> None:
    """Prints a warning that stops nothing."""
    say(f"note: {line}")


@functools.cache
def note_once(line: str) -> None:
    """Prints a warning, once per process."""
    note(line)


def drop_output() -> None:
    """Sends the rest of the standard output to the null device."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
