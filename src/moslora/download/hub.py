"""One request tells whether the hub answers; its libraries try six times, for 23 seconds, for each file."""

import functools

from huggingface_hub import constants, get_session

_SECONDS = 5.0  # a network that drops packets would delay the connection for minutes


@functools.cache
def prefer_cache_if_unreachable() -> None:
    """Asks the hub once per process; if nothing answers, its libraries go offline and use their cache."""
    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception:  # the HTTP library's types, which depend on huggingface_hub's version
        constants.HF_HUB_OFFLINE = True
