"""The update rules whose trajectories are compared: torch's where they are exact, a few lines where not."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Kind = Literal["sgd", "adam", "adamw", "lion", "muon", "torch-muon"]


@dataclass(frozen=True)
class Rule:
    """An optimizer with its clipping. Weight decay acts on A and B, never on M.

    Attributes:
        decay: L2 in SGD, decoupled everywhere else.
        rate_a: A's learning rate over that of B and M. A's decay is divided by it, so that rate × decay stays.
        eps_a: A's eps over that of B and M, in Adam and AdamW.
        clip_norm: limit of the gradient's norm over all the trained parameters.
        clip_value: limit of each entry of the gradient.
    """

    name: str
    kind: Kind
    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    decay: float = 0.0
    eps: float = 1e-8
    rate_a: float = 1.0
    eps_a: float = 1.0
    clip_norm: float = math.inf
    clip_value: float = math.inf

    def build(self, *, a: list[nn.Parameter], b: list[nn.Parameter], m: list[nn.Parameter]) -> Optimizer:
        """The optimizer over the three kinds of factors; an empty list is left out."""
        group_a = {"params": a, "lr": self.lr * self.rate_a, "weight_decay": self.decay / self.rate_a}
        groups = [group_a, {"params": b, "weight_decay": self.decay}]
        if m:
            groups.append({"params": m, "weight_decay": 0.0})
        if self.kind == "sgd":
            return torch.optim.SGD(groups, self.lr, momentum=self.momentum, nesterov=self.nesterov)
        if self.kind == "lion":
            return Lion(groups, {"lr": self.lr})
        if self.kind == "muon":
            return Muon(groups, {"lr": self.lr, "momentum": self.momentum})
        if self.kind == "torch-muon":
            return torch.optim.Muon(groups, self.lr, momentum=self.momentum, nesterov=False)
        group_a["eps"] = self.eps * self.eps_a
        optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.kind]
        return optimizer(groups, self.lr, eps=self.eps)

    def clip(self, parameters: Iterable[nn.Parameter]) -> None:
        """In place on the gradients, by value and by norm."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.clip_value < math.inf:
            for gradient in gradients:
                gradient.clamp_(-self.clip_value, self.clip_value)
        if self.clip_norm < math.inf:
            # Without the 1e-6 that torch.nn.utils.clip_grad_norm_ adds to the norm: with it, scaling the gradients
            # and the limit together would no longer be the same step.
            norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
            factor = torch.clamp(self.clip_norm / norm, max=1)
            for gradient in gradients:
                gradient.mul_(factor)


class _Decoupled(Optimizer):
    """p ← (1 − ηλ) p − η u, where a subclass says what u is."""

    def update(self, gradient: Tensor, m: Tensor, group: dict[str, Any]) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                m = self.state[parameter].setdefault("m", torch.zeros_like(parameter))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(group["lr"] * self.update(parameter.grad, m, group))


class Lion(_Decoupled):
    """u = sign(β₁ m + (1 − β₁) g), then m ← β₂ m + (1 − β₂) g (arXiv 2302.06675); β = (0.9, 0.99)."""

    def update(self, gradient: Tensor, m: Tensor, group: dict[str, Any]) -> Tensor:
        direction = torch.lerp(gradient, m, 0.9).sign()
        m.lerp_(gradient, 0.01)
        return direction


class Muon(_Decoupled):
    """u = polar(m), m ← μ m + g, with the exact polar factor (torch's own iterates towards one in bfloat16)."""

    def update(self, gradient: Tensor, m: Tensor, group: dict[str, Any]) -> Tensor:
        return polar(m.mul_(group["momentum"]).add_(gradient))


def polar(x: Tensor) -> Tensor:
    """U Vᵀ of x = U Σ Vᵀ over the non-zero singular values: 0 for 0, and polar(Q x) = Q polar(x)."""
    u, sigma, vh = torch.linalg.svd(x, full_matrices=False)
    kept = sigma > 1e-10 * sigma[0]
    return u[:, kept] @ vh[kept]


SGD = Rule("SGD", "sgd", lr=0.1)
MOMENTUM = Rule("momentum", "sgd", lr=0.02, momentum=0.9)
NESTEROV = Rule("Nesterov, decay", "sgd", lr=0.02, momentum=0.9, nesterov=True, decay=0.01)
CLIP_NORM = Rule("SGD, norm clipped", "sgd", lr=0.5, clip_norm=0.1)
MUON = Rule("Muon", "muon", lr=0.01, momentum=0.9, decay=0.1)
CLIP_VALUE = Rule("SGD, values clipped", "sgd", lr=1.0, clip_value=0.005)
ADAM = Rule("Adam", "adam", lr=0.01)
ADAMW = Rule("AdamW", "adamw", lr=0.01, decay=0.1)
LION = Rule("Lion", "lion", lr=0.005, decay=0.1)
TORCH_MUON = Rule("Muon in bfloat16", "torch-muon", lr=0.01, momentum=0.9, decay=0.1)

EQUIVARIANT = (SGD, MOMENTUM, NESTEROV, CLIP_NORM, MUON)
"""update(QX) = Q · update(X) for every orthogonal Q."""
ELEMENTWISE = (CLIP_VALUE, ADAM, ADAMW, LION)
"""Only for signed permutations."""
