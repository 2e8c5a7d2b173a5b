"""Puts adapters into any model with linear layers, and finds them by type, never by name."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from numbers import Integral, Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from moslora.adapters.folding import fold_into_a
from moslora.adapters.linear import AdapterLinear, Trains
from moslora.adapters.magnitude import Magnitude
from moslora.adapters.mixers import build_mixer
from moslora.adapters.mixers.gates import Gate, TaskGateMixer
from moslora.adapters.start import Start, begin, float_weight, leave_residual, remember_start
from moslora.errors import capped
from moslora.kernels.dropout import Dropout
from moslora.kernels.rows import send

Scaling = Literal["lora", "rslora"]


def inject(
    model: nn.Module,
    *,
    rank: int,
    alpha: float,
    mixer: Mapping[str, Any],
    target_modules: Collection[str] | str,
    dropout: float = 0.0,
    rank_out: int | None = None,
    scaling: Scaling = "lora",
    start: Start = "lora",
    trains: Trains = "all",
    dora: bool = False,
    seed: int = 0,
    state: Mapping[str, Tensor] | None = None,
    weight_of: Callable[[nn.Module], Tensor] = float_weight,
    within: nn.Module | None = None,
) -> list[str]:
    """Replaces the chosen linear layers of ``model`` by :class:`AdapterLinear` in place, freezes everything else, and
    returns their names in the model's order.

    >>> moslora.inject(model, rank=16, alpha=32, mixer={"kind": "dense"}, target_modules=["q_proj", "v_proj"])

    Each layer has its own generators, seeded by ``seed`` and its name. So A does not depend on the device, the other
    layers, or the mixer (unless it draws A differently from LoRA).

    Args:
        rank: r, rows of A ``(rank, in_features)``; ``alpha`` is α.
        mixer: ``{"kind": name, **options}``, see :data:`moslora.adapters.mixers.MIXERS`; M is ``(rank_out, rank)``.
        target_modules: a list of last name components (``["q_proj", "v_proj"]``), a regular expression for the whole
            dotted name, or ``all-linear`` for all but the model's output layer.
        rank_out: columns of B ``(out_features, rank_out)``, for a rectangular mixer; ``rank`` if ``None``.
        scaling: s = α/r for ``lora``, α/√r for ``rslora`` (arXiv 2312.03732).
        start: ``lora``, at random with ΔW = 0; ``pissa``, the base's principal part, which leaves the base (arXiv
            2404.02948); ``svd``, A and B from the base's singular vectors, M near zero (arXiv 2405.17604).
        trains: which of A, M and B learn: ``all``, ``b`` (LoRA-FA, arXiv 2308.03303) or ``mixer`` (LoRA-XS).
        dora: whether to learn the length of the adapted weight's rows separately (DoRA, arXiv 2402.09353).
        state: the adapters' weights from :func:`adapter_state_dict`, instead of a random start. Over a base on the meta
            device they are on the CPU: enough to fold them.
        weight_of: the float weight of a base layer, which DoRA and ``svd`` need; by default its ``weight``.
        within: the part of ``model`` whose layers are chosen from; by default all of it.

    Raises:
        ValueError: an argument has the wrong type, nothing matches, the model has adapters, training could not start,
            ``state`` does not fit, or options contradict each other. The model is as it was.
    """
    options = _checked(locals())
    layers: dict[str, AdapterLinear] = {}  # all are built before one is put in place: a fault changes nothing
    for name in _match(model, target_modules, model if within is None else within):
        base: Any = model.get_submodule(name)
        try:
            if (weight := next(base.parameters(), None)) is None:
                raise ValueError(f"{type(base).__name__} has no weight (quantised by GPTQ or AWQ?); use the original")
            with torch.device("meta" if state is None and weight.is_meta else "cpu"):
                layer = layers[name] = AdapterLinear(
                    base,
                    mixer=build_mixer(rank=rank, rank_out=rank_out, in_features=base.in_features, **mixer),
                    scale=float(alpha) / (rank if scaling == "lora" else rank**0.5),
                    dropout=dropout,
                    trains=trains,
                    magnitude=Magnitude(base.out_features) if dora else None,
                )
            _give_start(layer, start, drawn=state is None, seed=seed, name=name, weight_of=weight_of)
        except (TypeError, ValueError) as error:  # TypeError: an option that the mixer does not have
            raise ValueError(f"{name}: {error}") from error
    if state is not None:
        _restore(_state(layers), state)
    model.requires_grad_(False)
    for name, layer in layers.items():
        if not next(layer.base.parameters()).is_meta:
            _settle(layer, weight_of)
        model.set_submodule(name, layer.train(layer.base.training))
    model.adapter_options = options  # type: ignore[assignment]  # which `moslora.save` needs
    return list(layers)


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "rank": (lambda value: isinstance(value, Integral) and int(value) > 0, "a whole number above 0"),
    "rank_out": (lambda value: value is None or _CHECKS["rank"][0](value), "a whole number above 0, or None"),
    "alpha": (lambda value: isinstance(value, Real) and float(value) > 0, "a number above 0"),
    "dropout": (lambda value: isinstance(value, Real) and 0 <= float(value) < 1, "a number from 0 to below 1"),
    "mixer": (lambda value: isinstance(value, Mapping) and "kind" in value, "a mapping such as {'kind': 'dense'}"),
    "target_modules": (lambda value: isinstance(value, Collection), "a list of names, or a regular expression"),
    "scaling": (lambda value: value in get_args(Scaling), f"one of {', '.join(get_args(Scaling))}"),
    "start": (lambda value: value in get_args(Start), f"one of {', '.join(get_args(Start))}"),
    "trains": (lambda value: value in get_args(Trains), f"one of {', '.join(get_args(Trains))}"),
    "seed": (lambda value: isinstance(value, Integral), "a whole number"),
}
"""What an argument of `inject` must be. A misspelt word would otherwise be another method, silently."""


NO_OPTIONS = ("model", "state", "weight_of", "within")
"""Arguments of `inject` that do not describe the adapters."""


def _checked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The options among the ``arguments`` of :func:`inject`: those that describe the adapters."""
    if any(named_adapters(arguments["model"])):
        raise ValueError("the model has adapters already; inject into a freshly loaded one")
    options = {name: value for name, value in arguments.items() if name not in NO_OPTIONS}
    wrong = [name for name, (fits, _) in _CHECKS.items() if isinstance(options[name], bool) or not fits(options[name])]
    if wrong:
        raise ValueError("\n".join(f"{name} = {options[name]!r}: must be {_CHECKS[name][1]}" for name in wrong))
    plain = {key: one.item() for key, one in options.items() if isinstance(one, Real) and hasattr(one, "item")}
    return {**options, **plain, "mixer": dict(options["mixer"])}


