"""Injection of adapters into any model with linear layers; adapters are found by type, never by name."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from moslora.adapter_options import AdapterOptions, Scaling, Start, Trains
from moslora.adapters.context import Context
from moslora.adapters.folding import fold_into_a
from moslora.adapters.linear import AdapterLinear
from moslora.adapters.magnitude import Magnitude
from moslora.adapters.mixers import build_mixer, read_mixer
from moslora.adapters.mixers.gates import Gate, TaskGateMixer
from moslora.adapters.start import float_weight, initialize, leave_residual, remember_start
from moslora.errors import capped
from moslora.kernels.dropout import Dropout
from moslora.kernels.rows import send
from moslora.mixer_options import TaskGateOptions
from moslora.schema import build_options

ALL_LINEAR = "all-linear"
"""Value of ``target_modules`` for all linear layers except the output layer."""


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
    """Replace the chosen linear layers of ``model`` by :class:`AdapterLinear` in place, and freeze everything else.

    Returns the names of these layers in the model's order.

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
        ValueError: an argument has the wrong type, options do not go together, nothing matches, the model has adapters,
            or ``state`` does not fit. The model is as it was.
    """
    options = build_options(
        AdapterOptions,
        rank=rank,
        alpha=alpha,
        mixer=read_mixer(mixer),
        target_modules=target_modules,
        dropout=dropout,
        rank_out=rank_out,
        scaling=scaling,
        start=start,
        trains=trains,
        dora=dora,
    )
    faults = [f"{keys.split()[0]}: {message}" for keys, message in options.conflicts(drawn=state is None)]
    tasks = mixer.get("tasks", ())
    if tasks and not isinstance(options.mixer, TaskGateOptions):
        faults.append(f"mixer.tasks: a {options.mixer.kind} mixer does not depend on the task; leave them out")
    if faults:
        raise ValueError("\n".join(faults))
    return adapt_layers(model, options, seed=seed, tasks=tasks, state=state, weight_of=weight_of, within=within)


def adapt_layers(
    model: nn.Module,
    options: AdapterOptions,
    *,
    seed: int,
    tasks: Sequence[str] = (),
    state: Mapping[str, Tensor] | None = None,
    weight_of: Callable[[nn.Module], Tensor] = float_weight,
    within: nn.Module | None = None,
) -> list[str]:
    """Put adapters into ``model`` as :func:`inject` does, with checked ``options``; gates may route by ``tasks``.

    Raises:
        ValueError: nothing matches, the model has adapters, or ``state`` does not fit. The model is as it was.
    """
    if any(named_adapters(model)):
        raise ValueError("the model has adapters already; inject into a freshly loaded one")
    context = Context()
    context.options = options
    context.seed = seed
    drawn_from = seed if state is None else None
    layers: dict[str, AdapterLinear] = {}  # all are built before one is put in place: a fault changes nothing
    with ExitStack() as undo:
        for weight in model.parameters():
            undo.callback(weight.requires_grad_, weight.requires_grad)
        for name in _match(model, options.target_modules, model if within is None else within):
            base = model.get_submodule(name)
            try:
                layers[name] = _new_layer(base, name, options, seed=drawn_from, tasks=tasks, weight_of=weight_of)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        if state is not None:
            own = _state(layers)
            refuse_misfits(own, state)
            for key, value in own.items():
                value.copy_(state[key])
        undo.pop_all()
    model.requires_grad_(False)
    for name, layer in layers.items():
        if not next(layer.base.parameters()).is_meta:
            _settle(layer, weight_of)
        layer.context = layer.mixer.context = context
        model.set_submodule(name, layer.train(layer.base.training))
    return list(layers)


def context_of(model: nn.Module) -> Context:
    """Context of the adapters of ``model``, with their options; a new, empty one if it has no adapters."""
    return next((layer.context for _, layer in named_adapters(model)), Context())


def named_adapters(model: nn.Module) -> Iterator[tuple[str, AdapterLinear]]:
    """Adapter layers of ``model`` with their dotted names; ``layer.delta_weight()`` is ΔW, ``(out, in)``."""
    for name, module in model.named_modules():
        if isinstance(module, AdapterLinear):
            yield name, module


def has_learned(model: nn.Module) -> bool:
    """Whether an adapter of ``model`` has a ΔW other than zero; true for a model without adapters.

    Every adapter starts with ΔW = 0, except one with a ``near-zero`` mixer. A gate has no single ΔW; its B is tested.
    """
    layers = layers_of(model)
    zero_at_start = (layer.lora_b if layer.mixer.options.routes else layer.delta_weight() for layer in layers)
    return not layers or any(bool(weight.any()) for weight in zero_at_start)


def adapter_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Adapter weights that a checkpoint must keep, by parameter name, without those of the base layers.

    ``lora_a`` has the shape ``mixer.shape_of_a(in_features)``, ``lora_b`` is ``(out_features, rank_out)``. PiSSA's
    start, M's weights and DoRA's magnitude follow them.
    """
    return _state(dict(named_adapters(model)))


