"""Engine that computes a model: ours where its numbers equal those of transformers' own forward; else transformers'
attention over padded rows with those of our pieces whose numbers do; else transformers' modules alone.

The numbers are the logits of two rows of unequal length with a common beginning, and the gradient of every factor of
the adapters, moved off their start. They are computed as the model is loaded: by transformers' modules first, then by
ours.

The model's small twin (`moslora.base.twin`) decides instead where computing the model costs much, where rounding may
explain a difference, or where the config has an attention window longer than the two rows, as the twin's windows are
shorter. The twin is compared in float32 on a CPU, and then in the model's own dtype and device, up to rounding.
Rounding alone may turn a gradient around in a deep model, but not in a twin of few layers.
"""

import itertools
import math
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moslora.adapters import AdapterLinear, SharedInputLayers, describe_batch, inject, named_adapters
from moslora.base.adapted import adapters_in
from moslora.base.disk_cache import cached_verdict
from moslora.base.engines import (
    ENDS,
    SHARED,
    Batch,
    Engine,
    Own,
    Padded,
    Transformers,
    engine_of,
    relative_error,
    two_rows,
)
from moslora.base.failures import UnsupportedModel
from moslora.base.own_engine import text_part, use_own_modules
from moslora.base.quantized import quantized_layers
from moslora.base.twin import limits_what_is_seen, small_twin
from moslora.choices import EngineChoice, EngineName
from moslora.console import note_once, warn
from moslora.errors import UsageError, first_line
from moslora.kernels.exchange import is_plain
from moslora.kernels.linear import IN_FLOAT32, kernel, pack_nothing
from moslora.kernels.rows import send
from moslora.processes.devices import is_out_of_memory
from moslora.processes.group import all_gather
from moslora.versions import repair

TOLERANCE = 1e-5
"""Largest relative error ‖z' − z‖ / ‖z‖ of our engine's float32 logits z', with z from transformers."""

TOLERANCE_OF_GRADIENTS = 5e-4
"""Largest relative error of a factor's float32 gradient. Its length counts as at least a hundredth of the longest
gradient's."""

TOLERANCE_IN_16_BITS = 2e-2
"""Largest relative error of the logits in bfloat16 and float16."""

TOLERANCE_OF_GRADIENTS_IN_16_BITS = 5e-2
"""Largest relative error of a factor's gradient in bfloat16 and float16."""

FAR = 10
"""Multiple of the tolerance from which rounding to 16 bits cannot explain an error of the logits."""

FAR_OF_GRADIENTS = 0.8
"""Relative gradient error that rounding cannot explain. Rounding in a mixture-of-experts router causes up to 0.4."""


class Computed(NamedTuple):
    """Logits and gradients of the two rows, computed by one engine."""

    logits: Tensor  # one row after the other, (tokens, vocabulary)
    gradients: dict[str, Tensor]  # of the factors that learn, by name


class Candidate(NamedTuple):
    """Engine to compare with transformers' own forward, with our pieces that it uses over padded rows."""

    engine: EngineName
    pieces: Sequence[str] = ()


class Refusal(NamedTuple):
    """Reason why a candidate does not compute a model: a limit of ours, or a fault of this installation."""

    why: str
    is_fault: bool = False


OVER_PADDED_ROWS = ("adapters", "linear", "loss", "mlp", "norm")
"""Our pieces that need no packed rows. Names are those of `moslora.kernels.plain.PIECES`."""


class MeaninglessLogits(Exception):
    """Logits that are not finite or all zero, from damaged weights or a scale that overflows."""


def choose_engine(
    model: PreTrainedModel,
    wanted: EngineChoice = "auto",
    *,
    computed_here: bool = True,
    trust_remote_code: bool = False,
) -> None:
    """Choose the engine that computes ``model``, and for our engine put our modules in place of transformers'.

    Ours is chosen if both compute the same numbers. If ``computed_here`` is false (the model is not to be computed on
    its present device), or if transformers' modules are slow, a small twin of the model is compared instead. All
    processes of a group follow the verdict of the first, which is cached (`moslora.base.disk_cache`).

    Raises:
        UnsupportedModel: the model is not causal or cannot be computed, or our engine is ``wanted`` and cannot do it.
        UsageError: a layer cannot be adapted, as the model's code does more than call it.
    """
    # cuDNN's attention plans for each new shape, for up to half a second, and rows have many lengths.
    torch.backends.cuda.enable_cudnn_sdp(False)
    only = adapters_in(model).engine
    if only is not None:
        if wanted not in ("auto", only):
            raise UsageError(f"model.engine = {wanted}: methods of PEFT are computed by {only}; set auto")
        wanted = only
    verdict = cached_verdict(
        model,
        lambda: _decide(model, wanted, computed_here=computed_here, trust_remote_code=trust_remote_code),
        wanted=wanted,
        computed_here=computed_here,
    )
    (verdict, *_) = all_gather(verdict)
    candidate = Candidate(*verdict["candidate"])
    if verdict["refusal"]:
        _report(Refusal(*verdict["refusal"]), candidate, wanted)
    _engage(model, candidate)
    model.eval()  # our modules are made in training mode


