"""Cost of an adapter in use (time of an answer, tokens per second), and of computing its parts one after the other.

    make latency

One model in one process. In every round each contestant's layers are put into it in turn, so that whatever slows the
machine slows all. An answer is a question scored by protocol ``choice``, one forward pass; writing is greedy, from the
same question on. The adapters' B is moved from zero, and the numbers that come out do not matter.

Parts are computed all at once by the mixers of `moslora.adapters`, and one after the other in a loop: every expert on
every token as LoRAMoE does, top-k experts on the tokens that chose them as MoLA does, and inside LoRA first those of A,
then those of B.
"""

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from benchmarks import DOCS
from benchmarks.commands import command
from benchmarks.research.argument_tables import SYSTEMS
from benchmarks.tables import machine, markdown, publish, ratios, spread
from benchmarks.timing import seconds
from moslora.adapters import AdapterLinear, inject, named_adapters
from moslora.adapters.mixers.fixed import ButterflyMixer
from moslora.adapters.mixers.gates import GateInsideMixer, TokenGateMixer
from moslora.base.load import load_base, load_tokenizer
from moslora.evaluation import Request
from moslora.evaluation.batches import batch_budget
from moslora.evaluation.model import Local
from moslora.evaluation.scorers import make_encoder, make_scorer
from moslora.processes.devices import device
from moslora.prompts.formats import FORMATS
from moslora.recipe import AdapterSection, load_recipe
from moslora.tasks import Example

IN_PARTS = ("two-subspace mixing", "LoRA experts, dense gate", "LoRA experts, top-2 gate", "gates inside")
"""Systems whose parts can also be computed one after the other."""

ANSWERS = 4
"""Number of answers that are timed together, because one is too short."""

QUESTION = Example(
    "question",
    "arc_easy",
    "A pan of water is heated on a stove until most of the water is gone. Where has the water gone?",
    (
        "into the metal of the pan",
        "into the air as a gas",
        "into the flame of the stove",
        "nowhere, because it was never there",
    ),
    1,
)


BASE = "smollm2-135m"
TOKENS = 32
"""Number of tokens to generate."""

ROUNDS = 7


class Times(NamedTuple):
    """Seconds of an answer and tokens per second, one of each for each round."""

    answer: list[float]
    tokens_per_second: list[float]


