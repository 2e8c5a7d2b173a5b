"""One page about runs: how they trained, what they answer, what they learned. Self-contained, with the figures as PNG.

``report.html``  needs no network        ``NAME.png``  every figure
"""

from collections.abc import Sequence
from pathlib import Path

from moslora.errors import UsageError
from moslora.files import locked, refuse_used, replaced_folder

PAGE = "report.html"


def write_report(paths: Sequence[Path], *, out: Path, evaluation: str | None = None) -> Path:
    """Writes the report about the runs at ``paths`` into ``out``, replacing an older report there; returns the page.

    ``evaluation`` names the evaluation's folder in a run's ``eval/``; ``None`` for the only one, or the recipe's.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("a report needs matplotlib; pip install 'moslora[plots]', or pip install matplotlib") from None
    from moslora.study.report.page import page
    from moslora.study.report.runs import reported_runs

    runs = reported_runs(paths, evaluation=evaluation)
    if not (out / PAGE).is_file():
        refuse_used(out)
    beside = out.with_name(f".{out.name}.lock")  # not the run's own lock, which a training holds
    with locked(beside), replaced_folder(out) as scratch:
        (scratch / PAGE).write_text(page(runs, paths, folder=scratch, evaluation=evaluation), encoding="utf-8")
    return out / PAGE
