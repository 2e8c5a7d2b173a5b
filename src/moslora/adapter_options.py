"""Options of adapters, shared by `moslora.inject` and recipes, and the combinations of them that cannot work."""

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
    """Numerator of the scale s; see `scaling`."""

    scaling: Scaling = "lora"
    """Rule for s. `lora`: alpha / rank. `rslora`: alpha / √rank (arXiv 2312.03732)."""

    dropout: Share = 0.05
    """Share of the adapter's inputs that are set to zero in training."""

    target_modules: Modules = TARGETS
    """Linear layers to adapt: a list of the last parts of names, a regular expression for the whole name, or
    `all-linear` for all but the output layer."""

    start: Start = "lora"
    """Start of A and B. `lora`: A random, ΔW = 0. `pissa`: ΔW takes the principal part out of the base (arXiv
    2404.02948). `svd`: B = U, A = ΣVᵀ of the base's largest singular values (arXiv 2405.17604)."""

    trains: Trains = "all"
    """Weights that learn. `all`: A, B and M. `b`: only B (LoRA-FA, arXiv 2308.03303). `mixer`: only M (LoRA-XS, arXiv
    2405.17604)."""

    dora: bool = False
    """Learn the norm of each row of the adapted weight separately (DoRA, arXiv 2402.09353)."""

    mixer: SerializeAsAny[Options] = DenseOptions()
    """M, the only part that differs between methods."""

    @property
    def scale(self) -> float:
        """Scale s of ΔW."""
        if self.scaling == "lora":
            return self.alpha / self.rank
        return self.alpha / self.rank**0.5

    def conflicts(self, *, drawn: bool) -> Conflicts:
        """List the combinations of options that cannot work.

        Training must start at the base and be able to leave it: exactly one of B and M starts at zero (M perhaps only
        near it) and learns. With G = ∂L/∂ΔW the gradients are Mᵀ Bᵀ G of A, Bᵀ G Aᵀ of M and G Aᵀ Mᵀ of B. In the first
        step only the factor at zero has one.

        Args:
            drawn: the weights are initialised by `start`; false if they come from another adapter.
        """
        mixer = self.mixer
        yield from mixer.conflicts(rank=self.rank, rank_out=self.rank_out)
        if self.dora and mixer.routes:
            needs = "DoRA needs one ΔW to normalise by"
            yield "dora mixer.kind", f"{needs}, and {mixer.kind} has one per token or task; set dora: false"
        if drawn and self.trains == "b" and (mixer.starts_at_zero or mixer.routes):
            fix = "set the mixer's kind to identity, or trains: all"
            keys = "trains mixer.kind mixer.init"
            yield keys, f"with trains: b M stays at its initial value, which is zero or a random gate; {fix}"
        if not drawn and self.trains == "mixer" and not (isinstance(mixer, DenseOptions) and mixer.train == "learned"):
            keys = "trains mixer.kind mixer.train"
            yield keys, "with trains: mixer only M learns, and this M has no weights; set trains: all"
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