def named_adapters(model: nn.Module) -> Iterator[tuple[str, AdapterLinear]]:
    """Every adapter layer of ``model`` with its dotted name; ``layer.delta_weight()`` is ΔW, ``(out, in)``."""
    for name, module in model.named_modules():
        if isinstance(module, AdapterLinear):
            yield name, module


def has_learned(model: nn.Module) -> bool:
    """Whether an adapter of ``model`` has left its start: ΔW = 0, or B = 0 for a gate, which has no ΔW; or there is
    none."""
    layers = [layer for _, layer in named_adapters(model)]
    return not layers or any((layer.lora_b if layer.mixer.routes else layer.delta_weight()).any() for layer in layers)


def adapter_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """All that training may change and a checkpoint must keep, by parameter name: ``lora_a (r, in_features)``,
    ``lora_b (out_features, r)``, M's weights and what else there is of every adapter without its base."""
    return _state(dict(named_adapters(model)))


def adapter_penalty(model: nn.Module) -> Tensor | None:
    """The mean over the adapters of what their mixers add to the loss, a float32 scalar, or ``None``.

    Call :func:`describe_batch` before every forward pass in training, and this once after it.
    """
    penalties = [layer.mixer.penalty(layer.lora_a, layer.lora_b) for _, layer in named_adapters(model)]
    some = [penalty for penalty in penalties if penalty is not None]
    return torch.stack(some).sum() / len(penalties) if some else None


def describe_batch(model: nn.Module, *, tokens: Tensor | None = None, tasks: Tensor | None = None) -> None:
    """Describes the next forward passes to the gates, if there are any.

    Args:
        model: with adapters.
        tokens: true for a token, false for padding, shape ``(batch, length)``; ``None`` for no padding.
        tasks: task numbers, int64, per row ``(batch,)``, per token ``(batch, length)``, or one for all ``(1,)``; or for
            all a weight of each task's gate, float, ``(1, tasks + 1)``.
    """
    for module in model.modules():
        if isinstance(module, Gate):
            module.describe(tokens=tokens, tasks=tasks)


def shares_beginnings(model: nn.Module, *, training: bool) -> bool:
    """Whether tokens that two rows begin with have the same hidden states in both, in training or otherwise.

    Not under dropout, which draws for each row; nor with a gate, which may route by the row's task, and whose balance
    counts the tokens of all rows.
    """
    return not any(
        isinstance(module, Gate) or (training and isinstance(module, Dropout | nn.Dropout) and module.p > 0)
        for module in model.modules()
    )


