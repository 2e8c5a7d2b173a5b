"""Check whether the hub answers, by one request: its libraries try six times for each file, 23 seconds in all."""

import functools

from huggingface_hub import constants, get_session

_SECONDS = 5.0  # a network that drops packets would delay the connection for minutes


@functools.cache
def prefer_cache_if_unreachable() -> None:
    """Send the hub a request, once per process; if it does not answer, set its libraries offline, on their cache."""
    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception:  # huggingface_hub's versions use different HTTP libraries
        constants.HF_HUB_OFFLINE = True
