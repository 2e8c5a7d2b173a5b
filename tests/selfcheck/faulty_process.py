"""What each of two processes runs, with a fault in how the base is shared out."""

import sys
from typing import Any

from torch import Tensor

from moslora.selfcheck import processes
from moslora.training import loop

right = loop.accumulate


def drops_a_share(parts: Any, rows: Any) -> Tensor:
    found = right(parts, rows)
    if hasattr(parts.model.get_decoder(), "reshard"):
        parts.model.get_decoder().layers[0].mlp.down_proj.lora_b.grad.mul_(0.5)
    return found


if __name__ == "__main__":
    processes.accumulate = drops_a_share  # type: ignore[attr-defined]
    processes.main(*sys.argv[1:])
