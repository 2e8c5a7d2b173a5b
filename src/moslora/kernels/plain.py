"""Kernels that the user disables, so that transformers' own module or the plain formula computes instead:

    MOSLORA_PLAIN=attention,loss moslora train …

This works around a device on which `moslora check` finds a wrong kernel. The run card names the disabled kernels.
"""

import os
from functools import cache

from moslora.errors import UsageError, did_you_mean, near_words

VARIABLE = "MOSLORA_PLAIN"

PIECES = ("adapters", "attention", "dropout", "liger", "linear", "loss", "mlp", "norm", "optimizer", "rope")


@cache
def disabled_kernels() -> frozenset[str]:
    """Kernels of :data:`PIECES` that the environment variable :data:`VARIABLE` disables.

    Raises:
        UsageError: the variable names an unknown kernel.
    """
    named = {name.strip() for name in os.environ.get(VARIABLE, "").split(",")} - {""}
    for name in sorted(named - {*PIECES}):
        fix = did_you_mean(near_words(name.lower(), PIECES), otherwise=f"must be some of {','.join(PIECES)}")
        raise UsageError(f"{VARIABLE}: unknown kernel {name!r}; {fix}")
    return frozenset(named)
