"""The options of adapters, which `moslora.inject` and a recipe share, and what does not go together."""

from typing import Literal

from pydantic import PositiveFloat, SerializeAsAny

from moslora.mixer_options import INVERTIBLE, WELL_CONDITIONED, Conflicts, DenseOptions, Options
from moslora.schema import Modules, Share, Size, StrictModel

TARGETS = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")

Scaling = Literal["lora", "rslora"]
Start = Literal["lora", "pissa", "svd"]
Trains = Literal["all", "b", "mixer"]


class AdapterOptions(StrictModel):
    """The options of an adapter on each chosen linear layer, ΔW = s · B · M · A."""

    rank: Size = 16
    """Rows of A."""

    rank_out: Size | None = None
    """Columns of B, for a rectangular dense mixer; null for `rank`."""

    alpha: PositiveFloat = 32.0
    """Numerator of the adapter's scale s; see `scaling`."""

    scaling: Scaling = "lora"
    """Scale of ΔW. `lora`: s = alpha / rank. `rslora`: s = alpha / √rank (arXiv 2312.03732)."""

    dropout: Share = 0.05
    """Share of the adapter's inputs that are set to zero in training."""

    target_modules: Modules = TARGETS
    """Linear layers to adapt: a list of the last parts of their names, a regular expression for the whole dotted name,
    or `all-linear` for all but the output layer."""

    start: Start = "lora"
    """Start of A and B. `lora`: A at random, ΔW = 0. `pissa`: ΔW is the principal part of the base, which is removed
    from it (arXiv 2404.02948). `svd`: B = U and A = ΣVᵀ of the base's largest singular values (arXiv 2405.17604)."""

    trains: Trains = "all"
    """Weights that learn. `all`: A, B, and M where it has weights. `b`: only B (LoRA-FA, arXiv 2308.03303). `mixer`:
    only M (LoRA-XS, arXiv 2405.17604)."""

    dora: bool = False
    """Learn the norm of each row of the adapted weight separately (DoRA, arXiv 2402.09353)."""

    mixer: SerializeAsAny[Options] = DenseOptions()
    """M, the only part that differs between methods."""

    @property
    def scale(self) -> float:
        """s."""
        if self.scaling == "lora":
            return self.alpha / self.rank
        return self.alpha / self.rank**0.5

    def conflicts(self, *, drawn: bool) -> Conflicts:
        """Options that do not go together, in an adapter that is ``drawn``, or else has weights from elsewhere.

        Training must start at the base and be able to leave it: exactly one of B and M starts at zero, M perhaps only
        near it, and that one learns. With G = ∂L/∂ΔW the gradients are Mᵀ Bᵀ G of A, Bᵀ G Aᵀ of M and G Aᵀ Mᵀ of B: at
        first only the one at zero has any.
        """
        mixer = self.mixer
        yield from mixer.conflicts(rank=self.rank, rank_out=self.rank_out)
        if self.dora and mixer.routes:
            needs = "DoRA needs one ΔW to normalise by"
            yield "dora mixer.kind", f"{needs}, and {mixer.kind} has one per token or task; set dora: false"
        if drawn and self.trains == "b" and (mixer.starts_at_zero or mixer.routes):
            # M would keep its start: zero, or a gate that never learned anything.
            fix = "set the mixer's kind to identity, or trains: all"
            keys = "trains mixer.kind mixer.init"
            yield keys, f"M keeps its initial value, here zero or a random gate, with trains: b; {fix}"
        if not drawn and self.trains == "mixer" and not (isinstance(mixer, DenseOptions) and mixer.train == "learned"):
            keys = "trains mixer.kind mixer.train"
            yield keys, "M has no weights that learn, and nothing else would; set trains: all"
        m_at_zero = mixer.kind == "dense" and mixer.starts_at_zero
        for field, value, usual in (("trains", "mixer", "all"), ("start", "svd", "lora")):
            if getattr(self, field) == value and not m_at_zero and (drawn or field == "start"):
                fix = f"set the mixer to {{kind: dense, init: near-zero}}, as in methods/lora-xs, or {field}: {usual}"
                keys = f"{field} mixer.kind mixer.init"
                yield keys, f"B does not start at zero with {field}: {value}, so M must start at zero or near it; {fix}"
        is_square = self.rank_out in (None, self.rank)
        if self.start == "pissa" and not (is_square and mixer.starts_well_conditioned):
            # A random matrix has small singular values: its inverse is large, and B · M · A a difference of large
            # numbers, which in bfloat16 is no longer the part removed from the base.
            fix = f"{', '.join(INVERTIBLE)} (dense with init: {' or '.join(WELL_CONDITIONED)}), or start: lora"
            yield "start mixer.kind mixer.init", f"a PiSSA start inverts M; set the mixer's kind to {fix}"
