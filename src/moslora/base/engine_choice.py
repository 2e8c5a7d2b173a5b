"""Which engine computes a model: ours where it computes what transformers' own forward does, or else transformers'.

Numbers are compared as the model is loaded: the logits of two rows of unequal length with a common beginning, and the
gradient of every factor of the adapters, off their start; through transformers' modules first, then through ours. Where
computing the model itself costs much, rounding may be the difference, or the config has a window, which is longer than
these rows, its small twin decides, whose windows are shorter: in float32 on a CPU, and then as the model is computed,
which has to be equal but for rounding. Through a deep model rounding alone may turn a gradient around; through a twin
of few layers it does not.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moslora.adapters import AdapterLinear, SharedInputLayers, describe_batch, inject, named_adapters
from moslora.base.adapted import adapters_in
from moslora.base.disk_cache import cached_verdict
from moslora.base.engines import ENDS, SHARED, Batch, Engine, Own, Transformers, relative_error, two_rows
from moslora.base.failures import UnsupportedModel
from moslora.base.own_engine import text_part, use_own_modules
from moslora.base.quantized import quantized_layers
from moslora.base.twin import limits_what_is_seen, small_twin
from moslora.choices import EngineChoice
from moslora.console import note_once
from moslora.errors import UsageError, first_line
from moslora.kernels.linear import IN_FLOAT32, kernel, pack_nothing
from moslora.kernels.rows import send
from moslora.processes.devices import is_out_of_memory
from moslora.processes.group import all_gather

TOLERANCE = 1e-5
"""Largest ‖z' − z‖ / ‖z‖ of all logits in float32, where z is computed by transformers and z' by our engine."""

TOLERANCE_OF_GRADIENTS = 5e-4
"""The same of a factor's gradient, relative to a hundredth of the largest factor's where that is larger."""

TOLERANCE_IN_16_BITS = 2e-2
"""The same of the logits in bfloat16 and float16."""

TOLERANCE_OF_GRADIENTS_IN_16_BITS = 5e-2
"""The same of the gradients there."""

FAR = 10
"""An error of the logits of so many times the tolerance is not rounding, in 16 bits."""

FAR_OF_GRADIENTS = 0.8
"""Nor is a gradient that is off by so much of its length; experts that a rounded router chooses make up to 0.4."""


class Computed(NamedTuple):
    """What an engine computes of the two rows."""

    logits: Tensor  # one row after the other, (tokens, vocabulary)
    gradients: dict[str, Tensor]  # of the factors that learn, by name


class TellsNothing(Exception):
    """Logits that are no numbers, or all zero: of damaged weights, or a scale that overflows."""


def choose_engine(
    model: PreTrainedModel,
    wanted: EngineChoice = "auto",
    *,
    computed_here: bool = True,
    trust_remote_code: bool = False,
) -> None:
    """Chooses the engine of ``model``, which has transformers' modules, perhaps with adapters; ours gets its modules.

    Without ``computed_here``, or where transformers' modules are slow, the twin is computed instead. All processes of a
    group take what its first one finds, which is kept (`moslora.base.disk_cache`).

    Raises:
        UnsupportedModel: it is not causal, or cannot be computed; or not by our engine, which is ``wanted``.
        UsageError: a layer cannot be adapted, as the model's code does more than call it.
    """
    # cuDNN's attention plans for each new shape, for up to half a second, and rows have many lengths.
    torch.backends.cuda.enable_cudnn_sdp(False)
    only = adapters_in(model).engine
    if only is not None:
        if wanted not in ("auto", only):
            raise UsageError(f"model.engine = {wanted}: methods of PEFT are computed by {only}; set auto")
        wanted = only
    why = cached_verdict(
        model,
        lambda: _why_not(model, wanted, computed_here=computed_here, trust_remote_code=trust_remote_code),
        wanted=wanted,
        computed_here=computed_here,
    )
    (why, *_) = all_gather(why)
    own = why is None and wanted != Transformers.name
    if own:
        use_own_modules(model)
        model.eval()  # ours are made in training mode
    elif wanted == Own.name:
        raise UnsupportedModel(f"model.engine = own: {why}; set auto")
    elif wanted == "auto":
        note_once(f"model.engine = transformers, which takes more time: {why}")
    model.moslora_engine = Own.name if own else Transformers.name  # type: ignore[assignment]
    for _, layer in named_adapters(model):
        layer.context.plain = not own


def _why_not(
    model: PreTrainedModel, wanted: EngineChoice, *, computed_here: bool, trust_remote_code: bool
) -> str | None:
    """Why our engine does not compute ``model``; ``None`` if it does, or is not wanted."""
    # bitsandbytes unpacks every weight for each pass, and in 8 bits rounds what it multiplies. A CPU that cannot
    # multiply 16-bit numbers takes minutes for a large model.
    slow = bool(quantized_layers(model)) or kernel(model.device, model.dtype) == IN_FLOAT32
    if computed_here and not slow:
        with suppress(TellsNothing):
            why = _compare(model, wanted)
            if why is None:
                if wanted == Transformers.name or not limits_what_is_seen(model.config):
                    return None
            elif not _rounds(model.device, model.dtype):
                return why
    return _compare_twins(model, wanted, trust_remote_code=trust_remote_code)


def _compare(model: PreTrainedModel, wanted: EngineChoice, *, rounded: bool = False) -> str | None:
    """How our engine differs on ``model``, which stays as it is; ``None`` where it does not, or is not wanted.

    Of what is ``rounded`` it differs where rounding cannot be the reason.

    Raises:
        TellsNothing: transformers' own numbers are none to compare with.
    """
    name = type(model).__name__
    with _off_start(model):
        stock = _measured_plainly(model)
        if wanted == Transformers.name:
            return None
        if getattr(model.get_output_embeddings(), "bias", None) is not None:
            return f"the output layer of {name} is more than a product"
        if not 0 < float(stock.logits.float().norm()) < math.inf:
            raise TellsNothing
        attention = model.config._attn_implementation
        before = use_own_modules(model)
        pack_nothing(model)  # a pass is not worth a second copy of all weights
        model.eval()
        try:
            return _difference(name, stock, _measured(Own(model)), rounded=rounded)
        except Exception as error:  # of any model's code
            if is_out_of_memory(error):
                raise
            fault = first_line(error).removeprefix("model: ")
            return f"{name} cannot compute rows end to end ({fault})"
        finally:
            for path, module in reversed(before.items()):
                model.set_submodule(path, module)
            if attention is not None:
                model.set_attn_implementation(attention)


def _difference(name: str, stock: Computed, ours: Computed, *, rounded: bool) -> str | None:
    """How what two engines have measured differs."""
    of_logits, of_gradients = TOLERANCE, TOLERANCE_OF_GRADIENTS
    if stock.logits.dtype.itemsize <= 2:
        of_logits, of_gradients = TOLERANCE_IN_16_BITS, TOLERANCE_OF_GRADIENTS_IN_16_BITS
    if rounded:
        of_logits, of_gradients = FAR * TOLERANCE_IN_16_BITS, FAR_OF_GRADIENTS

    def is_off(error: float, tolerance: float) -> bool:
        return error > tolerance or (math.isnan(error) and not rounded)  # 16 bits overflow

    off = relative_error(ours.logits, stock.logits)
    if is_off(off, of_logits):
        return f"{name} computes its logits in a way of its own (moslora's are off by {off:.2g}, relative)"
    largest = max((float(gradient.norm()) for gradient in stock.gradients.values()), default=0.0)
    for key, expected in stock.gradients.items():
        found = ours.gradients.get(key, torch.zeros_like(expected))
        error = relative_error(found, expected, least=1e-2 * largest)
        if is_off(error, of_gradients):
            return f"{name}: the gradient of {key} differs"
    return None


def _lay(engine: Engine, rows: Sequence[Sequence[int]]) -> tuple[Batch, list[int]]:
    """The rows as a batch, of which the adapters know; and the places of their tokens, one row after the other."""
    batch = engine.build_batch([rows], engine.model.device)
    describe_batch(engine.model, tokens=batch.real, tasks=torch.zeros_like(batch.input_ids))
    return batch, list(itertools.chain.from_iterable(batch.paths))


def _measured(engine: Engine) -> Computed:
    """The logits of the two rows, and the gradient of the loss of their next tokens."""
    model = engine.model
    rows = two_rows(model.config)
    batch, places = _lay(engine, rows)
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


def _measured_plainly(model: PreTrainedModel) -> Computed:
    """The same by transformers' forward, whose adapters compute plainly.

    Raises:
        UnsupportedModel: the model cannot compute text, or is not causal.
        UsageError: a layer is read around its adapter, or has no gradient.
    """
    name = type(model).__name__
    layers = dict(named_adapters(model))
    for layer in layers.values():
        layer.context.plain = True
        layer.context.bypassed.clear()
    try:
        engine = Transformers(model)
        measured = _measured(engine)
        with torch.no_grad():
            alone = engine.logits(*_lay(engine, two_rows(model.config)[:1]))
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
    # NaN, of damaged weights or a scale that overflows, tells nothing: the twin decides.
    if relative_error(first, second) > tolerance:
        raise UnsupportedModel(f"{name} is not causal: its tokens see those after them")
    if relative_error(measured.logits[:short], alone) > tolerance:
        raise UnsupportedModel(f"{name} computes a row in another way where it is padded")
    _refuse_unfit(layers, measured.gradients, name)
    return measured


def _refuse_unfit(layers: Mapping[str, AdapterLinear], learned: Iterable[str], model: str) -> None:
    """Refuses layers whose weight the model's own code has read, or that no text passes: nothing of their kind has
    ``learned``, in any layer or expert."""
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
            f"adapter.target_modules: {model} does more than call its {', '.join(sorted(unfit))}, or no text passes"
            f" them, so these cannot be adapted; list the others: [{', '.join(sorted(names - unfit))}]"
        )


@contextmanager
def _off_start(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block the factors that learn have left their start, where some have no gradient; afterwards they are
    what they were."""
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


