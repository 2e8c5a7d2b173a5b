"""Samples: answers that the model writes for held-out rows at each validation, beside the wanted answers."""

import time
from dataclasses import dataclass
from textwrap import shorten
from typing import NamedTuple, TypedDict

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from moslora.base.failures import or_out_of_memory
from moslora.data.encode import TokenPair
from moslora.data.prepared import RowTable
from moslora.errors import counted
from moslora.evaluation.batches import batch_budget
from moslora.evaluation.model import Local, Writing
from moslora.recipe import Recipe
from moslora.runs.answers import order_key
from moslora.training.loop import TrainState

MORE_TOKENS = 16
"""Most tokens of a written answer beyond the longest wanted answer of its task."""

SHOWN = 160
"""Characters of an answer on the screen."""


class Sample(TypedDict):
    """Wanted answer of a held-out row, and the answer that the model writes."""

    id: str
    wanted: str
    written: str


class Samples(NamedTuple):
    """Samples of one validation, and the seconds that they took."""

    samples: list[Sample]
    seconds: float

    def lines(self) -> list[str]:
        """The samples in words, one line each."""
        lines = []
        for sample in self.samples:
            written = shorten(sample["written"], SHOWN, placeholder="…")
            wanted = shorten(sample["wanted"], SHOWN, placeholder="…")
            lines.append(f"  {sample['id']}: wrote {written!r}, wanted {wanted!r}")
        if lines:
            lines.append(f"  {counted(len(lines), 'sample')} in {self.seconds:.1f} s")
        return lines


NO_SAMPLES = Samples([], 0.0)


@dataclass(frozen=True)
class Sampler:
    """Writer of answers to held-out rows, greedily. ``tasks`` holds, by task and id, the tokens of prompts and answers.

    Every process writes all samples: a process that waited for another could wait too long.
    """

    model: Local
    tasks: dict[str, dict[str, TokenPair]]

    @classmethod
    def of(cls, state: TrainState, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, rows: RowTable) -> "Sampler":
        """Take the first `training.samples` of the validation ``rows`` in the order of `order_key`."""
        ordered = sorted(range(len(rows)), key=lambda place: order_key(rows[place].id))
        tasks: dict[str, dict[str, TokenPair]] = {}
        for place in ordered[: recipe.training.samples]:
            tasks.setdefault(rows.tasks[place], {})[rows[place].id] = rows.last_answer(place)
        tokens = recipe.evaluation.batch_tokens or batch_budget(state.model.device)
        return cls(Local(state.model, tokenizer, tokens), tasks)

    def write(self) -> Samples:
        """Write the answers with the model in evaluation mode. No random number is drawn."""
        began = time.perf_counter()
        samples = []
        with or_out_of_memory(
            "out of GPU memory while samples are written; set a smaller evaluation.batch_tokens, or training.samples=0"
        ):
            for task, rows in self.tasks.items():
                samples += self._of_task(task, rows)
        return Samples(samples, time.perf_counter() - began)

    def _of_task(self, task: str, rows: dict[str, TokenPair]) -> list[Sample]:
        tokenizer = self.model.tokenizer
        prompts = [prompt for prompt, _ in rows.values()]
        answers = [answer for _, answer in rows.values()]
        added = tokenizer.added_tokens_decoder
        ends = {token for answer in answers for token in answer if token in added and added[token].special}
        how = Writing(
            max_new_tokens=max(map(len, answers)) + MORE_TOKENS,
            ended=lambda place, tokens: False,
            ends=ends | {tokenizer.eos_token_id} - {None},
        )
        wanted = tokenizer.batch_decode(answers, skip_special_tokens=True)
        (written,) = self.model.write(prompts, how, task=task)()
        return [Sample(id=id, wanted=wanted[n], written=str(written[n])) for n, id in enumerate(rows)]
