"""AdaLoRA's rank budget (arXiv 2303.10512, section 3.3): which entries of the diagonal mixers are kept.

An entry eᵢ with its row aᵢ of A and its column bᵢ of B is a triplet. Its importance is

    S = s(e) + mean_j s(aⱼ) + mean_j s(bⱼ),   s = Ī · Ū,   I = |p · ∂L/∂p|,
    Ī ← β₁ Ī + (1 − β₁) I,   Ū ← β₂ Ū + (1 − β₂) |I − Ī|,

and the b(t) most important triplets of all layers keep their e; the others' e becomes zero. It still receives a
gradient and may come back, until the last phase: the choice made after update total − final, from the scores of the
updates before that one (as in the released code and in PEFT), stays for all later updates.
"""

import torch
from torch import Tensor, nn

from moslora.adapters import named_adapters
from moslora.errors import UsageError
from moslora.recipe import RankBudgetSection

BETAS = (0.85, 0.85)
"""Decay rates β₁ and β₂, as in PEFT."""


def budget_at(step: int, *, first: int, target: int, warmup: int, final: int, total: int) -> int:
    """Number of entries b(t) that are kept after ``step`` of ``total`` updates.

    It is ``first`` up to ``warmup`` updates, ``target`` in the last ``final`` updates, and in between target + (first −
    target) · (1 − (step − warmup) / (total − final − warmup))³, rounded down.
    """
    if step <= warmup:
        return first
    if step > total - final:
        return target
    left = 1 - (step - warmup) / (total - final - warmup)
    return int(target + (first - target) * left**3)


class RankBudget:
    """Pruning of a model's diagonal mixers to a decreasing number of most important entries.

    The shares in ``section`` are shares of ``total`` updates. The last phase has at least one update. Warm-up and last
    phase that are together not shorter than the run are refused.
    """

    def __init__(self, model: nn.Module, section: RankBudgetSection, *, total: int) -> None:
        self._layers = list(named_adapters(model))
        warmup = round(section.warmup_share * total)
        final = max(1, round(section.final_share * total))
        if warmup + final >= total:
            raise UsageError(
                f"training.rank_budget: warm-up ({warmup} steps) and final phase ({final} steps, at least 1) must be"
                f" shorter than the run ({total} steps); lengthen the run or shorten them"
            )
        self._phases = {"warmup": warmup, "final": final, "total": total}
        self._ranks = [layer.mixer.rank_in for _, layer in self._layers]
        self._target = section.target_rank * len(self._layers)
        self._parameters: dict[str, Tensor] = {}
        for name, layer in self._layers:
            e = layer.mixer.get_parameter("weight")
            self._parameters |= {f"{name}.lora_a": layer.lora_a, f"{name}.lora_b": layer.lora_b, f"{name}.e": e}
        self.averages: dict[str, Tensor] = {}
        """Ī and Ū by parameter name. They do not change in the final phase, so that its choice follows from them."""

        for name, parameter in self._parameters.items():
            self.averages[f"{name}:mean"] = torch.zeros_like(parameter)
            self.averages[f"{name}:spread"] = torch.zeros_like(parameter)

    @property
    def reached_at(self) -> int:
        """First update after which no more entries are dropped."""
        return self._phases["total"] - self._phases["final"]

    @torch.no_grad()
    def prune(self, step: int, *, skipped: bool = False) -> dict[str, float]:
        """Score and prune after update number ``step`` (from 1), while its gradients are still in place.

        An update that the float16 scaler skipped, because a gradient overflowed, is not scored.

        Returns:
            Metrics: the budget b(t) as ``rank_budget``.
        """
        fixed = step >= self.reached_at
        if not (fixed or skipped):
            self._score()
        budget = budget_at(step, first=sum(self._ranks), target=self._target, **self._phases)
        if fixed or step > self._phases["warmup"]:
            self._keep(budget)
        return {"rank_budget": budget}

    def _score(self) -> None:
        for name, parameter in self._parameters.items():
            assert parameter.grad is not None
            importance = (parameter * parameter.grad).abs()
            mean = self.averages[f"{name}:mean"].lerp_(importance, 1 - BETAS[0])
            self.averages[f"{name}:spread"].lerp_((importance - mean).abs(), 1 - BETAS[1])

    def scores(self) -> Tensor:
        """Importance S of every triplet, layer after layer, shape ``(first,)``, the number of triplets at the start."""
        s = {name: self.averages[f"{name}:mean"] * self.averages[f"{name}:spread"] for name in self._parameters}
        of_layers = []
        for name, _ in self._layers:
            of_layers.append(s[f"{name}.e"] + s[f"{name}.lora_a"].mean(1) + s[f"{name}.lora_b"].mean(0))
        return torch.cat(of_layers)

    def _keep(self, count: int) -> None:
        """Zero all but the ``count`` most important entries. Equal entries are kept in the order of the layers, so that
        exactly ``count`` survive on every process; PEFT drops all that tie."""
        scores = self.scores()
        order = scores.argsort(descending=True, stable=True)
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept.index_fill_(0, order[:count], True)  # a number assigned to places would be sent, and waited for
        for (name, _), mask in zip(self._layers, kept.split(self._ranks), strict=True):
            self._parameters[f"{name}.e"].mul_(mask)
