"""Experts one by one against all at once: what the fused layers save.

    python benchmarks/experts.py
    python benchmarks/experts.py --layers 576x1536 --no-model --repetitions 5 --print-only

The same mixture of LoRA experts in two programs, with the same weights and, checked before any timing, the same
output and gradients. Fused are the mixers of `moslora.adapters`. Sequential loops over the experts: dense as LoRAMoE
does, every expert on every token; top-k as MoLA does, each expert on the tokens that chose it, picked by index; inside
LoRA first over those of A, then over those of B.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moslora.adapters import AdapterLinear, build_mixer, inject, named_adapters
from moslora.adapters.mixers.fixed import ButterflyMixer
from moslora.adapters.mixers.gates import GateInsideMixer, TokenGateMixer
from moslora.base.load import load_base
from moslora.data.encode import IGNORE_INDEX, Encoded
from moslora.data.steps import collate
from moslora.recipe import load_recipe
from moslora.training.objective import LabelLoss
from report import alternate, machine, markdown, publish, spread

ROOT = Path(__file__).parents[1]
TABLE = "experts table"
EXPERTS = (2, 4, 8)
RANK, SCALE = 16, 2.0
TOKENS, ROW = 512, 32
"""Tokens of a forward pass, and of each row of it in the whole model."""

KINDS: dict[str, Callable[[int], dict[str, Any] | None]] = {
    "dense gate": lambda k: {"kind": "token-gate", "experts": k},
    # A choice of one expert is none: its weight, scaled to sum to one, is 1 whatever the router says.
    "top-k gate": lambda k: {"kind": "token-gate", "experts": k, "top_k": k // 2} if k > 2 else None,
    "gates inside": lambda k: {"kind": "gate-inside", "experts": k},
    "two-subspace": lambda k: {"kind": "butterfly", "blocks": k},
}
"""By name: the mixer for k experts, as in a recipe; ``None`` where there is none."""


class SequentialExperts(nn.Module):
    """A fused layer's experts one at a time, with its weights.

    With one gate y = base(x) + s Σᵢ gᵢ(x) · Bᵢ Aᵢ x. Inside LoRA y = base(x) + s Σⱼ g_B,ⱼ(x) · Bⱼ Σᵢ g_A,ᵢ(x) · Aᵢ x,
    and so in two-subspace mixing, where every g is one.

    Shapes: Aᵢ ``(r/k, in_features)``, Bᵢ ``(out_features, r/k)``, routers ``(k, in_features)``.

    Args:
        fused: a layer with one of those mixers and without dropout; its weights are copied, its base is shared.
    """

    def __init__(self, fused: AdapterLinear) -> None:
        super().__init__()
        mixer = fused.mixer
        if not isinstance(mixer, TokenGateMixer | GateInsideMixer | ButterflyMixer):
            raise TypeError("experts need a token gate, gates inside or two-subspace mixing")
        count = mixer.blocks if isinstance(mixer, ButterflyMixer) else mixer.experts
        self.base, self.scale = fused.base, fused.scale
        self.top_k = mixer.top_k if isinstance(mixer, TokenGateMixer) else None
        self.routers = nn.ParameterList(router.detach().clone() for router in mixer.parameters())
        self.a = nn.ParameterList(part.detach().clone() for part in fused.lora_a.chunk(count))
        self.b = nn.ParameterList(part.detach().clone() for part in fused.lora_b.chunk(count, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(..., in_features)`` to ``(..., out_features)``."""
        y: Tensor = self.base(x)
        gates = [self._gate(x, router) for router in self.routers]  # (..., k)
        if len(gates) != 1:
            return y + self._inside(x, *gates)
        return y + (self._all(x, gates[0]) if self.top_k is None else self._chosen(x, gates[0], self.top_k))

    def _gate(self, x: Tensor, router: Tensor) -> Tensor:
        logits = F.linear(x, router.to(x.dtype))
        return logits.to(torch.promote_types(x.dtype, torch.float32)).softmax(-1)

    def _all(self, x: Tensor, p: Tensor) -> Tensor:
        outputs = [p[..., i, None].to(x.dtype) * self._expert(i, x) for i in range(len(self.a))]
        return torch.stack(outputs).sum(0)

    def _inside(self, x: Tensor, of_a: Tensor | None = None, of_b: Tensor | None = None) -> Tensor:
        h = _weighted([F.linear(x, a.to(x.dtype)) for a in self.a], of_a) * self.scale
        return _weighted([F.linear(h, b.to(x.dtype)) for b in self.b], of_b)

    def _chosen(self, x: Tensor, p: Tensor, top_k: int) -> Tensor:
        x = x.flatten(0, -2)  # (tokens, in_features)
        weights, chosen = p.flatten(0, -2).topk(top_k, dim=-1)  # (tokens, top_k)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        delta = x.new_zeros(len(x), self.b[0].shape[0])
        for i in range(len(self.a)):
            token, place = torch.where(chosen == i)
            delta = delta.index_add(0, token, weights[token, place, None] * self._expert(i, x[token]))
        return delta.unflatten(0, p.shape[:-1])

    def _expert(self, i: int, x: Tensor) -> Tensor:
        u = F.linear(x, self.a[i].to(x.dtype)) * self.scale
        return F.linear(u, self.b[i].to(x.dtype))


