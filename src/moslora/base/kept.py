"""What takes long to find out, kept in the cache."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from moslora.download.wheels import home
from moslora.errors import MosloraError
from moslora.files import once_per_machine, write_json


def kept(folder: str, of: str, find: Callable[[], Any], *, state: Any = None) -> Any:
    """What ``find`` returns of what ``of`` names, a JSON value; from the cache's ``folder`` if it was found in the same
    ``state``. A cache that cannot be written only costs time."""
    file = home() / folder / f"{hashlib.sha256(of.encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):  # there is none yet, or it is damaged
        note = json.loads(file.read_text(encoding="utf-8"))
        if note["state"] == state:
            return note["found"]
    value = find()
    with suppress(OSError, MosloraError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with once_per_machine(file):
            write_json(file, {"of": of, "state": state, "found": value})
    return value
