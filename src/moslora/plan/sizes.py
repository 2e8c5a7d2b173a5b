"""Sizes of memory as users write them. Needs no torch, so that a mistyped size is refused at once."""

import re

from moslora.errors import UsageError


def parse_bytes(text: str) -> int:
    """Parse the memory of a GPU: ``80GB`` is 80 · 10⁹ bytes, ``80GiB`` 80 · 2³⁰, and ``80`` is 80 GB."""
    size = re.fullmatch(r"(\d+(?:\.\d+)?) ?(GB|GiB|)", text.strip(), re.IGNORECASE)
    if size is None or float(size[1]) == 0:
        raise UsageError(f"--gpu-memory {text}: must be the memory of one GPU, such as 80GB or 79.6GiB")
    return int(float(size[1]) * (2**30 if size[2].lower() == "gib" else 10**9))
