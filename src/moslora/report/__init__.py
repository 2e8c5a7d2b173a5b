"""Report about runs on one self-contained HTML page, with its figures as PNG: training, answers, comparisons, mixers.

``report.html``  page, which needs no network
``NAME.png``     each figure
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
    """Write the report about the runs at ``paths`` into ``out``, where it replaces an older report. Return the page.

    Args:
        paths: runs, folders of runs, or experiments.
        out: a folder that is empty or holds nothing but a report.
        evaluation: name of the evaluation's folder in a run's ``eval/``; ``None`` for the only one, or the recipe's.

    Raises:
        UsageError: a path is not a folder, ``out`` has other files, matplotlib is not installed, or there are no runs.
    """
    for path in paths:
        if not path.is_dir():
            fix = did_you_mean(near_folders(path), otherwise="moslora runs lists all")
            raise UsageError(f"{path}: no such folder; {fix}")
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
    """Return the names of a report's files, which its page lists; empty if the page is not a report's."""
    text = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
    names = re.search('<meta name="moslora-report" content="(.*)">', text)
    return html.unescape(names[1]).split("/") if names else []
