"""The page of a report: its contents are drawn, and filled into ``page.html``."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from moslora.evaluation.display import heading, table
from moslora.report import PAGE, figures
from moslora.report.canvas import SERIES, Canvas
from moslora.report.contents import Contents
from moslora.report.tables import differing, glance


def page(contents: Contents, *, folder: Path) -> str:
    """The text of the page; the PNGs are written into ``folder``."""
    canvas = Canvas(folder, contents.arms)
    curves = figures.of_training(canvas, contents)
    answers = figures.of_answers(canvas, contents)
    mixers = figures.of_mixers(canvas, contents)
    drawn = sorted(path.name for path in folder.iterdir())
    return _template().render(
        title=", ".join(contents.arms),
        files=[PAGE, *drawn],
        arms={arm: f"c{place % len(SERIES)}" for place, arm in enumerate(contents.arms)},
        remarks=contents.remarks,
        glance=glance(contents.runs),
        answers=answers,
        comparisons=contents.comparisons,
        curves=curves,
        mixers=mixers,
        changed=contents.changed,
        first=contents.firsts[0].name,
        scores={f"{name}: {heading(results)}": table(results) for name, results in contents.evaluated.items()},
        differing=differing(contents.runs),
    )


def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html")
