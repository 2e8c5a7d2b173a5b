"""Evaluation against lm-eval, LLM-Adapters' procedure and one question at a time, on the quickstart's model.

    make bench                                          # everything, in an environment of its own
    python -m benchmarks.speed.evaluation --repetitions 3     # this part alone
    python -m benchmarks.speed.evaluation work cloze:ours 32  # one measurement, as JSON

Each measurement is a process of its own, and the contestants take turns. Questions are the same for all: the first of
each set's validation split, in bfloat16, model loaded beforehand.

    cloze:ours         this program             cloze:16, cloze:32     lm-eval's hf model in batches of that many
    choice:ours        labels compared          choice:official        LLM-Adapters' script: 4 beams, 32 tokens, alone
    generate:ours      greedy, in batches       generate:alone         the same, one by one
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from benchmarks import DOCS
from benchmarks.speed.products import floor
from benchmarks.tables import machine, markdown, publish, spread
from benchmarks.timing import in_process, seconds
from moslora.base.load import load_base, load_tokenizer
from moslora.base.resolve import BUILTIN
from moslora.data.sources import load_examples
from moslora.evaluation import Request
from moslora.evaluation.batches import batch_budget
from moslora.evaluation.scorers import make_scorer
from moslora.recipe import ModelSection
from moslora.tasks import COMMONSENSE, TASKS, Example

PAGE = DOCS / "speed.md"
SECTION = ModelSection(name=BUILTIN)
GROUPS = {
    "cloze": (["cloze:ours", "cloze:16", "cloze:32"], COMMONSENSE, 32),
    "choice": (["choice:ours", "choice:official"], ("obqa", "piqa"), 8),
    "generate": (["generate:ours", "generate:alone"], ("obqa", "piqa"), 32),
}
"""Protocol -> contestants, sets, and questions of each set."""


def work(who: str, count: int) -> dict[str, Any]:
    """Seconds for ``count`` questions of each set, and for ours how much of them the products alone take."""
    protocol, _, _ = who.partition(":")
    _, tasks, _ = GROUPS[protocol]
    questions = {task: load_examples(TASKS[task], "test", source="wheel")[:count] for task in tasks}
    return scored_by(who, questions)


def scored_by(who: str, questions: dict[str, list[Example]]) -> dict[str, Any]:
    """The same of the given questions."""
    protocol, _, how = who.partition(":")
    if how.isdigit():
        return {"seconds": by_lm_eval(questions, batch_size=int(how))}
    model = load_base(SECTION)
    tokenizer = load_tokenizer(SECTION)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda")
    model.to(device)  # type: ignore[arg-type]
    if how == "official":
        rows = list(chain.from_iterable(questions.values()))
        return {"seconds": seconds(lambda: [official(model, tokenizer, row) for row in rows])}
    format = "label"
    if protocol == "cloze":
        format = "cloze"
    budget = batch_budget(device)
    request = Request.model_validate({"protocol": protocol, "format": format, "batch_tokens": budget})
    scorer = make_scorer(model, tokenizer, request)

    def score() -> None:
        with torch.inference_mode():
            for rows in questions.values():
                scorer.score(rows, alone=how == "alone")

    found: dict[str, Any] = {"seconds": seconds(score), "products": None}
    if how == "ours":
        found["products"] = floor(score, repetitions=2)
    return found


def by_lm_eval(questions: dict[str, list[Example]], *, batch_size: int) -> float:
    """lm-eval's ``hf`` model on the same options: its requests, its batches, its log-likelihoods."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    from moslora.base.resolve import locate
    from moslora.prompts.formats import FORMATS, Option

    model: Any = AutoModelForCausalLM.from_pretrained(locate(BUILTIN), dtype=torch.bfloat16)
    harness = HFLM(pretrained=model, tokenizer=load_tokenizer(SECTION), batch_size=batch_size)
    options: list[Option] = []
    for row in chain.from_iterable(questions.values()):
        options += FORMATS["cloze"].options(row)
    requests = [
        Instance("loglikelihood", doc={}, arguments=(option.prompt, option.answer), idx=number)
        for number, option in enumerate(options)
    ]
    return seconds(lambda: harness.loglikelihood(requests, disable_tqdm=True))


def official(model: Any, tokenizer: Any, row: Example) -> str:
    """``commonsense_evaluate.py``: 4 beams, 32 new tokens, one question at a time, by stock ``generate``."""
    from moslora.prompts.formats import FORMATS

    ids = tokenizer(FORMATS["llm-adapters"].generation_prompt(row), return_tensors="pt").to(model.device)
    written = model.generate(**ids, num_beams=4, max_new_tokens=32, do_sample=False, pad_token_id=0)
    return str(tokenizer.decode(written[0]))


def measure(who: str, count: int) -> dict[str, Any]:
    found = in_process("benchmarks.speed.evaluation", "work", who, str(count))
    print(f"{who:16} {found['seconds']:7.1f} s", flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--print-only", action="store_true")
    options = parser.parse_args(arguments)
    table = [["contestant", "questions", "questions/s", "ours is", "products' share of ours"]]
    for group in options.groups:
        contestants, tasks, count = GROUPS[group]
        found: dict[str, list[dict[str, Any]]] = {who: [] for who in contestants}
        for _ in range(options.repetitions):
            for who in contestants:
                found[who].append(measure(who, count))
        table += lines(found, questions=count * len(tasks))
    text = f"{machine()}; {options.repetitions} processes each\n\n{markdown(table)}"
    publish(text, PAGE, "evaluation table", print_only=options.print_only)


def lines(found: dict[str, list[dict[str, Any]]], *, questions: int) -> list[list[str]]:
    """A row for each contestant, of which the first is ours: median and quartiles over the processes, and the ratios
    round by round."""
    ours = next(iter(found))
    table = []
    for who, each in found.items():
        speeds = [questions / one["seconds"] for one in each]
        ours_is = ""
        if who != ours:
            ratios = [one["seconds"] / mine["seconds"] for one, mine in zip(each, found[ours], strict=True)]
            ours_is = f"{spread(ratios)} ×"
        shares = [one["products"] / one["seconds"] for one in each if one.get("products")]
        share_of_products = ""
        if shares:
            share_of_products = f"{statistics.median(shares):.0%}"
        table.append([who, f"{questions}", spread(speeds), ours_is, share_of_products])
    return table


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        print("\n" + json.dumps(work(sys.argv[2], int(sys.argv[3]))))
    else:
        main()