def _compare_twins(model: PreTrainedModel, wanted: EngineChoice, *, trust_remote_code: bool) -> str | None:
    """Why our engine does not compute the small twin of ``model``, with adapters on layers of the same names."""
    targets = sorted({name.rpartition(".")[2] for name, _ in named_adapters(model)})
    try:
        twin = small_twin(model.config, trust_remote_code=trust_remote_code)
        twin.requires_grad_(False)
        if targets:
            inject(twin, rank=2, alpha=4, mixer={"kind": "dense"}, target_modules=targets, within=text_part(twin))
        why = _compare(twin, wanted)
    except UsageError:
        raise
    except Exception as misfit:  # of hundreds of architectures, whose sizes fit each other in ways of their own
        return f"no small {type(model).__name__} could be computed ({first_line(misfit)})"
    if why is None and model.device.type != "meta" and _rounds(model.device, model.dtype):
        with suppress(UsageError, TellsNothing):  # of code that wants some weights in float32
            why = _compare(_as_computed(twin, model), wanted, rounded=True)
    return why


def _as_computed(twin: PreTrainedModel, model: PreTrainedModel) -> PreTrainedModel:
    """``twin`` on the device and in the dtype of ``model``, its factors in float32; with weights of the usual size, as
    steep ones also make rounding large."""
    for weight in twin.parameters():
        if weight.is_floating_point() and not weight.requires_grad:
            if weight.ndim > 1:
                size = weight.data.norm() / weight.numel() ** 0.5
                weight.data /= size.clamp(min=1e-6) * weight.shape[-1] ** 0.5
            weight.data = weight.data.to(model.dtype)
    return twin.to(model.device)  # type: ignore[arg-type]


def _rounds(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether factors may be rounded when they are multiplied, to 16 bits or to TF32, with a mantissa of 10 bits.

    NVIDIA's images switch TF32 on by TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, which torch tells. cuBLAS's own
    NVIDIA_TF32_OVERRIDE is told nowhere, so any GPU may.
    """
    return dtype.itemsize <= 2 or device.type != "cpu" or torch.get_float32_matmul_precision() != "highest"
