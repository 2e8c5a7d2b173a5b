"""Puts adapters into any model made of linear layers, and finds them again by type, never by name."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moslora.adapters.fold import fold_into_a
from moslora.adapters.linear import AdapterLinear
from moslora.adapters.mixers import MIXERS, Mixer


def build_mixer(*, rank: int, rank_out: int | None = None, kind: str, **options: Any) -> Mixer:
    """The mixer that the registry knows as ``kind``; ``options`` are its own keyword arguments.

    Raises:
        ValueError: no such kind, or options that do not go together.
        TypeError: an option that this mixer does not have.
    """
    if kind not in MIXERS:
        raise ValueError(f"no mixer is called {kind!r}; there are {', '.join(MIXERS)}")
    return MIXERS[kind](rank=rank, rank_out=rank_out, **options)


def inject(
    model: nn.Module,
    *,
    rank: int,
    alpha: float,
    mixer: Mapping[str, Any],
    target_modules: Sequence[str] | str,
    dropout: float = 0.0,
    rank_out: int | None = None,
    seed: int = 0,
) -> list[str]:
    """Replaces the chosen linear layers of ``model`` by :class:`AdapterLinear` in place and freezes all else.

    Each layer draws from generators of its own, seeded by ``seed`` and the layer's name. So A and B are the
    same whatever the mixer, whichever other layers are adapted, and on every device.

    Args:
        model: any module; layers with ``in_features`` and ``out_features`` can be adapted.
        rank: r, rows of A.
        alpha: α; the scale is s = α / rank.
        mixer: ``{"kind": name, **options}``, see :data:`moslora.adapters.mixers.MIXERS`.
        target_modules: a list of last name components (``["q_proj", "v_proj"]``), or one regular expression
            that has to match a module's whole dotted name.
        dropout: on the adapter's input.
        rank_out: columns of B, for a rectangular mixer; ``rank`` if ``None``.
        seed: of the draws.

    Returns:
        The names of the adapted modules, in the model's order.

    Raises:
        ValueError: nothing matches (the message lists the linear layers there are), a listed name matches
            nothing, the model has adapters already, or the start would not be one from which training moves.
    """
    if any(True for _ in named_adapters(model)):
        raise ValueError("the model has adapters already; inject into a freshly loaded one")
    names = _match(model, target_modules)
    # All layers are built before the first one is put in place: a fault leaves the model as it was.
    layers = {}
    for name in names:
        base = model.get_submodule(name)
        layers[name] = AdapterLinear(
            base,
            mixer=build_mixer(rank=rank, rank_out=rank_out, **mixer),
            scale=alpha / rank,
            dropout=dropout,
        )
        _start(layers[name], name=name, seed=seed, device=next(base.parameters()).device)
        layers[name].train(base.training)
    model.requires_grad_(False)
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    return names


def named_adapters(model: nn.Module) -> Iterator[tuple[str, AdapterLinear]]:
    """Every adapter layer of ``model`` with its dotted name."""
    for name, module in model.named_modules():
        if isinstance(module, AdapterLinear):
            yield name, module


def adapter_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """What training may have changed and a checkpoint has to keep: A, M and B of every adapter, not the base."""
    state: dict[str, Tensor] = {}
    for name, layer in named_adapters(model):
        for key, value in layer.state_dict(prefix=f"{name}.").items():
            if not key.startswith(f"{name}.base."):
                state[key] = value
    return state


@torch.no_grad()
def load_adapter_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copies ``state`` into the adapters of ``model``, strictly.

    Raises:
        ValueError: missing or surplus keys, or another shape; all of them listed.
    """
    own = adapter_state_dict(model)
    faults = [f"{key}: missing" for key in own.keys() - state.keys()]
    faults += [f"{key}: no such adapter weight in this model" for key in state.keys() - own.keys()]
    faults += [
        f"{key}: shape {tuple(state[key].shape)}, the model has {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if state[key].shape != own[key].shape
    ]
    if faults:
        raise ValueError("\n".join(sorted(faults)))
    for key, value in own.items():
        value.copy_(state[key])


def _match(model: nn.Module, target_modules: Sequence[str] | str) -> list[str]:
    """Names of the linear layers that ``target_modules`` selects."""
    linear = [
        name
        for name, module in model.named_modules()
        if hasattr(module, "in_features") and hasattr(module, "out_features")
    ]
    if isinstance(target_modules, str):
        matched = [name for name in linear if re.fullmatch(target_modules, name)]
        unmatched = [] if matched else [target_modules]
    else:
        matched = [name for name in linear if name.rpartition(".")[2] in target_modules]
        found = {name.rpartition(".")[2] for name in matched}
        unmatched = [target for target in target_modules if target not in found]
    if unmatched or not matched:
        there = sorted({name.rpartition(".")[2] for name in linear})
        wanted = ", ".join(unmatched) or "an empty list"
        raise ValueError(f"no linear layer matches {wanted}; this model has {', '.join(there) or 'none'}")
    return matched


def _start(layer: AdapterLinear, *, name: str, seed: int, device: torch.device) -> None:
    """Draws the start on the CPU, checks it, and moves the adapter to its base's device."""
    if device.type != "meta":
        _draw(layer, name=name, seed=seed)
    layer.lora_a = nn.Parameter(layer.lora_a.detach().to(device))
    layer.lora_b = nn.Parameter(layer.lora_b.detach().to(device))
    layer.mixer.to(device)
    if layer.mixer.folds_at_init:
        fold_into_a(layer)


def _draw(layer: AdapterLinear, *, name: str, seed: int) -> None:
    layer.reset_parameters(_generator(seed, name, "factors"), _generator(seed, name, "mixer"))
    b_is_zero = not layer.lora_b.any()
    m_is_zero = not layer.mixer.matrix().any()
    if b_is_zero and m_is_zero:
        raise ValueError(f"{name}: B and M both start at zero, a saddle where every gradient vanishes")
    if not b_is_zero and not m_is_zero:
        raise ValueError(f"{name}: neither B nor M starts at zero, so the start would differ from the base")


def _generator(seed: int, name: str, part: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}/{part}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
