"""What adapters need to know of a forward pass besides x: mask of tokens, tasks, folded factors and seed."""

from collections.abc import Callable

from torch import Tensor, nn

from moslora.adapter_options import AdapterOptions
from moslora.adapters.factors import Factors


class Context:
    """State that all adapters of a model share, because the model's own code passes nothing but x to its layers.

    It is an attribute of the layers, not a thread-local variable, because gradient checkpointing recomputes a layer in
    a thread of autograd. It is not in a ``state_dict``. ``tokens``, ``tasks``, ``factors`` and ``folds`` describe
    one pass or the passes between two updates.

    Attributes:
        options: options of the adapters, for `moslora.save`; ``None`` for a layer created by hand.
        seed: seed of the adapters' start.
        tokens: mask of the batch's tokens that are not padding, bool ``(batch, length)``; ``None`` for all. Set by
            :func:`moslora.adapters.describe_batch`, for the balance of gates.
        tasks: task numbers or weights, set by :func:`moslora.adapters.describe_batch`, for gates that route by task.
        factors: layer -> its folded factors and its place among the layers that share them. Set by
            :meth:`moslora.adapters.SharedInputLayers.folded`; a missing layer folds its own factors.
        folds: layer -> function that folds its factors, called before the layer computes.
        plain: whether the layers compute the plain formula and share nothing.
        bypassed: layers that cannot be adapted, because the model's code reads the base's weight directly, or because
            the base returns more than the tensor y.
    """

    def __init__(self) -> None:
        self.options: AdapterOptions | None = None
        self.seed = 0
        self.tokens: Tensor | None = None
        self.tasks: Tensor | None = None
        self.factors: dict[nn.Module, tuple[Factors, int]] = {}
        self.folds: dict[nn.Module, Callable[[], None]] = {}
        self.plain = False
        self.bypassed: set[nn.Module] = set()
        self._penalties: dict[nn.Module, Tensor | None] = {}
        self._is_described = False

    def describe(self, *, tokens: Tensor | None, tasks: Tensor | None) -> None:
        """Describe the next passes, and discard the penalties of the previous ones."""
        self.tokens = tokens
        self.tasks = tasks
        self._penalties = {}
        self._is_described = True

    def keep_penalty(self, mixer: nn.Module, penalty: Tensor) -> None:
        """Store the scalar that ``mixer`` adds to the loss, in the first pass after :meth:`describe` only.

        Gradient checkpointing repeats every operation of the mixer. Storing that penalty too would count it twice, and
        its graph would keep the tensors that checkpointing frees.
        """
        if self._is_described and mixer not in self._penalties:
            self._penalties[mixer] = penalty

    def take_penalty(self, mixer: nn.Module) -> Tensor | None:
        """Return the stored penalty of ``mixer``, a scalar, and forget it; ``None`` if none is stored."""
        penalty = self._penalties.get(mixer)
        self._penalties[mixer] = None
        return penalty
