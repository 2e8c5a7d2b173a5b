"""What is refused before torch is loaded, which takes seconds: mistyped names, paths and options."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moslora.choices import FormatName
from moslora.errors import UsageError
from moslora.files import did_you_mean
from moslora.prompts.protocols import Asked, ProtocolName, choose, refuse_beams

if TYPE_CHECKING:
    from moslora.runs.named import Named


def refuse_evaluation(
    target: "Named",
    *,
    tasks: str | None,
    protocol: ProtocolName | None,
    format: FormatName | None,
    source: str | None,
    beams: int | None,
) -> None:
    """Refuses tasks or a source that cannot be used, and a protocol that cannot read a format."""
    from moslora.data.sources import refuse_missing
    from moslora.runs.named import tasks_to_ask

    recipe = target.recipe
    default = Asked()
    if recipe is not None:
        default = Asked(recipe.evaluation.protocol, recipe.data.format)
        source = source or recipe.questions.source
    asked = choose(default, protocol=protocol, format=format)
    refuse_beams(beams, asked.protocol)
    refuse_missing(tasks_to_ask(recipe, tasks), "test", source=source or "wheel")


def refuse_paths(paths: Sequence[Path], *, evaluation: str | None) -> None:
    """Refuses runs that are not there or not evaluated, in general or in the way that is named."""
    from moslora.runs.run import Run, is_run

    has_logs = any(path.is_file() for path in paths)  # which are compared with logs alone
    for path in paths:
        if not path.exists():
            fix = did_you_mean(path, otherwise="moslora runs lists the runs")
            raise UsageError(f"{path}: no such file or folder; {fix}")
        if is_run(path) and not has_logs:
            Run(path).evaluation(evaluation)
