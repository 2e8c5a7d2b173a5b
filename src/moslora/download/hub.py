"""Whether the hub answers, found out in one request: its libraries try six times, for 23 seconds, file by file."""

import functools
from pathlib import Path

from huggingface_hub import constants, get_session

_SECONDS = 5.0  # for a connection, which a network that drops packets would hold up for minutes


@functools.cache
def prefer_cache_if_unreachable() -> None:
    """Asks the hub once per process. Without an answer its libraries go offline, so that they look into their cache.

    Any answer counts, whatever it says: only a hub that is not there makes a retry useless.
    """
    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception:  # the HTTP library's own types, which changed with huggingface_hub's versions
        constants.HF_HUB_OFFLINE = True


def hub_cache() -> Path:
    """Where the hub's libraries put what they download: named where it is full or may not be written."""
    return Path(constants.HF_HUB_CACHE)
