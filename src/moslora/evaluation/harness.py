"""A run as a model of lm-eval (https://github.com/EleutherAI/lm-evaluation-harness), used like lm-eval's own ``hf``.

    python -m moslora.evaluation.harness --model moslora --model_args run=runs/mine --tasks arc_easy,gsm8k

takes lm-eval's own options; ``run``, ``base`` and ``dtype`` are those of ``moslora eval``.
"""

from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from moslora.choices import DType
from moslora.errors import UsageError
from moslora.evaluation.loading import load_model, tokenizer_of
from moslora.evaluation.target import open_target


@register_model("moslora")
class HarnessModel(HFLM):
    """lm-eval's model ``hf`` with the weights of a run; ``others`` are further arguments of ``hf``."""

    def __init__(self, run: str, *, base: bool = False, dtype: DType | None = None, **others: Any) -> None:
        opened = open_target(run, base=base, dtype=dtype)
        if opened.adapter and opened.adapter.trained_tasks() is not None:
            raise UsageError(f"{run}: its gate depends on the task, which lm-eval does not name; use moslora eval")
        super().__init__(pretrained=load_model(opened), tokenizer=tokenizer_of(opened), **others)


if __name__ == "__main__":
    cli_evaluate()