class SequentialExperts(nn.Module):
    """Adapter layer that computes the experts of a fused layer one at a time, with its weights.

    With one gate y = base(x) + s Σᵢ gᵢ(x) · Bᵢ Aᵢ x. Inside LoRA y = base(x) + s Σⱼ g_B,ⱼ(x) · Bⱼ Σᵢ g_A,ᵢ(x) · Aᵢ x,
    and so in two-subspace mixing, where every g is one.

    Shapes: Aᵢ ``(r/k, in_features)``, Bᵢ ``(out_features, r/k)``, routers ``(k, in_features)``.

    Args:
        fused: a layer with one of those mixers and without dropout; its weights are copied, its base is shared.
    """

    def __init__(self, fused: AdapterLinear) -> None:
        super().__init__()
        mixer = fused.mixer
        assert isinstance(mixer, TokenGateMixer | GateInsideMixer | ButterflyMixer)
        self.count = mixer.options.blocks if isinstance(mixer, ButterflyMixer) else mixer.experts
        self.base = fused.base
        self.scale = fused.scale
        self.top_k = mixer.top_k if isinstance(mixer, TokenGateMixer) else None
        self.routers = nn.ParameterList(router.detach().clone() for router in mixer.parameters())
        self.a = nn.ParameterList(part.detach().clone() for part in fused.lora_a.chunk(self.count))
        self.b = nn.ParameterList(part.detach().clone() for part in fused.lora_b.chunk(self.count, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """y ``(..., out_features)`` for ``x (..., in_features)``."""
        y: Tensor = self.base(x)
        gates = [self._gate(x, router) for router in self.routers]  # (..., k)
        if len(gates) != 1:
            return y + self._inside(x, *gates)
        if self.top_k is not None:
            return y + self._chosen(x, gates[0], self.top_k)
        return y + _weighted([self._expert(i, x) for i in range(self.count)], gates[0])

    def _gate(self, x: Tensor, router: Tensor) -> Tensor:
        logits = F.linear(x, router.to(x.dtype))
        return logits.to(torch.promote_types(x.dtype, torch.float32)).softmax(-1)

    def _inside(self, x: Tensor, of_a: Tensor | None = None, of_b: Tensor | None = None) -> Tensor:
        h = _weighted([F.linear(x, a.to(x.dtype)) for a in self.a], of_a) * self.scale
        return _weighted([F.linear(h, b.to(x.dtype)) for b in self.b], of_b)

    def _chosen(self, x: Tensor, p: Tensor, top_k: int) -> Tensor:
        x = x.flatten(0, -2)  # (tokens, in_features)
        weights, chosen = p.flatten(0, -2).topk(top_k, dim=-1)  # (tokens, top_k)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        delta = x.new_zeros(len(x), self.b[0].shape[0])
        for i in range(self.count):
            token, place = torch.where(chosen == i)
            delta = delta.index_add(0, token, weights[token, place, None] * self._expert(i, x[token]))
        return delta.unflatten(0, p.shape[:-1])

    def _expert(self, i: int, x: Tensor) -> Tensor:
        h = F.linear(x, self.a[i].to(x.dtype)) * self.scale
        return F.linear(h, self.b[i].to(x.dtype))


def _weighted(outputs: Sequence[Tensor], gates: Tensor | None) -> Tensor:
    if gates is not None:
        outputs = [gates[..., i, None].to(output.dtype) * output for i, output in enumerate(outputs)]
    return torch.stack(list(outputs)).sum(0)


ONE_BY_ONE = ", one by one"
"""Suffix of a contestant's name if its parts are computed one after the other."""


def contestants(model: PreTrainedModel, adapter: AdapterSection) -> dict[str, Mapping[str, nn.Module]]:
    """Name of a contestant -> its layers by place. All share the base's weights, except for the merged layers."""
    found: dict[str, Mapping[str, nn.Module]] = {}
    for name in ("LoRA", "MoSLoRA", *IN_PARTS):
        inject(model, **adapter.model_dump(exclude={"continue_from"}) | {"mixer": SYSTEMS[name], "dropout": 0.0})
        layers = dict(named_adapters(model))
        for layer in layers.values():
            nn.init.normal_(layer.lora_b, std=0.02)
        bases = {place: layer.base for place, layer in layers.items()}
        put(model, bases)
        if not found:
            merged = {place: merge(layer) for place, layer in layers.items()}
            found |= {"base": bases, "merged": merged}
        found[name] = layers
        if name in IN_PARTS:
            found[name + ONE_BY_ONE] = {place: SequentialExperts(layer).eval() for place, layer in layers.items()}
    return found


@torch.no_grad()
def merge(layer: AdapterLinear) -> nn.Module:
    merged: Any = copy.deepcopy(layer.base)
    merged.weight.copy_(merged.weight.float() + layer.delta_weight())
    return merged


def put(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    for name, layer in layers.items():
        model.set_submodule(name, layer)


@torch.inference_mode()
def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: AdapterSection,
    *,
    tokens: int,
    repetitions: int,
    after_round: Callable[[dict[str, Times]], None] = lambda found: None,
) -> dict[str, Times]:
    """Time answers and the generation of ``tokens`` tokens by every contestant, after a round that warms up.

    ``after_round`` gets the times so far.
    """
    text = FORMATS["label"].generation_prompt(QUESTION)
    prompt = tokenizer(text, return_tensors="pt").input_ids.to(model.device)
    settings = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(prompt)}
    write: Any = partial(model.generate, prompt, max_new_tokens=tokens, min_new_tokens=tokens, **settings)  # type: ignore
    places = contestants(model, adapter)
    request = Request(protocol="choice", format="label")
    scorer = make_scorer(QUESTION, make_encoder(model.config, tokenizer, request), request)
    # Each keeps the adapters it first met.
    models = {name: Local(model, tokenizer, batch_budget(model.device)) for name in places}
    found = {name: Times([], []) for name in places}
    for number in range(repetitions + 1):
        for name in sorted(places, reverse=number % 2 == 0):
            put(model, places[name])
            answer = partial(scorer.score, [QUESTION], models[name])
            answer()  # the caches have another contestant's weights
            answering = sum(seconds(answer) for _ in range(ANSWERS)) / ANSWERS
            writing = seconds(write)
            if number:
                found[name].answer.append(answering)
                found[name].tokens_per_second.append(tokens / writing)
        if number:
            after_round(found)
    put(model, places["base"])
    return found


def medians(found: Mapping[str, Times]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "answer_ms": 1e3 * statistics.median(times.answer),
            "tokens_per_second": statistics.median(times.tokens_per_second),
        }
        for name, times in found.items()
    }


def table(found: Mapping[str, Times]) -> str:
    """Markdown table with a row for each contestant, including its times one part after the other."""
    rows = [["", "one answer, ms", "× base", "tokens/s", "time × base", "one by one: answer ×", "one by one: token ×"]]
    base = found["base"]
    for name, (answer, rate) in found.items():
        if name.endswith(ONE_BY_ONE):
            continue
        own = [spread([1e3 * time for time in answer]), spread(ratios(answer, base.answer))]
        own += [spread(rate), spread(ratios(base.tokens_per_second, rate))]
        slow = found.get(name + ONE_BY_ONE)
        parts = ["–", "–"]
        if slow:
            parts = [spread(ratios(slow.answer, answer)), spread(ratios(rate, slow.tokens_per_second))]
        rows.append([name, *own, *parts])
    return markdown(rows)


def main(*, print_only: bool = False) -> None:
    recipe = load_recipe(BASE)
    adapter = recipe.adapter
    assert isinstance(adapter, AdapterSection)
    model = load_base(recipe.model, device=device())
    tokenizer = load_tokenizer(recipe.model)
    found = table(measure(model, tokenizer, adapter, tokens=TOKENS, repetitions=ROUNDS))
    length = len(tokenizer(FORMATS["label"].generation_prompt(QUESTION)).input_ids)
    made = f"`{BASE}`, rank {adapter.rank}, {recipe.model.dtype}"
    times = f"median (quartiles) of {ROUNDS} rounds"
    answer = (
        f"{made}, batch of one: {times}. An answer: {length} tokens, scored by protocol `choice`. Writing: {TOKENS}"
        f" tokens, greedy, reading the question included. {machine()}."
    )
    page = DOCS / "argument.md"
    publish(f"{found}\n\n{answer}", page, "latency table", print_only=print_only)


if __name__ == "__main__":
    command(main)
