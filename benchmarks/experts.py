"""Experts one by one against all at once: what the fused token gate saves.

    python benchmarks/experts.py
    python benchmarks/experts.py --layers 576x1536 --no-model --repetitions 5 --print-only

The same mixture of LoRA experts in two programs, with the same weights and, checked before any timing, the same
output and gradients. Fused is `moslora.adapters.TokenGateMixer`. Sequential loops over the experts: dense as LoRAMoE
does, every expert on every token; top-k as MoLA does, each expert on the tokens that chose it, picked by index.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moslora.adapters import AdapterLinear, TokenGateMixer, build_mixer, inject, named_adapters
from moslora.base.load import load_base
from moslora.data.encode import IGNORE_INDEX, Encoded
from moslora.data.steps import collate
from moslora.recipe import load_recipe
from moslora.training.objective import LabelLoss
from report import alternate, machine, markdown, spread, write_between

ROOT = Path(__file__).parents[1]
TABLE = "experts table"
EXPERTS = (2, 4, 8)
RANK, SCALE = 16, 2.0
TOKENS, ROW = 512, 32
"""Tokens of a forward pass, and of each row of it in the whole model."""


class SequentialExperts(nn.Module):
    """y = base(x) + s Σᵢ gᵢ(x) · Bᵢ Aᵢ x, one expert at a time, with the weights of a fused layer.

    Shapes: Aᵢ ``(r/k, in_features)``, Bᵢ ``(out_features, r/k)``, router ``(k, in_features)``.

    Args:
        fused: a layer with a token gate and without dropout; its weights are copied, its base is shared.
    """

    def __init__(self, fused: AdapterLinear) -> None:
        super().__init__()
        mixer = fused.mixer
        if not isinstance(mixer, TokenGateMixer):
            raise TypeError("experts need a token gate")
        self.base, self.scale, self.top_k = fused.base, fused.scale, mixer.top_k
        self.router = nn.Parameter(mixer.weight.detach().clone())
        self.a = nn.ParameterList(part.detach().clone() for part in fused.lora_a.chunk(mixer.experts))
        self.b = nn.ParameterList(part.detach().clone() for part in fused.lora_b.chunk(mixer.experts, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(..., in_features)`` to ``(..., out_features)``."""
        y: Tensor = self.base(x)
        logits = F.linear(x, self.router.to(x.dtype))
        p = logits.to(torch.promote_types(x.dtype, torch.float32)).softmax(-1)  # (..., k)
        return y + (self._all(x, p) if self.top_k is None else self._chosen(x, p, self.top_k))

    def _all(self, x: Tensor, p: Tensor) -> Tensor:
        outputs = [p[..., i, None].to(x.dtype) * self._expert(i, x) for i in range(len(self.a))]
        return torch.stack(outputs).sum(0)

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


def gate(experts: int, top_k: int | None) -> dict[str, object]:
    """The mixer's options, as in a recipe."""
    return {"kind": "token-gate", "experts": experts, "top_k": top_k}


def fused_layer(d_in: int, d_out: int, experts: int, top_k: int | None, *, dtype: torch.dtype) -> AdapterLinear:
    """One adapted layer with weights moved from their start, where B = 0 would make any two programs equal."""
    torch.manual_seed(0)
    mixer = build_mixer(rank=RANK, in_features=d_in, **gate(experts, top_k))  # type: ignore[arg-type]
    layer = AdapterLinear(nn.Linear(d_in, d_out, bias=False, dtype=dtype), mixer=mixer, scale=SCALE)
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
    router = fused.mixer.get_parameter("weight")
    torch.testing.assert_close(sequential.router.grad, router.grad, rtol=1e-9, atol=1e-11)
    for parts, whole, dim in ((sequential.a, fused.lora_a, 0), (sequential.b, fused.lora_b, 1)):
        grads = torch.cat([part.grad for part in parts if part.grad is not None], dim=dim)
        torch.testing.assert_close(grads, whole.grad, rtol=1e-9, atol=1e-11)


def layer_steps(
    d_in: int, d_out: int, experts: int, top_k: int | None, *, tokens: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forward and backward pass of one layer in bfloat16, fused and sequential."""
    device = _device()
    fused = fused_layer(d_in, d_out, experts, top_k, dtype=torch.bfloat16).to(device)
    x = torch.randn(1, tokens, d_in, dtype=torch.bfloat16, device=device, requires_grad=True)
    upstream = torch.randn(1, tokens, d_out, dtype=torch.bfloat16, device=device)

    def step_of(layer: nn.Module) -> Callable[[], None]:
        def step() -> None:
            for leaf in (x, *layer.parameters()):
                leaf.grad = None
            layer(x).backward(upstream)

        return step

    return step_of(fused), step_of(SequentialExperts(fused))


def model_steps(base: str, experts: int, top_k: int | None) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forward pass, backward pass and update of the whole model, fused and sequential."""
    recipe, device = load_recipe(base), _device()
    ids = torch.randint(100, 1000, (TOKENS // ROW, ROW), generator=torch.Generator().manual_seed(0)).to(device)
    rows = [Encoded("row", "none", row, [IGNORE_INDEX] * (ROW - 6) + row[-6:], False) for row in ids.tolist()]
    batch = collate(rows, device=device)

    def step_of(sequential: bool) -> Callable[[], None]:
        model = load_base(recipe.model, device=device)
        targets = recipe.adapter.target_modules
        inject(model, rank=RANK, alpha=SCALE * RANK, mixer=gate(experts, top_k), target_modules=targets)
        if sequential:
            for name, layer in list(named_adapters(model)):
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, SequentialExperts(layer))
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
    # A choice of one expert is none: its weight, scaled to sum to one, is 1 whatever the router says.
    kinds = [("dense", EXPERTS, lambda k: None), ("top-k", EXPERTS[1:], lambda k: k // 2)]
    rows = [["", "gate", *(f"k = {k}" for k in EXPERTS)]]
    for d_in, d_out in layers:
        for name, counts, top_k in kinds:
            cells = ["–"] * (len(EXPERTS) - len(counts))
            for k in counts:
                check(fused_layer(d_in, d_out, k, top_k(k), dtype=torch.bfloat16))
                cells.append(ratios(layer_steps(d_in, d_out, k, top_k(k), tokens=tokens), repetitions=repetitions))
            rows.append([f"one layer, {d_in} → {d_out}", name, *cells])
            print(rows[-1], flush=True)
    if base is not None:
        for name, counts, top_k in kinds:
            cells = ["–"] * (len(EXPERTS) - len(counts))
            cells += [ratios(model_steps(base, k, top_k(k)), repetitions=repetitions) for k in counts]
            rows.append([f"training step of `{base}`", name, *cells])
            print(rows[-1], flush=True)
    notes = (
        f"Step time of the sequential program over that of the fused one: median (quartiles) of {repetitions} pairs,"
        f" in turns. k experts of rank {RANK}/k; top-k takes k/2 of them. A layer: forward and backward pass in"
        f" bfloat16 of {tokens} tokens, the frozen product included. The model: forward, backward and update,"
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
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "methods.md", help="where the table is written")
    parser.add_argument("--print-only", action="store_true", help="leave the document as it is")
    given = parser.parse_args()
    text = table(
        layers=given.layers,
        base=None if given.no_model else given.base,
        repetitions=given.repetitions,
        tokens=given.tokens,
    )
    print(text)
    if not given.print_only:
        write_between(given.docs, TABLE, text)
        print(f"written to {given.docs}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
