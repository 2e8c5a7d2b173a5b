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

from itertools import chain
from typing import Any

import torch

from benchmarks import DOCS
from benchmarks.commands import command, in_turns
from benchmarks.speed.contestants import lm_eval, loglikelihoods
from benchmarks.speed.products import floor
from benchmarks.tables import against_first, machine, markdown, publish
from benchmarks.timing import seconds
from moslora.base.load import load_base, load_tokenizer
from moslora.base.resolve import BUILTIN, locate
from moslora.data.sources import load_examples
from moslora.evaluation import Request
from moslora.evaluation.batches import batch_budget
from moslora.evaluation.model import Local
from moslora.evaluation.scorers import make_encoder, make_scorer
from moslora.processes.devices import device
from moslora.prompts.formats import FORMATS
from moslora.recipe import ModelSection
from moslora.tasks import COMMONSENSE, TASKS, Example

SECTION = ModelSection(name=BUILTIN)
GROUPS = {
    "cloze": (["cloze:ours", "cloze:16", "cloze:32"], COMMONSENSE, 32),
    "choice": (["choice:ours", "choice:official"], ("obqa", "piqa"), 8),
    "generate": (["generate:ours", "generate:alone"], ("obqa", "piqa"), 32),
}
"""Protocol -> contestants, sets, and questions of each set."""


def work(who: str, count: int) -> dict[str, float]:
    """Seconds for ``count`` questions of each set, and for ours how much of them the products alone take."""
    _, tasks, _ = GROUPS[who.partition(":")[0]]
    return scored_by(who, [load_examples(TASKS[task], "test", source="wheel")[:count] for task in tasks])


def scored_by(who: str, questions: list[list[Example]]) -> dict[str, float]:
    """Measure the evaluation of the given questions, set by set, by contestant ``who``."""
    protocol, _, how = who.partition(":")
    rows = list(chain.from_iterable(questions))
    tokenizer = load_tokenizer(SECTION)
    if how.isdigit():
        from transformers import AutoModelForCausalLM

        stock: Any = AutoModelForCausalLM.from_pretrained(locate(BUILTIN), dtype=torch.bfloat16)
        harness = lm_eval(stock, tokenizer, int(how))
        requests = loglikelihoods(rows)
        return {"seconds": seconds(lambda: harness.loglikelihood(requests, disable_tqdm=True))}
    model: Any = load_base(SECTION, device=device())
    if how == "official":
        return {"seconds": seconds(lambda: [official(model, tokenizer, row) for row in rows])}
    format = "cloze" if protocol == "cloze" else "label"
    request = Request.model_validate({"protocol": protocol, "format": format})
    encoder = make_encoder(model.config, tokenizer, request)
    local = Local(model, tokenizer, 1 if how == "alone" else batch_budget(model.device))

    def score() -> None:
        for of_set in questions:
            make_scorer(of_set[0], encoder, request).score(of_set, local)

    found = {"seconds": seconds(score)}
    if how == "ours":
        found["products"] = floor(score, repetitions=2)
    return found


def official(model: Any, tokenizer: Any, row: Example) -> str:
    """``commonsense_evaluate.py``: 4 beams, 32 new tokens, one question at a time, by stock ``generate``."""
    ids = tokenizer(FORMATS["llm-adapters"].generation_prompt(row), return_tensors="pt").to(model.device)
    written = model.generate(**ids, num_beams=4, max_new_tokens=32, do_sample=False, pad_token_id=0)
    return str(tokenizer.decode(written[0]))


def main(*, repetitions: int = 3, print_only: bool = False) -> None:
    table = [["contestant", "questions", "questions/s", "ours is", "products' share of ours"]]
    for contestants, tasks, count in GROUPS.values():
        questions = count * len(tasks)
        found = in_turns(work, contestants, count, repetitions=repetitions)
        for who, cells in against_first(found, questions).items():
            table.append([who, f"{questions}", *cells])
    text = f"{machine()}; {repetitions} processes each\n\n{markdown(table)}"
    publish(text, DOCS / "speed.md", "evaluation table", print_only=print_only)


if __name__ == "__main__":
    command(main, work)
