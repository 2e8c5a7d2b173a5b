"""Greedy decoding of many prompts: each token is the likeliest after those before it, the first of equals.

    t_{n+1} = argmax h(prompt, t_1 … t_n) · Wᵀ

Rows are packed, without padding; what all prompts begin with is computed once; a row that has ended leaves, and the
next prompt enters with the same pass that continues the others. In float32 the tokens are those of transformers'
``generate(do_sample=False)``, whatever shares the passes, but where two logits differ by rounding alone.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moslora.base.engine import final_hidden
from moslora.errors import MosloraError
from moslora.kernels.cache import CachedPass, KeyValueCache
from moslora.kernels.rows import common_prefix, send

Ended = Callable[[int, list[int]], bool]
"""Whether a prompt, given by its number, needs no token behind those that were written."""

SHORTEST_BEGINNING = 16
"""Number of tokens from which on a common beginning is worth a pass of its own."""

NOT_FINITE = "the logits of a generated text are not finite; use --dtype bfloat16 or float32"

NO_TOKEN = -1
"""Stands for the likeliest token where the logits are no numbers, so that a GPU is waited for once."""

KEPT_ON_CPU = 8
"""Tokens that are kept in the cache of a CPU for each that a pass may compute, so that its many rows are one product. A
GPU, whose passes are larger and whose memory is not, keeps as many as it may compute."""


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    ended: Ended,
    ends: Collection[int],
    batch_tokens: int,
) -> list[list[int]]:
    """The new tokens of each prompt, at least one, with the one of ``ends`` that ends them.

    Args:
        model: in evaluation mode; its attention must be exchangeable (`moslora.kernels.attention.use_rows`).
        prompts: of at least one token each, and with room for the new ones in the model's context.
        max_new_tokens: of each prompt.
        ended: asked after each token, unless it is one of ``ends`` or the last possible one.
        ends: tokens that end a text.
        batch_tokens: maximum number of tokens computed in a pass, in which one prompt always enters; it also decides
            how many are kept (`KEPT_ON_CPU`).

    Raises:
        MosloraError: logits that are no finite numbers.
    """
    return _Decoding(model, prompts, max_new_tokens, ended, ends, batch_tokens).run()


@dataclass
class _Decoding:
    """The state of :func:`decode`."""

    model: PreTrainedModel
    prompts: Sequence[list[int]]
    max_new_tokens: int
    ended: Ended
    ends: Collection[int]
    batch_tokens: int
    writing: list[int] = field(default_factory=list)  # numbers of the prompts, as their rows are in the cache

    def __post_init__(self) -> None:
        self.cache = KeyValueCache(self.model.device)
        self.written: list[list[int]] = [[] for _ in self.prompts]
        # The longest first: what does not fit into memory says so at once. Equal lengths keep their order.
        self.waiting = deque(sorted(range(len(self.prompts)), key=lambda i: -len(self.prompts[i])))

    def run(self) -> list[list[int]]:
        self._compute_beginning()
        own = [prompt[self.cache.beginning :] for prompt in self.prompts]  # behind the common beginning
        while self.waiting or self.writing:
            self._fit_cache(own)
            entering = self._entering(own)
            tokens = [self.written[i][-1] for i in self.writing]
            for i in entering:
                tokens += own[i]
            step = self.cache.next_pass([len(own[i]) for i in entering])
            self.writing += entering
            for i, token in zip(self.writing, self._next_tokens(tokens, step), strict=True):
                self.written[i].append(token)
            self._remove_ended()
        return self.written

    def _compute_beginning(self) -> None:
        """Computes what all prompts begin with; a token of each at least is left."""
        if len(self.prompts) < 2:
            return
        length = min(common_prefix(self.prompts), min(len(prompt) for prompt in self.prompts) - 1)
        if length < SHORTEST_BEGINNING:
            return
        self._compute(self.prompts[0][:length], self.cache.first_pass(length))

    def _fit_cache(self, own: Sequence[list[int]]) -> None:
        """Gives the cache room for the longest row that is written or waits; anew, once half of it would do."""
        if not self.waiting:
            return
        room = self.max_new_tokens + max(len(own[i]) for i in (*self.writing, self.waiting[0]))
        if self.cache.rows and room > self.cache.room // 2:
            return
        kept = self.batch_tokens
        if self.cache.device.type == "cpu":
            kept *= KEPT_ON_CPU
        rows = max(1, kept // room)
        self.cache.resize(min(rows, len(self.writing) + len(self.waiting)), room)

    def _entering(self, own: Sequence[list[int]]) -> list[int]:
        """The prompts that enter with the next pass: as many as there is room for, in the cache and in the pass."""
        entering: list[int] = []
        count = len(self.writing)
        while self.waiting and len(self.writing) + len(entering) < self.cache.rows:
            count += len(own[self.waiting[0]])
            if entering and count > self.batch_tokens:
                break
            entering.append(self.waiting.popleft())
        return entering

    def _next_tokens(self, tokens: list[int], step: CachedPass) -> list[int]:
        """The likeliest token after each row of the pass."""
        hidden = self._compute(tokens, step)  # (T, H)
        states = hidden.index_select(0, send(step.last, hidden.device))
        logits: Tensor = self.model.get_output_embeddings()(states)  # (rows, V)
        best = logits.max(-1)  # the first of equals
        likeliest: list[int] = best.indices.where(best.values.isfinite(), NO_TOKEN).tolist()
        if NO_TOKEN in likeliest:
            raise MosloraError(NOT_FINITE)
        return likeliest

    def _compute(self, tokens: list[int], step: CachedPass) -> Tensor:
        """The hidden states of the pass over these tokens, which is filled up."""
        ids = send([tokens + tokens[-1:] * step.filler], step.device)
        return final_hidden(self.model, ids, step)

    def _remove_ended(self) -> None:
        for row in reversed(range(len(self.writing))):
            i = self.writing[row]
            tokens = self.written[i]
            full = len(tokens) == self.max_new_tokens
            if full or tokens[-1] in self.ends or self.ended(i, tokens):
                self.cache.remove(row)
                self.writing[row] = self.writing[-1]
                self.writing.pop()
