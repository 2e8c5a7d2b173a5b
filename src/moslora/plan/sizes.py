"""Sizes of memory as they are typed."""

import re

from moslora.errors import UsageError


def parse_bytes(text: str) -> int:
    """``80GB`` is 80 · 10⁹ bytes, ``80GiB`` 80 · 2³⁰; GB if there is no unit."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(GB|GiB|)", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise UsageError(f"--gpu-memory {text}: must be the memory of one GPU, such as 80GB or 79.6GiB")
    return int(float(found[1]) * (2**30 if found[2].lower() == "gib" else 10**9))