def layers_of(model: nn.Module | Sequence[AdapterLinear]) -> Sequence[AdapterLinear]:
    """Adapter layers of ``model``; a sequence of layers is returned as it is.

    Passing the layers saves the search through hundreds of modules, which takes a millisecond.
    """
    if isinstance(model, nn.Module):
        return [layer for _, layer in named_adapters(model)]
    return model


def adapter_penalty(model: nn.Module | Sequence[AdapterLinear]) -> Tensor | None:
    """Mean over all adapters of the penalty that mixers add to the loss, a float32 scalar; ``None`` if none adds any.

    Call :func:`describe_batch` before every forward pass in training, and this once after it.
    """
    penalties = [layer.mixer.penalty(layer.lora_a, layer.lora_b) for layer in layers_of(model)]
    added = [penalty for penalty in penalties if penalty is not None]
    if not added:
        return None
    return torch.stack(added).sum() / len(penalties)


def describe_batch(
    model: nn.Module | Sequence[AdapterLinear], *, tokens: Tensor | None = None, tasks: Tensor | None = None
) -> None:
    """Describe the next forward passes to the adapters; only gates read the description.

    Args:
        model: a model with adapters, or its adapter layers.
        tokens: true for a token, false for padding, shape ``(batch, length)``; ``None`` for no padding.
        tasks: task numbers, int64, per row ``(batch,)``, per token ``(batch, length)``, or for all rows ``(1,)``; or
            the weights of the tasks' gates for all rows, float, ``(1, tasks + 1)``.
    """
    contexts = {layer.context for layer in layers_of(model)}
    for context in contexts:
        context.describe(tokens=tokens, tasks=tasks)


def shares_beginnings(model: nn.Module, *, training: bool) -> bool:
    """Whether a common beginning of two rows has the same hidden states in both.

    It does not under dropout, which is drawn for each row, nor with a gate, which may route by the row's task and whose
    balance counts the tokens of all rows.
    """
    for module in model.modules():
        if isinstance(module, Gate):
            return False
        if training and isinstance(module, Dropout | nn.Dropout) and module.p > 0:
            return False
    return True


def task_names(model: nn.Module) -> tuple[str, ...]:
    """Tasks by which the gates of ``model`` route, in the order of their numbers; empty without such gates."""
    for module in model.modules():
        if isinstance(module, TaskGateMixer):
            return module.task_names
    return ()


def describe_task(model: nn.Module, task: str | None) -> None:
    """Tell the gates that route by task the task of all rows of the next forward passes.

    A task that is not in :func:`task_names` gets the gate of rows without a task. ``None`` is the mean of the gates of
    all named tasks.
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
    state: dict[str, Tensor] = {}
    for name, layer in layers.items():
        weights = layer.state_dict(prefix=f"{name}.")
        state |= {key: value for key, value in weights.items() if not key.startswith(f"{name}.base.")}
    return state


def refuse_misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Refuse a ``state`` whose keys or shapes differ from those of ``own``; the message lists all differences.

    Raises:
        ValueError: they differ.
    """
    faults = []
    for key in sorted(own.keys() | state.keys()):
        if key not in state:
            faults.append(f"{key}: missing")
        elif key not in own:
            faults.append(f"{key}: unexpected, not an adapter weight of this model")
        elif state[key].shape != own[key].shape:
            faults.append(f"{key}: shape {tuple(state[key].shape)}, the model has {tuple(own[key].shape)}")
    if faults:
        raise ValueError(capped(faults))


