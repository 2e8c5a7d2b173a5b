"""Engines that compute a model: ours, transformers' own forward, or that with some of our pieces. All have the same
methods.

Methods:
    build_batch: all texts as a batch, whose places number its tokens row after row.
    logits: logits after the tokens at P places, shape ``(P, vocabulary)``.
    loss: Σ −log p(target) of ``targets (N,)``, each after the token at one of N ``places``: a scalar, float32 or wider.
        ``sent`` holds the places on the device. Without a target the loss is zero, but still depends on every
        parameter, so that a process without rows takes part in the gradient reduction.
    log_p: log-probabilities of ``targets`` after the tokens at P places: nats, float32 ``(P,)``, without a gradient.
    write: new tokens of each prompt, as :func:`moslora.base.decoding.decode`.

``pads`` says whether every row of a batch is as long as the longest.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from moslora.base.decoding import NOT_FINITE, Ended, decode
from moslora.base.own_engine import final_hidden, output_weight
from moslora.choices import EngineName
from moslora.errors import MosloraError
from moslora.kernels.linear import product
from moslora.kernels.loss import log_probabilities, sum_of_losses
from moslora.kernels.rows import Rows, concatenate, send
from moslora.kernels.vocabulary import sizes

PromptGroups = Sequence[Sequence[Sequence[int]]]
"""Texts as tokens, in groups with a common beginning, such as a question and its options."""

SHARED = 4
"""Number of tokens that both rows of `two_rows` begin with."""

ENDS = (3, 6)
"""Number of tokens after the common beginning in each of `two_rows`."""

SMALLEST = float(torch.finfo(torch.float32).tiny)
"""Length below which a tensor counts as zero."""


@dataclass(frozen=True)
class Batch:
    """Texts that are computed together, on their device."""

    input_ids: Tensor  # int64, (1, T) end to end or (B, L) padded
    paths: list[list[int]]  # of each text the places of its tokens
    real: Tensor | None  # which tokens belong to a text, bool of the shape of input_ids; None for all
    rows: Rows | None  # which of the T tokens belong together; None where they are padded


class _Model:
    """Causal language model, perhaps with adapters. Of PEFT's wrapper it takes the model inside."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: PreTrainedModel = getattr(model, "get_base_model", lambda: model)()


class _InPieces(_Model):
    """What an engine computes from hidden states, with logits for a piece of the vocabulary at a time."""

    def logits(self, batch: Batch, places: Sequence[int]) -> Tensor:
        """Return the logits after the tokens at P places, shape ``(P, vocabulary)``."""
        weight = output_weight(self.model)
        hidden = self.hidden(batch)
        return product(hidden.index_select(0, send(places, hidden.device)).to(weight.dtype), weight)

    def loss(self, batch: Batch, places: Sequence[int], sent: Tensor, targets: Tensor) -> Tensor:
        """Return Σ −log p(target) over N targets as a scalar, without keeping all logits."""
        hidden = self.hidden(batch)
        if not places:
            return (hidden.float() * 0).sum()
        states = hidden.index_select(0, sent)
        return sum_of_losses(states, output_weight(self.model), targets)

    def log_p(self, batch: Batch, places: Sequence[int], targets: Sequence[int]) -> Tensor:
        """Return the targets' log-probabilities, float32 of shape ``(P,)``."""
        return log_probabilities(self.hidden(batch), output_weight(self.model), places, targets)

    def hidden(self, batch: Batch) -> Tensor:
        """Return the hidden states before the output layer, a row for each place of the batch."""
        raise NotImplementedError


class Own(_InPieces):
    """Our engine: rows end to end, common beginnings once, our modules, and logits for a piece of the vocabulary at a
    time."""

    name: ClassVar[EngineName] = "own"
    pads = False

    @staticmethod
    def build_batch(groups: PromptGroups, device: torch.device) -> Batch:
        """Return all texts end to end, with a common beginning once."""
        tokens, rows, paths = concatenate(groups, device)
        return Batch(send([tokens], device), paths, rows.real, rows)

    def write(self, prompts: Sequence[list[int]], **how: Any) -> list[list[int]]:
        """Return the new tokens of each prompt, decoded greedily in packed passes."""
        return decode(self.model, prompts, **how)

    def hidden(self, batch: Batch) -> Tensor:
        """Return the hidden states before the output layer, ``(T, hidden)``."""
        assert batch.rows is not None
        return final_hidden(self.model, batch.input_ids, batch.rows)