def _weighted(outputs: Sequence[Tensor], gates: Tensor | None) -> Tensor:
    if gates is not None:
        outputs = [gates[..., i, None].to(output.dtype) * output for i, output in enumerate(outputs)]
    return torch.stack(list(outputs)).sum(0)


def fused_layer(d_in: int, d_out: int, mixer: Mapping[str, Any], *, dtype: torch.dtype) -> AdapterLinear:
    """One adapted layer with weights moved from their start, where B = 0 would make any two programs equal.

    Args:
        d_in: its input features.
        d_out: its output features.
        mixer: its kind and options, as in a recipe.
        dtype: of the base and the products.
    """
    torch.manual_seed(0)
    layer = AdapterLinear(
        nn.Linear(d_in, d_out, bias=False, dtype=dtype),
        mixer=build_mixer(rank=RANK, in_features=d_in, **mixer),
        scale=SCALE,
    )
    layer.reset_parameters()
    nn.init.normal_(layer.lora_b, std=0.02)
    return layer


def check(fused: AdapterLinear, *, tokens: int = 32) -> None:
    """Output and gradients of both programs in float64.

    Raises:
        AssertionError: they differ.
    """
    fused = fused.double()
    sequential = SequentialExperts(fused)
    x = torch.randn(2, tokens // 2, fused.in_features, dtype=torch.float64)
    results = []
    for layer in (fused, sequential):
        own = x.clone().requires_grad_()
        y = layer(own)
        y.square().sum().backward()
        results.append((y, own.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-11)
    for own_router, router in zip(sequential.routers, fused.mixer.parameters(), strict=True):
        torch.testing.assert_close(own_router.grad, router.grad, rtol=1e-9, atol=1e-11)
    for parts, whole, dim in ((sequential.a, fused.lora_a, 0), (sequential.b, fused.lora_b, 1)):
        grads = torch.cat([part.grad for part in parts if part.grad is not None], dim=dim)
        torch.testing.assert_close(grads, whole.grad, rtol=1e-9, atol=1e-11)


def layer_steps(
    d_in: int, d_out: int, mixer: Mapping[str, Any], *, tokens: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forward and backward pass of one layer in bfloat16, fused and sequential."""
    device = _device()
    fused = fused_layer(d_in, d_out, mixer, dtype=torch.bfloat16).to(device)
    x = torch.randn(1, tokens, d_in, dtype=torch.bfloat16, device=device, requires_grad=True)
    upstream = torch.randn(1, tokens, d_out, dtype=torch.bfloat16, device=device)

    def step_of(layer: nn.Module) -> Callable[[], None]:
        def step() -> None:
            for leaf in (x, *layer.parameters()):
                leaf.grad = None
            layer(x).backward(upstream)

        return step

    return step_of(fused), step_of(SequentialExperts(fused))


def model_steps(base: str, mixer: Mapping[str, Any]) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forward pass, backward pass and update of the whole model, fused and sequential."""
    recipe, device = load_recipe(base), _device()
    ids = torch.randint(100, 1000, (TOKENS // ROW, ROW), generator=torch.Generator().manual_seed(0)).to(device)
    rows = [Encoded("row", "none", row, [IGNORE_INDEX] * (ROW - 6) + row[-6:], False) for row in ids.tolist()]
    batch = collate(rows, device=device)

    def step_of(sequential: bool) -> Callable[[], None]:
        model = load_base(recipe.model, device=device)
        targets = recipe.adapter.target_modules
        inject(model, rank=RANK, alpha=SCALE * RANK, mixer=mixer, target_modules=targets)
        if sequential:
            for name, layer in list(named_adapters(model)):
                model.set_submodule(name, SequentialExperts(layer))
        objective = LabelLoss(model).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

        def step() -> None:
            objective(batch)[0].backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    return step_of(False), step_of(True)


def ratios(steps: tuple[Callable[[], None], Callable[[], None]], *, repetitions: int) -> str:
    """Sequential over fused, pair by pair: median and quartiles."""
    fused, sequential = alternate(*steps, repetitions=repetitions, warmup=2)
    return spread([slow / fast for fast, slow in zip(fused, sequential, strict=True)])


def table(*, layers: Sequence[tuple[int, int]], base: str | None, repetitions: int, tokens: int) -> str:
    """The measurement, as Markdown."""
    rows = [["", "mixer", *(f"k = {k}" for k in EXPERTS)]]
    for d_in, d_out in layers:
        for name, make in KINDS.items():
            cells = []
            for k in EXPERTS:
                if mixer := make(k):
                    check(fused_layer(d_in, d_out, mixer, dtype=torch.bfloat16))
                    cells.append(ratios(layer_steps(d_in, d_out, mixer, tokens=tokens), repetitions=repetitions))
                else:
                    cells.append("–")
            rows.append([f"one layer, {d_in} → {d_out}", name, *cells])
            print(rows[-1], flush=True)
    if base is not None:
        for name, make in KINDS.items():
            mixers = [make(k) for k in EXPERTS]
            cells = [ratios(model_steps(base, mixer), repetitions=repetitions) if mixer else "–" for mixer in mixers]
            rows.append([f"training step of `{base}`", name, *cells])
            print(rows[-1], flush=True)
    notes = (
        f"Step time of the sequential program over that of the fused one: median (quartiles) of {repetitions} pairs,"
        f" in turns. k experts of rank {RANK}/k; the top-k gate takes k/2 of them. A layer: forward and backward pass"
        f" in bfloat16 of {tokens} tokens, the frozen product included. The model: forward, backward and update,"
        f" {TOKENS} tokens. {machine()}."
    )
    return f"{markdown(rows)}\n\n{notes}"


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _layer(text: str) -> tuple[int, int]:
    d_in, d_out = map(int, text.split("x"))
    return d_in, d_out


def main() -> int:
    parser = argparse.ArgumentParser(description="Time fused against sequential experts.")
    parser.add_argument("--layers", nargs="*", type=_layer, default=[(576, 1536), (4096, 4096)], metavar="INxOUT")
    parser.add_argument("--base", default="smollm2-135m", help="recipe with the model (%(default)s)")
    parser.add_argument("--no-model", action="store_true", help="only the layers")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a layer's forward pass (%(default)s)")
    parser.add_argument("--repetitions", type=int, default=9, help="timed pairs (%(default)s)")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "argument.md", help="where the table is written")
    parser.add_argument("--print-only", action="store_true", help="leave the document as it is")
    given = parser.parse_args()
    text = table(
        layers=given.layers,
        base=None if given.no_model else given.base,
        repetitions=given.repetitions,
        tokens=given.tokens,
    )
    publish(text, given.docs, TABLE, print_only=given.print_only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
