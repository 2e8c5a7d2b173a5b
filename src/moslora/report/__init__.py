"""One page about runs: how they trained, what they answer, what they learned. Self-contained, with the figures as PNG.

``report.html``  needs no network        ``NAME.png``  every figure
"""

import html
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from moslora.errors import UsageError, did_you_mean, needing
from moslora.files import near_folders, new_folder, refuse_used

PAGE = "report.html"


def write_report(paths: Sequence[Path], *, out: Path, evaluation: str | None = None) -> Path:
    """Writes the report about the runs at ``paths`` into ``out``, where it replaces an older report; returns the page.

    Args:
        paths: runs, folders of runs, or experiments.
        out: a folder that is empty or holds nothing but a report.
        evaluation: name of the evaluation's folder in a run's ``eval/``; ``None`` for the only one, or the recipe's.
    """
    for path in paths:
        if path.is_file():
            raise UsageError(f"{path}: a file, not a run; moslora compare reads logs of other programs")
        if not path.exists():
            raise UsageError(
                f"{path}: no such run; {did_you_mean(near_folders(path), otherwise='moslora runs lists all')}"
            )
    older = partial(_files, out / PAGE)
    refuse_used(out, older=older())
    with needing("matplotlib", "a report"):
        import matplotlib  # noqa: F401
    from moslora.report.page import page
    from moslora.report.runs import reported_runs

    with new_folder(out, older=older) as scratch:
        runs = reported_runs(paths, evaluation=evaluation)
        (scratch / PAGE).write_text(page(runs, paths, folder=scratch), encoding="utf-8")
    return out / PAGE


def _files(page: Path) -> list[str]:
    """The names of the files of the report with this page, which lists them; none if no report wrote it."""
    text = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
    found = re.search('<meta name="moslora-report" content="(.*)">', text)
    return html.unescape(found[1]).split("/") if found else []
