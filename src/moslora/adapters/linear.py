"""Adapter layer of all methods: a frozen linear map plus s · B · M · A."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moslora.adapter_options import Trains
from moslora.adapters.factors import Factors
from moslora.adapters.magnitude import Magnitude
from moslora.adapters.mixers.base import Mixer, kaiming
from moslora.kernels.dropout import Dropout, zero_dropped
from moslora.kernels.linear import add_product


class AdapterLinear(nn.Module):
    """Linear layer with an adapter: y = base(x) + s · B · M · A · dropout(x), computed as B ((M A) dropout(x)).

    A mixer that routes is applied after A instead, and so is a mixer that learns alone, whose gradient then needs A x
    and not x.

    The base (``nn.Linear``, a 4-bit linear, …) is called, never subclassed: one adapter class fits any base. The
    factors stay in float32 and are cast to the dtype of ``x`` for the product; the activations are never cast up.
    In training `moslora.adapters.shared_inputs` folds and casts the factors of all layers at once, and layers that read
    the same x drop the same entries. ``context``, which :func:`moslora.adapters.inject` shares among layers, holds all
    other inputs of the forward pass.

    Shapes: ``lora_a mixer.shape_of_a(in_features)``, usually ``(mixer.rank_in, in_features)``;
    ``lora_b (out_features, mixer.rank_out)``.

    Start (arXiv 2106.09685 section 4.1, microsoft/LoRA): A ~ U(±1/√in_features). B = 0, or, where the mixer
    starts at zero, B ~ U(±1/√rank_out). A mixer may ask for normal draws instead (``factor_std``). A part of the base
    that an adapter starts with (PiSSA, `moslora.adapters.start`) leaves the base, and is kept in ``start_a (r,
    in_features)`` and ``start_b (out_features, r)``.

    Args:
        base: the linear map to adapt, with ``in_features`` and ``out_features``. It is frozen here.
        mixer: M.
        scale: s; α/r in LoRA.
        dropout: probability of dropping an entry of ``x`` on the adapter's path.
        trains: ``all``, as far as the mixer learns at all; ``b`` or ``mixer`` alone. A magnitude always learns.
        magnitude: for DoRA; then y = x · W'ᵀ + bias with W' = m ∘ (W + ΔW) / ‖W + ΔW‖. Not with a mixer that routes.
    """

    start_a: Tensor | None
    start_b: Tensor | None

    def __init__(
        self,
        base: nn.Module,
        *,
        mixer: Mixer,
        scale: float,
        dropout: float = 0.0,
        trains: Trains = "all",
        magnitude: Magnitude | None = None,
    ) -> None:
        super().__init__()
        self.in_features = int(base.in_features)  # type: ignore[arg-type]
        self.out_features = int(base.out_features)  # type: ignore[arg-type]
        self.scale = scale
        self.base = base.requires_grad_(False)
        self.dropout = Dropout(dropout)
        a = torch.empty(mixer.shape_of_a(self.in_features), dtype=torch.float32)
        b = torch.empty(self.out_features, mixer.rank_out, dtype=torch.float32)
        self.lora_a = nn.Parameter(a, requires_grad=trains == "all")
        self.mixer = mixer
        if trains == "b":
            mixer.requires_grad_(False)
        self.lora_b = nn.Parameter(b, requires_grad=trains != "mixer")
        self.folds = not mixer.options.routes and trains != "mixer"
        self.magnitude = magnitude
        self.context = mixer.context
        self.register_buffer("start_a", None)
        self.register_buffer("start_b", None)

    def reset_parameters(
        self, generator: torch.Generator | None = None, mixer_generator: torch.Generator | None = None
    ) -> None:
        """Draw A, B and M. M has its own generator, so that A and B do not depend on the kind of mixer."""
        drawn = [self.lora_a]
        if self.mixer.options.starts_at_zero:
            drawn.append(self.lora_b)
        else:
            nn.init.zeros_(self.lora_b)
        for factor in drawn:
            if self.mixer.factor_std is None:
                kaiming(factor, generator)
            else:
                nn.init.normal_(factor, std=self.mixer.factor_std, generator=generator)
        self.mixer.reset_parameters(mixer_generator)

    @property
    def weight(self) -> Tensor:
        """Weight of the base ``(out_features, in_features)``.

        Code that reads this weight leaves out the adapter, so reading it adds the layer to `Context.bypassed`.
        """
        self.context.bypassed.add(self)
        weight: Tensor = self.base.get_parameter("weight")
        return weight

    @property
    def bias(self) -> Tensor | None:
        """Bias of the base ``(out_features,)``, if it has a bias."""
        return getattr(self.base, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """y ``(..., out_features)`` in the dtype of the base's output, for ``x (..., in_features)``."""
        if self.context.plain:
            return self._plain(x)
        factors, place = self._factors(x.dtype)
        u, x_for_base, drawn = factors.project_down(x, place, self.dropout)
        if not self.folds:
            u = self.mixer(u, x)
        if self.magnitude is None:
            return add_product(self.base, x_for_base, u, factors.b[place])
        return self._rescaled(self.base(x_for_base), F.linear(u, factors.b[place]), x_for_base, drawn)

    def _plain(self, x: Tensor) -> Tensor:
        """y by the plain formula, with torch only; shapes as in :meth:`forward`."""
        a, b = (factor.to(x.dtype) for factor in self.scaled_factors())
        drawn = self.dropout.draw(x)
        u = F.linear(zero_dropped(x, drawn), a)
        if not self.folds:
            u = self.mixer(u, x)
        delta = F.linear(u, b)
        y: Tensor = self.base(x)
        if not isinstance(y, Tensor):  # a router of experts
            self.context.bypassed.add(self)
        if self.magnitude is None:
            return y + delta
        return self._rescaled(y, delta, x, drawn)

    def _factors(self, dtype: torch.dtype) -> tuple[Factors, int]:
        """Return the factors in ``dtype``, and this layer's place among the layers that share them."""
        fold = self.context.folds.get(self)
        if fold is not None:
            fold()
        shared = self.context.factors.get(self)
        if shared is not None and shared[0].a.dtype == dtype:
            return shared
        a, b = self.scaled_factors()
        return Factors(a.to(dtype), b.to(dtype)), 0

    def scaled_factors(self) -> tuple[Tensor, Tensor]:
        """(s · M · A, B) in float32, shapes ``(r, in_features)`` and ``(out_features, r)``.

        It is (s · A, B) if M is not folded. s includes dropout's 1 / (1 − p).
        """
        a: Tensor = self.lora_a
        b: Tensor = self.lora_b
        if self.folds:
            a, b = self.mixer.fold(a, b)
        return a * (self.scale * self.dropout.scale), b

    def _rescaled(self, y: Tensor, delta: Tensor, x: Tensor, drawn: Tensor | None) -> Tensor:
        """DoRA's y = g ∘ (W + ΔW) x + bias with g = m / ‖W + ΔW‖.

        ``y`` is W x + bias, ``delta`` ΔW dropout(x), both ``(..., out_features)``. As in the released code, the result
        is W x + bias + (g − 1) ∘ W dropout(x) + g ∘ ΔW dropout(x).
        """
        assert self.magnitude is not None
        with torch.no_grad():  # the gradient treats the norm as a constant
            a, b = self.mixer.fold(self.lora_a, self.lora_b)
            base_of_a = self._without_bias(self.base(a.to(y.dtype)))
        gain = self.magnitude(a=a, b=b, base_of_a=base_of_a, scale=self.scale)
        plain = self._without_bias(y if drawn is None else self.base(self.dropout(x, drawn)))
        return y + (gain - 1).to(y.dtype) * plain + gain.to(y.dtype) * delta

    def _without_bias(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y - self.bias

    def delta_weight(self) -> Tensor:
        """ΔW = s · B · M · A, shape ``(out_features, in_features)``, in the factors' dtype (float32).

        It is relative to the base's weight as it was loaded, so the start that was removed from the base is subtracted.
        A magnitude is not included.
        """
        a, b = self.mixer.fold(self.lora_a, self.lora_b)
        delta = self.scale * (b @ a)
        if self.start_a is None or self.start_b is None:
            return delta
        return delta - self.scale * (self.start_b @ self.start_a)
