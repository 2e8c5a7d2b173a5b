"""What the adapters of a model know in a forward pass beside x."""

from collections.abc import Callable

from torch import Tensor, nn

from moslora.adapter_options import AdapterOptions
from moslora.adapters.factors import Factors


class Context:
    """One object that all adapters of a model share, because the model's own code hands its layers x and nothing else.

    It is an attribute of the layers and no variable of a thread: gradient checkpointing computes a layer again in a
    thread of autograd. Nothing of it is in a ``state_dict``; all but ``options`` and ``seed`` is of one pass, or of
    the passes between two updates.

    Attributes:
        options: those that the adapters were made with, for `moslora.save`; ``None`` for a layer made by hand.
        seed: that of their start.
        tokens: which tokens of the batch are no padding, bool ``(batch, length)``; ``None`` for all. From
            :func:`moslora.adapters.describe_batch`, for the balance of gates.
        tasks: task numbers or weights, likewise, for gates that route by the task.
        factors: by layer the factors that were made for all layers at once, and the layer's place among those that
            share them. From :meth:`moslora.adapters.SharedInputLayers.folded`; a layer that is not here makes its own.
        folds: by layer what makes its factors, and those of others, before it computes.
        plain: the layers compute y as it is written, and share nothing.
        bypassed: the layers that cannot be adapted: the model's code reads the base's weight around them, or takes more
            from the base than y.
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
        """Describes the next passes, and forgets the penalties of the last ones."""
        self.tokens = tokens
        self.tasks = tasks
        self._penalties = {}
        self._is_described = True

    def keep_penalty(self, mixer: nn.Module, penalty: Tensor) -> None:
        """Keeps what ``mixer`` adds to the loss, in the first pass after :meth:`describe` alone.

        Gradient checkpointing comes to the mixer again and must repeat every operation. Keeping that penalty too would
        count it twice, and its graph would keep alive what the checkpoint is there to free.
        """
        if self._is_described and mixer not in self._penalties:
            self._penalties[mixer] = penalty

    def take_penalty(self, mixer: nn.Module) -> Tensor | None:
        """That penalty, once; ``None`` if there is none, or it was taken."""
        penalty = self._penalties.get(mixer)
        self._penalties[mixer] = None
        return penalty