def _report(refusal: Refusal, candidate: Candidate, wanted: EngineChoice) -> None:
    """Print why our engine does not compute a model, or refuse the model if our engine is ``wanted``."""
    if wanted == Own.name:
        raise UnsupportedModel(f"model.engine = own: {refusal.why}; set auto")
    slower = f"model.engine = {candidate.engine}, which takes more time"
    if refusal.is_fault:
        warn(f"{slower}, about three times as much, by a fault of these versions: {refusal.why}; {repair()}")
    else:
        note_once(f"{slower}: {refusal.why}")


def _engage(model: PreTrainedModel, candidate: Candidate) -> Callable[[], None]:
    """Let the candidate compute ``model``; return a function that puts transformers' modules back."""
    own = candidate.engine == Own.name
    restore = use_own_modules(model) if own else use_own_modules(model, candidate.pieces)
    model.moslora_engine = candidate.engine  # type: ignore[assignment]
    model.moslora_pieces = candidate.pieces  # type: ignore[assignment]
    for _, layer in named_adapters(model):
        layer.context.plain = not own and "adapters" not in candidate.pieces
    return restore


def _decide(
    model: PreTrainedModel, wanted: EngineChoice, *, computed_here: bool, trust_remote_code: bool
) -> dict[str, Any]:
    """Return the engine that computes ``model``, and why it is not ours, as JSON values."""

    def refuse(candidate: Candidate) -> Refusal | None:
        return _why_not(model, candidate, computed_here=computed_here, trust_remote_code=trust_remote_code)

    stock = Candidate(Transformers.name)
    if wanted == Transformers.name:
        refuse(stock)
        return {"candidate": stock, "refusal": None}
    refusal = None if wanted == Padded.name else refuse(Candidate(Own.name))
    if refusal is None and wanted != Padded.name:
        return {"candidate": Candidate(Own.name), "refusal": None}
    if wanted == Own.name:
        return {"candidate": stock, "refusal": refusal}
    for left_out in ("", *OVER_PADDED_ROWS):
        candidate = Candidate(Padded.name, [piece for piece in OVER_PADDED_ROWS if piece != left_out])
        if refuse(candidate) is None:
            return {"candidate": candidate, "refusal": refusal}
    return {"candidate": stock, "refusal": refusal}


def _why_not(
    model: PreTrainedModel, candidate: Candidate, *, computed_here: bool, trust_remote_code: bool
) -> Refusal | None:
    """Why the candidate does not compute ``model``; ``None`` if it does."""
    # bitsandbytes unpacks every weight for each pass, and in 8 bits rounds what it multiplies. A CPU that cannot
    # multiply 16-bit numbers takes minutes for a large model.
    slow = bool(quantized_layers(model)) or kernel(model.device, model.dtype) == IN_FLOAT32
    if computed_here and not slow:
        with suppress(MeaninglessLogits):
            refusal = _compare(model, candidate)
            if refusal is None:
                if candidate.engine != Own.name or not limits_what_is_seen(model.config):
                    return None
            elif not _rounds(model.device, model.dtype):
                return refusal
    return _compare_twins(model, candidate, trust_remote_code=trust_remote_code)


def _compare(model: PreTrainedModel, candidate: Candidate, *, rounded: bool = False) -> Refusal | None:
    """Say how the candidate's numbers differ from transformers' on ``model``, which stays unchanged; ``None`` if they
    are equal. With ``rounded``, only differences that rounding cannot explain count.

    Raises:
        MeaninglessLogits: transformers' own logits are no reference, as they are not finite or all zero.
    """
    name = type(model).__name__
    with _off_start(model):
        stock = _measure_transformers(model)
        if candidate.engine == Transformers.name:
            return None
        in_pieces = candidate.engine == Own.name or "loss" in candidate.pieces
        if in_pieces and getattr(model.get_output_embeddings(), "bias", None) is not None:
            return Refusal(f"the output layer of {name} has a bias")
        if not 0 < float(stock.logits.float().norm()) < math.inf:
            raise MeaninglessLogits
        restore = _engage(model, candidate)
        pack_nothing(model)  # a pass is not worth a second copy of all weights
        model.eval()
        try:
            why = _difference(name, stock, _measure(engine_of(model)), rounded=rounded)
            return Refusal(why, is_fault=is_plain(model, "ForCausalLM")) if why else None
        except Exception as error:  # of any model's code
            if is_out_of_memory(error):
                raise
            fault = first_line(error).removeprefix("model: ")
            is_fault = is_plain(model, "ForCausalLM") or _is_of_our_code(error)
            return Refusal(f"moslora cannot compute {name} over rows end to end ({fault})", is_fault)
        finally:
            restore()
            _engage(model, Candidate(Transformers.name))


