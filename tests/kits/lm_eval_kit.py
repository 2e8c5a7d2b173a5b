"""lm-eval's own harness over tasks that a test declares. Whoever imports this need not have lm-eval."""

from typing import Any

import pytest


def evaluated(harness: Any, tasks: list[Any], **options: Any) -> dict[str, Any]:
    """What lm-eval says of ``tasks``, every sample included.

    By default it would first read the files of all its own tasks, 13,000; and it asks pip for a list of all packages,
    which takes seconds and is in no score.
    """
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is a development dependency")
    from lm_eval.tasks import TaskManager

    options |= {"num_fewshot": 0, "bootstrap_iters": 0, "log_samples": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.collect_env.get_pretty_env_info", str)
        results: dict[str, Any] = lm_eval.simple_evaluate(
            harness, tasks=tasks, task_manager=TaskManager(include_defaults=False), **options
        )
    return results


def samples(harness: Any, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Its record of every row of the task that a file of lm-eval's form declares, in their order."""
    from lm_eval.api.task import ConfigurableTask

    (found,) = evaluated(harness, [ConfigurableTask(config=config)])["samples"].values()
    return sorted(found, key=lambda sample: int(sample["doc_id"]))