def task_names(model: nn.Module) -> tuple[str, ...]:
    """The tasks that the gates of ``model`` route by, in the order of their numbers; none without such gates."""
    return next((module.task_names for module in model.modules() if isinstance(module, TaskGateMixer)), ())


def describe_task(model: nn.Module, task: str | None) -> None:
    """Describes the task of all rows of the next forward passes to the gates that route by it.

    A task that is not among :func:`task_names` has the gate of rows without a task. ``None`` is the mean of all tasks'
    gates, without that one, which hardly any training has.
    """
    device = next((layer.lora_a.device for _, layer in named_adapters(model)), None)
    if device is None:
        return
    names = task_names(model)
    if task in names:
        tasks = send([names.index(task)], device)
    elif task is None and names:
        tasks = send(torch.tensor([[1 / len(names)] * len(names) + [0.0]]), device)
    else:
        tasks = send([len(names)], device)
    describe_batch(model, tasks=tasks)


def _state(layers: Mapping[str, AdapterLinear]) -> dict[str, Tensor]:
    return {
        key: value
        for name, layer in layers.items()
        for key, value in layer.state_dict(prefix=f"{name}.").items()
        if not key.startswith(f"{name}.base.")
    }


def _restore(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    refuse_misfits(own, state)
    for key, value in own.items():
        value.copy_(state[key])


def refuse_misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Refuses a ``state`` with other keys or shapes than ``own``, of which all are listed."""
    faults = [f"{key}: missing" for key in own.keys() - state.keys()]
    faults += [f"{key}: unexpected, not an adapter weight of this model" for key in state.keys() - own.keys()]
    faults += [
        f"{key}: shape {tuple(state[key].shape)}, the model has {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if state[key].shape != own[key].shape
    ]
    if faults:
        raise ValueError(capped(sorted(faults)))


def _match(model: nn.Module, target_modules: Collection[str] | str, within: nn.Module) -> list[str]:
    """Names of the linear layers that ``target_modules`` selects from those ``within`` a part of ``model``."""
    parts = {*within.modules()}
    linear = {  # name: its last component
        name: name.rpartition(".")[2]
        for name, module in model.named_modules()
        if hasattr(module, "in_features") and hasattr(module, "out_features") and module in parts
    }
    if target_modules == "all-linear":
        output = getattr(model, "get_output_embeddings", lambda: None)()
        matched, unmatched = [name for name in linear if model.get_submodule(name) is not output], []
    elif isinstance(target_modules, str):
        matched = [name for name in linear if re.fullmatch(target_modules, name)]
        as_text = f"the regular expression {target_modules} as a whole (names are a list, such as [q_proj, v_proj])"
        unmatched = [] if matched else [as_text]
    else:
        matched = [name for name, last in linear.items() if last in target_modules]
        unmatched = [str(target) for target in target_modules if target not in linear.values()]
    if unmatched or not matched:
        there = ", ".join(sorted({*linear.values()})) or "none"
        raise ValueError(f"no linear layer matches {', '.join(unmatched) or 'an empty list'}; this model has {there}")
    chosen = {model.get_submodule(name): name for name in matched}
    for name, module in model.named_modules(remove_duplicate=False):  # the adapter would be in one place only
        if chosen.get(module, name) != name:
            raise ValueError(f"{chosen[module]} and {name} are one shared module; choose layers that are not shared")
    return matched


def _give_start(
    layer: AdapterLinear, start: Start, *, drawn: bool, seed: int, name: str, weight_of: Callable[[nn.Module], Tensor]
) -> None:
    """Measures the base's rows for DoRA, draws A, B and M if they are not to be loaded, and folds M into A."""
    on_meta = next(layer.base.parameters()).is_meta
    if layer.magnitude is not None and not on_meta:
        layer.magnitude.measure(weight_of(layer.base))
        layer.magnitude.reset_parameters()
    if drawn and not on_meta:
        begin(layer, start, seed=seed, name=name, weight_of=weight_of)
    if layer.mixer.folds_at_init:
        fold_into_a(layer)
    if start == "pissa":
        remember_start(layer)


def _settle(layer: AdapterLinear, weight_of: Callable[[nn.Module], Tensor]) -> None:
    """Moves the adapter to its base's device; a part of the base that it started with leaves the base."""
    base, layer.base = layer.base, nn.Identity()  # which stays where it is
    layer.to(next(base.parameters()).device)
    layer.base = base
    if layer.start_a is not None:
        leave_residual(layer)
        if layer.magnitude is not None:
            layer.magnitude.measure(weight_of(base))