class Transformers(_Model):
    """transformers' own forward and modules, over rows that are padded at their end and masked.

    Prompts are padded at their beginning. A model that reads padded prompts differently, for example because it counts
    padding as positions, gets prompts of one length.
    """

    name: ClassVar[EngineName] = "transformers"
    pads = True

    @staticmethod
    def build_batch(groups: PromptGroups, device: torch.device) -> Batch:
        """Return all texts padded to the longest, and masked."""
        rows = list(chain.from_iterable(groups))
        longest = max(len(row) for row in rows)
        padded = [[*row, *[row[-1]] * (longest - len(row))] for row in rows]
        real = torch.tensor([[place < len(row) for place in range(longest)] for row in rows])
        paths = [list(range(n * longest, n * longest + len(row))) for n, row in enumerate(rows)]
        return Batch(send(padded, device), paths, None if real.all() else send(real, device), None)

    def logits(self, batch: Batch, places: Sequence[int]) -> Tensor:
        """Return the logits after the tokens at P places, shape ``(P, vocabulary)``."""
        length = batch.input_ids.shape[1]
        at = send(places, batch.input_ids.device)
        options = self._masked(batch)
        if "logits_to_keep" in signature(type(self.model).forward).parameters:  # others compute all
            kept = sorted({place % length for place in places})
            options["logits_to_keep"] = send(kept, at.device)
            number = {column: n for n, column in enumerate(kept)}
            at = send([place // length * len(kept) + number[place % length] for place in places], at.device)
        logits: Tensor = self.model(input_ids=batch.input_ids, use_cache=False, **options).logits
        return logits.flatten(0, 1).index_select(0, at)

    def loss(self, batch: Batch, places: Sequence[int], sent: Tensor, targets: Tensor) -> Tensor:
        """Return Σ −log p(target) over N targets as a scalar."""
        if not places:
            return (self.logits(batch, [0]).float() * 0).sum()
        logits = self.logits(batch, places)
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="sum")

    def log_p(self, batch: Batch, places: Sequence[int], targets: Sequence[int]) -> Tensor:
        """Return the targets' log-probabilities, float32 of shape ``(P,)``."""
        logits = self.logits(batch, places)
        wanted = send(targets, logits.device)
        positions, _ = sizes(len(logits), logits.shape[1], logits.device)
        parts = zip(logits.split(positions), wanted.split(positions), strict=True)
        losses = [F.cross_entropy(part.float(), tokens, reduction="none") for part, tokens in parts]
        return -torch.cat(losses)

    def write(
        self,
        prompts: Sequence[list[int]],
        *,
        max_new_tokens: int,
        ended: Ended,
        ends: Collection[int],
        batch_tokens: int,
    ) -> list[list[int]]:
        """Return the new tokens of each prompt, decoded greedily by transformers' ``generate``."""
        written: list[list[int]] = [[] for _ in prompts]
        done: set[int] = set()
        together: list[int] = []  # numbers of the prompts that are continued
        waiting = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))

        def keep(ids: Tensor, _: Any, **__: Any) -> Tensor:
            """Record the new tokens of each prompt until it has ended; return the mask of ended prompts,
            ``(prompts,)``."""
            for i, tokens in zip(together, ids[:, len(prompts[together[0]]) :].tolist(), strict=True):
                if i not in done:
                    written[i] = tokens
                    if tokens[-1] in ends or ended(i, tokens):
                        done.add(i)
            return torch.tensor([i in done for i in together], device=ids.device)

        settings = {"max_new_tokens": max_new_tokens, "do_sample": False, "eos_token_id": sorted(ends) or None}
        while waiting:
            length = len(prompts[waiting[0]])
            together = waiting[: max(1, batch_tokens // (length + max_new_tokens))]
            if not self._reads_padding_alike:
                together = [i for i in together if len(prompts[i]) == length]
            waiting = waiting[len(together) :]
            generate(self.model, [prompts[i] for i in together], settings, stopping_criteria=[keep])
        return written

    @staticmethod
    def _masked(batch: Batch) -> dict[str, Any]:
        return {} if batch.real is None else {"attention_mask": batch.real.long()}

    @cached_property
    def _reads_padding_alike(self) -> bool:
        """Whether a prompt that is padded at its beginning has the same logits as alone."""
        short, long = two_rows(self.model.config)
        settings = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
        alone = _generate(self.model, [short], settings).scores[-1][0]
        padded = _generate(self.model, [short, long], settings).scores[-1][0]
        return relative_error(padded, alone) <= (2e-2 if self.model.dtype.itemsize <= 2 else 1e-3)


class Padded(Transformers):
    """transformers' attention over padded rows, with our modules in place of some others."""

    name: ClassVar[EngineName] = "padded"


class PaddedInPieces(_InPieces, Padded):
    """transformers' attention over padded rows, with our modules and our loss."""

    def hidden(self, batch: Batch) -> Tensor:
        """Return the hidden states before the output layer, ``(B · L, hidden)``."""
        options = self._masked(batch)
        states: Tensor = self.model.get_decoder()(input_ids=batch.input_ids, use_cache=False, **options)[0]
        return states.flatten(0, 1)


Engine = Own | PaddedInPieces | Padded | Transformers


def engine_of(model: PreTrainedModel) -> Engine:
    """Engine that `choose_engine` has chosen for ``model``; ours for a model that it has not seen."""
    name = getattr(model, "moslora_engine", Own.name)
    if name == Own.name:
        return Own(model)
    if name == Transformers.name:
        return Transformers(model)
    pieces: Any = model.moslora_pieces
    return PaddedInPieces(model) if "loss" in pieces else Padded(model)


def relative_error(computed: Tensor, expected: Tensor, *, least: float = 0.0) -> float:
    """‖z' − z‖ / ‖z‖ of tensors of the same shape, in float32, with z ``expected``; relative to ``least`` where that is
    larger than ‖z‖."""
    expected = expected.float()
    return float((computed.float() - expected).norm()) / max(float(expected.norm()), least, SMALLEST)


def two_rows(config: PretrainedConfig) -> tuple[list[int], list[int]]:
    """Return a short and a long row of tokens by which a model is examined: from all over the vocabulary, none of them
    special."""
    decoder = config.get_text_config(decoder=True)
    values = [*config.to_dict().items(), *decoder.to_dict().items()]
    special = [value for key, value in values if key.endswith(("_token_id", "_token_index"))]
    short = SHARED + ENDS[0]
    count = short + ENDS[1]
    step = max(1, decoder.vocab_size // (2 * count))
    tokens = [token for token in range(step // 2, decoder.vocab_size, step) if token not in special][:count]
    return tokens[:short], tokens[:SHARED] + tokens[short:]


def generate(
    model: PreTrainedModel, prompts: Sequence[list[int]], settings: Mapping[str, Any], **options: Any
) -> Tensor:
    """Return the new tokens of each prompt, shape ``(prompts, new)``, by transformers' ``generate`` over prompts that
    are padded at their beginning and masked.

    A model's own `generation_config.json` is not used: its penalties, suppressed tokens or samples would change texts.
    """
    written: Tensor = _generate(model, prompts, settings, **options)
    return written[:, max(len(prompt) for prompt in prompts) :]


def _generate(model: Any, prompts: Sequence[list[int]], settings: Mapping[str, Any], **options: Any) -> Any:
    """Return the result of transformers' ``generate``, prompts included."""
    rows = [torch.tensor(prompt) for prompt in prompts]
    ids = pad_sequence(rows, batch_first=True, padding_value=-1, padding_side="left").to(model.device)
    padding = prompts[0][0]  # masked, so any token will do
    config = GenerationConfig(**{"use_cache": True, **settings}, pad_token_id=padding)
    own = model.generation_config
    model.generation_config = GenerationConfig()  # of which transformers takes every field that the caller leaves unset
    try:
        # The output layer takes only the last states of the prompts, which lie apart: torch would copy the weight for
        # each row.
        with model.get_output_embeddings().register_forward_pre_hook(lambda _, given: (given[0].contiguous(),)):
            return model.generate(
                ids.where(ids >= 0, padding),
                attention_mask=(ids >= 0).long(),
                generation_config=config,
                logits_processor=[_finite],
                **options,
            )
    finally:
        model.generation_config = own


def _finite(_: Tensor, scores: Tensor) -> Tensor:
    """Refuse logits that are not finite."""
    if not scores.amax(-1).isfinite().all():
        raise MosloraError(NOT_FINITE)
    return scores