def _is_of_our_code(error: Exception) -> bool:
    """Whether our code misses a name or an argument that it expects of torch or transformers."""
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    ours = innermost.f_globals["__name__"].partition(".")[0] == "moslora"
    return ours and isinstance(error, AttributeError | ImportError | NameError | TypeError)


def _difference(name: str, stock: Computed, ours: Computed, *, rounded: bool) -> str | None:
    """First difference between the numbers of two engines, in words; ``None`` if there is none."""
    of_logits, of_gradients = TOLERANCE, TOLERANCE_OF_GRADIENTS
    if stock.logits.dtype.itemsize <= 2:
        of_logits, of_gradients = TOLERANCE_IN_16_BITS, TOLERANCE_OF_GRADIENTS_IN_16_BITS
    if rounded:
        of_logits, of_gradients = FAR * TOLERANCE_IN_16_BITS, FAR_OF_GRADIENTS

    def is_off(error: float, tolerance: float) -> bool:
        return error > tolerance or (math.isnan(error) and not rounded)  # 16 bits overflow

    off = relative_error(ours.logits, stock.logits)
    if is_off(off, of_logits):
        return f"moslora computes other logits for {name} (relative error {off:.2g})"
    largest = max((float(gradient.norm()) for gradient in stock.gradients.values()), default=0.0)
    for key, expected in stock.gradients.items():
        gradient = ours.gradients.get(key, torch.zeros_like(expected))
        error = relative_error(gradient, expected, least=1e-2 * largest)
        if is_off(error, of_gradients):
            return f"{name}: the gradient of {key} differs"
    return None


def _build_batch(engine: Engine, rows: Sequence[Sequence[int]]) -> tuple[Batch, list[int]]:
    """Build a batch of the rows and describe it to the adapters; return it with its tokens' places, row after row."""
    batch = engine.build_batch([rows], engine.model.device)
    describe_batch(engine.model, tokens=batch.real, tasks=torch.zeros_like(batch.input_ids))
    return batch, list(itertools.chain.from_iterable(batch.paths))


def _measure(engine: Engine) -> Computed:
    """Logits of the two rows, and gradients of the loss of their next tokens."""
    model = engine.model
    rows = two_rows(model.config)
    batch, places = _build_batch(engine, rows)
    targets = torch.tensor([token for row in rows for token in (*row[1:], row[0])], device=model.device)
    learn = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    gradients: dict[str, Tensor] = {}
    # Gradients also where the caller wants none, such as a model loaded under torch.no_grad(): the verdict is kept.
    with torch.enable_grad(), SharedInputLayers(model).folded(model.dtype):
        with torch.no_grad():
            logits = engine.logits(batch, places)
        if learn:
            loss = engine.loss(batch, places, send(places, model.device), targets)
            of_each = zip(learn, torch.autograd.grad(loss, list(learn.values()), allow_unused=True), strict=True)
            gradients = {name: gradient for name, gradient in of_each if gradient is not None}
    describe_batch(model)
    return Computed(logits, gradients)


def _measure_transformers(model: PreTrainedModel) -> Computed:
    """Logits and gradients of the two rows by transformers' forward, with adapters that use plain formulas.

    Raises:
        UnsupportedModel: the model cannot compute text, or is not causal.
        UsageError: the model reads a layer's weight past its adapter, or a layer has no gradient.
    """
    name = type(model).__name__
    layers = dict(named_adapters(model))
    for layer in layers.values():
        layer.context.plain = True
        layer.context.bypassed.clear()
    try:
        engine = Transformers(model)
        measured = _measure(engine)
        with torch.no_grad():
            alone = engine.logits(*_build_batch(engine, two_rows(model.config)[:1]))
        describe_batch(model)
    except Exception as error:  # of any model's code
        if is_out_of_memory(error):
            raise
        _refuse_unfit(layers, [f"{path}." for path in layers], name)
        fault = f"{name} cannot compute text alone ({type(error).__name__}: {first_line(error)})"
        raise UnsupportedModel(fault) from None
    finally:
        for layer in layers.values():
            layer.context.plain = False
    short = SHARED + ENDS[0]
    first, second = measured.logits[:SHARED], measured.logits[short : short + SHARED]
    tolerance = TOLERANCE_IN_16_BITS if _rounds(model.device, measured.logits.dtype) else FAR * TOLERANCE
    # NaN, from damaged weights or a scale that overflows, proves nothing: the twin decides.
    if relative_error(first, second) > tolerance:
        raise UnsupportedModel(f"{name} is not causal: its tokens see those after them")
    if relative_error(measured.logits[:short], alone) > tolerance:
        raise UnsupportedModel(f"{name} computes a padded row differently from the row alone")
    _refuse_unfit(layers, measured.gradients, name)
    return measured


