"""Which pieces the user leaves out, so that transformers' own module or the plain formula computes instead:

    MOSLORA_PLAIN=attention,loss moslora train …

For a device on which `moslora check` finds a piece that is off. The run card names what was left out.
"""

import difflib
import os
from functools import cache

from moslora.errors import UsageError

VARIABLE = "MOSLORA_PLAIN"

PIECES = ("adapters", "attention", "dropout", "liger", "linear", "loss", "mlp", "norm", "optimizer", "rope")


@cache
def left_out() -> frozenset[str]:
    """Those of :data:`PIECES` that the environment names.

    Raises:
        UsageError: it names another.
    """
    named = {name.strip() for name in os.environ.get(VARIABLE, "").split(",")} - {""}
    for name in sorted(named - {*PIECES}):
        hint = f"must be some of {','.join(PIECES)}"
        close = difflib.get_close_matches(name.lower(), PIECES, n=1)
        if close:
            hint = f"did you mean {close[0]}?"
        raise UsageError(f"{VARIABLE}: unknown piece {name!r}; {hint}")
    return frozenset(named)