def _match(model: nn.Module, target_modules: Collection[str] | str, within: nn.Module) -> list[str]:
    """Names of the linear layers in the part ``within`` of ``model`` that ``target_modules`` selects."""
    parts = {*within.modules()}
    last_of: dict[str, str] = {}  # the name of each linear layer -> its last component
    for name, module in model.named_modules():
        if module in parts and hasattr(module, "in_features") and hasattr(module, "out_features"):
            last_of[name] = name.rpartition(".")[2]
    unmatched: list[str] = []
    if target_modules == ALL_LINEAR:
        output = getattr(model, "get_output_embeddings", lambda: None)()
        matched = [name for name in last_of if model.get_submodule(name) is not output]
    elif isinstance(target_modules, str):
        matched = [name for name in last_of if re.fullmatch(target_modules, name)]
        if not matched:
            unmatched = [f"the regular expression {target_modules} (several names are a list: [q_proj, v_proj])"]
    else:
        matched = [name for name, last in last_of.items() if last in target_modules]
        unmatched = [target for target in target_modules if target not in last_of.values()]
    if unmatched or not matched:
        names = ", ".join(sorted({*last_of.values()})) or "none"
        raise ValueError(f"no linear layer matches {', '.join(unmatched) or 'an empty list'}; this model has {names}")
    _refuse_shared(model, matched)
    return matched


def _refuse_shared(model: nn.Module, matched: Collection[str]) -> None:
    """Refuse modules that the model has in two places, because the adapter would be in one of them only."""
    chosen = {model.get_submodule(name): name for name in matched}
    for name, module in model.named_modules(remove_duplicate=False):
        if chosen.get(module, name) != name:
            raise ValueError(f"{chosen[module]} and {name} are the same module; choose layers that are not shared")


def _new_layer(
    base: Any,
    name: str,
    options: AdapterOptions,
    *,
    seed: int | None,
    tasks: Sequence[str],
    weight_of: Callable[[nn.Module], Tensor],
) -> AdapterLinear:
    """Build an adapter over ``base`` on the CPU, and draw its start from ``seed``.

    Without a seed the caller must load its weights. Over a base on the meta device nothing is drawn: with a seed the
    whole adapter is on the meta device, without a seed on the CPU.
    """
    weight = next(base.parameters(), None)
    if weight is None:
        raise ValueError(f"{type(base).__name__} has no weight (quantised by GPTQ or AWQ?); use the original")
    with torch.device("meta" if seed is not None and weight.is_meta else "cpu"):
        mixer = build_mixer(
            options.mixer, rank=options.rank, rank_out=options.rank_out, in_features=base.in_features, tasks=tasks
        )
        layer = AdapterLinear(
            base,
            mixer=mixer,
            scale=options.scale,
            dropout=options.dropout,
            trains=options.trains,
            magnitude=Magnitude(base.out_features) if options.dora else None,
        )
    if not weight.is_meta:
        if layer.magnitude is not None:
            layer.magnitude.measure(weight_of(base))
            layer.magnitude.reset_parameters()
        if seed is not None:
            initialize(layer, options.start, seed=seed, name=name, weight_of=weight_of)
    if layer.mixer.folds_at_init:
        fold_into_a(layer)
    if options.start == "pissa":
        remember_start(layer)
    return layer


def _settle(layer: AdapterLinear, weight_of: Callable[[nn.Module], Tensor]) -> None:
    """Move the adapter to its base's device. For PiSSA, subtract the adapter's start from the base."""
    base = layer.base
    layer.base = nn.Identity()  # the base stays where it is
    layer.to(next(base.parameters()).device)
    layer.base = base
    if layer.start_a is not None:
        leave_residual(layer)
        if layer.magnitude is not None:
            layer.magnitude.measure(weight_of(base))