def _refuse_unfit(layers: Mapping[str, AdapterLinear], learned: Iterable[str], model: str) -> None:
    """Refuse adapted layers whose weight the model's own code reads around the adapter, or that no text reaches: no
    layer of their kind, in any decoder layer or expert, has a gradient."""
    kinds = {re.sub(r"\d+", "*", name) for name in learned}
    names = set()
    unfit = set()
    for path, layer in layers.items():
        name = path.rpartition(".")[2]
        names.add(name)
        kind = re.sub(r"\d+", "*", f"{path}.")
        if layer in layer.context.bypassed or not any(reached.startswith(kind) for reached in kinds):
            unfit.add(name)
    if unfit:
        raise UsageError(
            f"adapter.target_modules: {model} reads the weights of {', '.join(sorted(unfit))} itself, or never calls"
            f" these layers, so they cannot be adapted; list the others: [{', '.join(sorted(names - unfit))}]"
        )


@contextmanager
def _off_start(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block, add noise to the trained factors, because some have no gradient at their initial values;
    restore them afterwards."""
    learn = [weight for weight in model.parameters() if weight.requires_grad]
    before = [weight.data for weight in learn]
    draw = torch.Generator().manual_seed(0)
    for weight in learn:
        noise = 0.1 * torch.randn(weight.shape, generator=draw).to(weight)
        weight.data = weight.data * (1 + noise) + noise / max(weight.shape[-1:] or (1,)) ** 0.5
    try:
        yield
    finally:
        for weight, value in zip(learn, before, strict=True):
            weight.data = value


def _compare_twins(model: PreTrainedModel, candidate: Candidate, *, trust_remote_code: bool) -> Refusal | None:
    """Say how the candidate's numbers differ on a small twin of ``model``, of the same architecture with random weights
    and adapters on layers of the same names; ``None`` if they are equal."""
    targets = sorted({name.rpartition(".")[2] for name, _ in named_adapters(model)})
    try:
        twin = small_twin(model.config, trust_remote_code=trust_remote_code)
        twin.requires_grad_(False)
        if targets:
            inject(twin, rank=2, alpha=4, mixer={"kind": "dense"}, target_modules=targets, within=text_part(twin))
        refusal = _compare(twin, candidate)
    except UsageError:
        raise
    except Exception as misfit:  # of hundreds of architectures, whose sizes fit each other in ways of their own
        why = f"a small {type(model).__name__} cannot be computed ({first_line(misfit)})"
        return Refusal(why, _is_of_our_code(misfit))
    if refusal is None and model.device.type != "meta" and _rounds(model.device, model.dtype):
        with suppress(UsageError, MeaninglessLogits):  # of code that wants some weights in float32
            refusal = _compare(_as_computed(twin, model), candidate, rounded=True)
    return refusal


def _as_computed(twin: PreTrainedModel, model: PreTrainedModel) -> PreTrainedModel:
    """Return ``twin`` on the device and in the dtype of ``model``, with factors in float32. Its weights are scaled down
    to the usual size, because large weights magnify rounding."""
    for weight in twin.parameters():
        if weight.is_floating_point() and not weight.requires_grad:
            if weight.ndim > 1:
                size = weight.data.norm() / weight.numel() ** 0.5
                weight.data /= size.clamp(min=1e-6) * weight.shape[-1] ** 0.5
            weight.data = weight.data.to(model.dtype)
    return twin.to(model.device)  # type: ignore[arg-type]


def _rounds(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether matrix products may round numbers to 16 bits, or to TF32 with its mantissa of 10 bits.

    torch reports the TF32 of TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, which NVIDIA's images set. It does not report cuBLAS's
    own NVIDIA_TF32_OVERRIDE, so any GPU may round.
    """
    return dtype.itemsize <= 2 or device.type != "cpu" or torch.get_float32_matmul_precision() != "highest"
