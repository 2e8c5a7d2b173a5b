"""Greedy decoding of many prompts: each token is the likeliest after those before it, the first of equals.

    t_{n+1} = argmax h(prompt, t_1 … t_n) · Wᵀ

Rows are packed without padding, and a beginning that all prompts share is computed once. A row that has ended leaves
the cache, and the pass that continues the other rows also reads the next prompt. In float32 the tokens equal those of
transformers' ``generate(do_sample=False)`` for any batch, except where two logits differ by rounding alone.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moslora.base.own_engine import final_hidden
from moslora.errors import MosloraError
from moslora.kernels.cache import CachedPass, KeyValueCache
from moslora.kernels.rows import common_prefix, send

Ended = Callable[[int, list[int]], bool]
"""Callback with a prompt's number and the tokens written after it: whether the text has ended."""

SHORTEST_BEGINNING = 16
"""Fewest tokens for which a common beginning gets a pass of its own."""

NOT_FINITE = "the logits of a generated text are not finite; use --dtype bfloat16 or float32"

NO_TOKEN = -1
"""Token id that stands for logits that are not finite. The check reads it with the tokens, so that a GPU is waited for
once."""

KEPT_ON_CPU = 8
"""Tokens in a CPU's cache per token of a pass, so that the many rows of a pass are one product. A GPU has larger passes
and less memory, and keeps as many as a pass may compute."""


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
    """Return the new tokens of each prompt, at least one, including the token of ``ends`` that ended it.

    Args:
        model: in evaluation mode; its attention must be exchangeable (`moslora.kernels.attention.use_rows`).
        prompts: of at least one token each, and with room for the new ones in the model's context.
        max_new_tokens: of each prompt.
        ended: whether a text has ended, given its prompt's number and its new tokens. Called after each new token,
            except one of ``ends`` and the last of ``max_new_tokens``.
        ends: tokens that end a text.
        batch_tokens: maximum number of tokens computed in a pass, though a pass takes at least one prompt. It also
            limits for how many tokens of all rows together keys and values are kept: on a CPU `KEPT_ON_CPU` times as
            many.

    Raises:
        MosloraError: logits that are no finite numbers.
    """
    cache = KeyValueCache(model.device)
    written: list[list[int]] = [[] for _ in prompts]
    writing: list[int] = []  # numbers of the prompts, as their rows are in the cache
    # The longest first: what does not fit into memory says so at once. Equal lengths keep their order.
    waiting = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i])))
    # Tokens that all prompts begin with; one of each at least is left.
    common = min(common_prefix(prompts), len(prompts[waiting[-1]]) - 1) if len(prompts) > 1 else 0
    if common >= SHORTEST_BEGINNING:
        _compute(model, prompts[0][:common], cache.first_pass(common))
    own = [prompt[cache.beginning :] for prompt in prompts]  # behind the common beginning
    while waiting or writing:
        if waiting:
            room = max_new_tokens + max(len(own[i]) for i in (*writing, waiting[0]))
            if not cache.rows or room <= cache.room // 2:  # half of what the longest row of all has had would do
                kept = batch_tokens * KEPT_ON_CPU if cache.device.type == "cpu" else batch_tokens
                cache.resize(min(max(1, kept // room), len(writing) + len(waiting)), room)
        tokens = [written[i][-1] for i in writing]
        entering: list[int] = []  # as many as there is room for, in the cache and in the pass
        while waiting and len(writing) + len(entering) < cache.rows:
            if entering and len(tokens) + len(own[waiting[0]]) > batch_tokens:
                break
            entering.append(waiting.popleft())
            tokens += own[entering[-1]]
        step = cache.next_pass([len(own[i]) for i in entering])
        writing += entering
        for i, token in zip(writing, _next_tokens(model, tokens, step), strict=True):
            written[i].append(token)
        for row in reversed(range(len(writing))):
            i = writing[row]
            full = len(written[i]) == max_new_tokens
            if full or written[i][-1] in ends or ended(i, written[i]):
                cache.remove(row)
                writing[row] = writing[-1]
                writing.pop()
    return written


def _next_tokens(model: PreTrainedModel, tokens: list[int], step: CachedPass) -> list[int]:
    """Return the likeliest token after each row of the pass."""
    hidden = _compute(model, tokens, step)  # (T, H)
    states = hidden.index_select(0, send(step.last, hidden.device))
    best = model.get_output_embeddings()(states).max(-1)  # of (rows, V) the first of equals
    likeliest: list[int] = best.indices.where(best.values.isfinite(), NO_TOKEN).tolist()
    if NO_TOKEN in likeliest:
        raise MosloraError(NOT_FINITE)
    return likeliest


def _compute(model: PreTrainedModel, tokens: list[int], step: CachedPass) -> Tensor:
    """Return the hidden states ``(T, H)`` of a pass over ``tokens``, padded to the pass's fixed size."""
    return final_hidden(model, send([tokens + tokens[-1:] * step.filler], step.device), step)
