"""moslora report: one page that needs nothing else, with the numbers of the other commands."""

import json
import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import Mock
from xml.etree import ElementTree

import pytest
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.text import Text
from scipy.stats import binomtest

from changes_kit import replace as replace_text
from changes_kit import write_jsonl
from cli_kit import run as cli
from evaluation_kit import read_results
from message_kit import says
from moslora.compare.comparison import compare_paths
from moslora.compare.conclusion import lines
from moslora.compare.display import tables
from moslora.compare.index import ExperimentIndex, ExperimentRun
from moslora.errors import UsageError
from moslora.evaluation.evaluate_target import evaluate_target
from moslora.evaluation.target import open_target
from moslora.files import locked
from moslora.recipe import load_recipe
from moslora.report import write_report
from moslora.report.canvas import STYLE, Canvas
from moslora.report.comparisons import against_bases, against_each_other
from moslora.report.figures.curves import CURVES, curve
from moslora.report.figures.differences import differences
from moslora.report.figures.mixers import draw_mixers, mapped
from moslora.report.runs import reported_runs
from moslora.runs.predictions import Prediction
from moslora.runs.run import Run
from moslora.training import train_recipe

VOID = {"meta", "link"}
TEXT = {"td", "p", "span", "summary"}


class Reader(HTMLParser):
    """Cells, paragraphs and links of a page, all of whose tags must be closed."""

    def __init__(self, text):
        super().__init__()
        self.open = []
        self.cells = []
        self.tags = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in TEXT:
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if self.open and self.open[-1] in TEXT:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """Finished run, scored with its base, in a folder with special characters in its name."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("runs") / "<u>run & $x$")
    for base in (True, False):
        evaluate_target(open_target(str(run), base=base), limit=12)
    return run


def of_another_method(run, place):
    """Return a copy of the run with another alpha, and with ``packages`` in its run.json as in earlier versions."""
    copy = shutil.copytree(run, place)
    replace_text(copy / "recipe.yaml", "alpha: 8", "alpha: 4")
    Run(copy).add_facts(packages={"torch": "1"})
    return copy


@pytest.fixture(scope="module")
def other(evaluated):
    return of_another_method(evaluated, evaluated.parent / "other")


@pytest.fixture(scope="module")
def page(evaluated, tmp_path_factory):
    """Report of the evaluated run. Copy it before changing it: the figures take seconds."""
    return write_report([evaluated], out=tmp_path_factory.mktemp("page")).parent


@pytest.fixture
def undrawn(monkeypatch):
    """Put names in place of figures on the page, as drawing them takes seconds."""
    monkeypatch.setattr(Canvas, "keep", lambda canvas, name, figure: Markup("<svg>{}</svg>").format(name))


def test_the_page_stands_alone_and_has_the_numbers_of_compare(evaluated, capsys):
    code, _, errors = cli(capsys, "report", evaluated)
    assert code == 0, errors
    text = (evaluated / "report" / "report.html").read_text("utf-8")
    found = Reader(text)
    assert not {tag for tag, _ in found.tags} & {"script", "link", "iframe", "object", "img"}
    assert "<u>" not in text and "&lt;u&gt;run &amp; $x$" in text
    links = [value for _, names in found.tags for key, value in names.items() if "href" in key or key == "src"]
    assert all(str(link).startswith(("#", "data:image/png;base64,")) for link in links), links
    assert not re.search(r"url\((?!#)|@import", text)
    pictures = re.findall(r"<svg .*?</svg>", text, flags=re.S)
    for picture in pictures:
        ElementTree.fromstring(picture.replace("<svg", '<svg xmlns:xlink="x"', 1))
    assert len(pictures) == len(list((evaluated / "report").glob("*.png"))) > 4
    comparison = compare_paths([evaluated])
    for row in (*tables(comparison)[0][1:], lines(comparison)):
        assert {*row} <= {*found.cells}
    assert {"Scores", "Training"} <= {*found.cells}, "folded"


@pytest.mark.usefixtures("undrawn")
def test_gain_is_shown_against_forgetting_where_runs_were_asked_texts(evaluated, tmp_path):
    """The figure needs texts, and a single base that was asked in one way, wherever it is."""
    run = shutil.copytree(evaluated, tmp_path / "run")
    for folder in run.glob("eval/*"):
        nats = 1.0 + folder.name.endswith("-base")
        with (folder / "predictions.jsonl").open("a", encoding="utf-8") as file:
            for number in range(20):
                text = Prediction(f"mine/{number}", "mine", gold=0, prediction=0, scores=(-100 * nats,), bytes=100)
                file.write(text.to_json() + "\n")
    moved, other = (of_another_method(run, tmp_path / name) for name in ("moved", "other"))
    for path, old, new in ((moved, '/model"', '/elsewhere"'), (other, '"float32"', '"float64"')):
        for file in path.glob("eval/*/settings.json"):
            replace_text(file, old, new)
    for number, (runs, drawn) in enumerate(
        (([evaluated], False), ([run], True), ([run, moved], True), ([run, other], False))
    ):
        text = write_report(runs, out=tmp_path / "pages" / str(number)).read_text("utf-8")
        assert ("gain-and-forgetting" in text) == drawn


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("asked", ["one task of three", "another task"])
def test_averages_of_run_and_base_are_over_the_same_questions(evaluated, tmp_path, asked):
    run = shutil.copytree(evaluated, tmp_path / "run")
    shutil.rmtree(next(run.glob("eval/*-base")))
    base, _ = evaluate_target(open_target(str(run), base=True), tasks="obqa", limit=12)
    if asked == "another task":
        shutil.rmtree(next(run.glob("eval/*32")))
        evaluate_target(open_target(str(run)), tasks="boolq", limit=12)
    tuned = read_results(next(run.glob("eval/*32")))
    (shown,) = reported_runs([run])
    page = Reader(write_report([run], out=tmp_path / "page").read_text("utf-8"))
    at = page.cells.index("21 of 21 steps") + 2
    if asked == "another task":
        assert shown.left_out.endswith("left out: boolq, obqa") and shown.base is None
        assert page.cells[at : at + 3] == ["12", "–", f"{100 * tuned.macro.accuracy:.1f}"]
    else:
        assert shown.left_out.endswith("left out: boolq, arc_easy")
        scores = [base.macro.accuracy, tuned.tasks["obqa"].accuracy]
        assert page.cells[at : at + 3] == ["12", *(f"{100 * score:.1f}" for score in scores)]
    assert any(shown.left_out in cell for cell in page.cells)


@pytest.mark.usefixtures("undrawn")
def test_runs_without_answers_are_shown_and_the_others_compared(evaluated, other, tmp_path):
    without = shutil.copytree(other, tmp_path / "without")
    shutil.rmtree(without / "eval")
    page = Reader(write_report([without, evaluated], out=tmp_path / "page").read_text("utf-8"))
    assert "without" in page.cells and any(says(cell, "No difference", evaluated.name) for cell in page.cells)
    assert not any("not compared" in cell for cell in page.cells)
    assert "adapter.alpha" in page.cells and "packages.torch" not in page.cells


def asked(run, place, *tasks):
    """Return a copy of the run with its own and its base's answers to these tasks alone."""
    copy = shutil.copytree(run, place)
    for file in copy.glob("eval/*/predictions.jsonl"):
        rows = [line for line in file.read_text("utf-8").splitlines() if json.loads(line)["id"].startswith(tasks)]
        file.write_text("".join(f"{row}\n" for row in rows))
    for file in copy.glob("eval/*/settings.json"):
        known = json.loads(file.read_text("utf-8"))
        known["tasks"] = {task: record for task, record in known["tasks"].items() if task in tasks}
        file.write_text(json.dumps(known))
    return copy


def comparisons(*paths):
    """Return the comparisons on a page about the runs at these paths."""
    runs = reported_runs(paths)
    return [*against_each_other(runs, paths), *against_bases(runs)]


@pytest.mark.usefixtures("undrawn")
def test_runs_of_different_tasks_are_compared_on_shared_tasks(evaluated, other, tmp_path):
    """A run is compared with its base on all its tasks."""
    runs = [asked(evaluated, tmp_path / "one", "boolq", "obqa"), asked(other, tmp_path / "two", "arc_easy", "obqa")]
    compared = {one.title: [[*contrast.y] for contrast in one.contrasts] for one in comparisons(*runs)}
    assert compared == {
        "Against each other": [["obqa"]],
        "Against the base of one": [["boolq", "obqa"]],
        "Against the base of two": [["arc_easy", "obqa"]],
    }
    apart = [asked(evaluated, tmp_path / "three", "boolq"), asked(other, tmp_path / "four", "arc_easy")]
    each_other, *bases = comparisons(*apart)
    (line,) = each_other.verdicts
    assert says(line, "not compared", "no question in common") and all(one.contrasts for one in bases)
    text = write_report(apart, out=tmp_path / "page").read_text("utf-8")
    assert 0 < text.index("No difference") < text.index("not compared"), "a conclusion first"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("change", "there", "gone"),
    [
        ("not evaluated", "training-loss", "Scores"),
        ("without base", "Scores", "Against the base"),
        ("begun", "of 21 steps", "The mixer M"),
        ("imported", "The mixer M", "training-loss"),
        ("the base is gone", "training-loss", "The mixer M"),
    ],
)
def test_unfinished_runs_are_shown(evaluated, tmp_path, monkeypatch, change, there, gone):
    """A run that has just begun is also shown beside a finished one."""
    run = shutil.copytree(evaluated, tmp_path / "run")
    lost = {"without base": ["eval/*-base"], "begun": ["eval", "adapter", "checkpoints", "metrics.jsonl"]}
    lost["imported"] = ["eval", "metrics.jsonl"]
    for pattern in lost.get(change, ["eval"]):
        for path in run.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if change == "the base is gone":
        monkeypatch.setattr("moslora.base.shapes.locate", Mock(side_effect=UsageError("no such folder")))
    if change == "imported":
        card = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({"imported": {}, "versions": card["versions"]}))
    text = write_report([run], out=tmp_path / "page").read_text("utf-8")
    Reader(text)
    assert there in text and gone not in text
    if change == "begun":
        both = Reader(write_report([run, evaluated], out=tmp_path / "both").read_text("utf-8"))
        assert {run.name, evaluated.name} <= {*both.cells}


@pytest.mark.parametrize(
    ("changes", "bases"),
    [
        ({"base": "/elsewhere/model"}, 1),
        ({"fingerprint": "f2"}, 2),
        ({"quantization": "nf4"}, 2),
        ({"protocol": "cloze", "format": "cloze"}, 2),
    ],
)
def test_bases_differ_by_weights_and_protocol(evaluated, tmp_path, changes, bases):
    """The path of a base does not count. Several bases are named after the first run that has each."""
    other, third = (shutil.copytree(evaluated, tmp_path / name) for name in ("other", "third"))
    for file in other.glob("eval/*-base/settings.json"):
        known = json.loads(file.read_text("utf-8"))
        for key, value in changes.items():
            (known["settings"] if key in known["settings"] else known["settings"]["answered_by"])[key] = value
        file.write_text(json.dumps(known))
    found = [run.base_name for run in reported_runs([evaluated, other, third])]
    first = f"base of {evaluated.name}"
    assert found == (["base"] * 3 if bases == 1 else [first, "base of other", first])


def test_every_label_of_a_figure_is_whole(evaluated, tmp_path, monkeypatch):
    """By matplotlib's own extents, also with long names, many arms, seeds and protocols; the ticks' labels apart,
    which matplotlib also keeps where they are not drawn."""
    validated = Run(shutil.copytree(evaluated, tmp_path / "run"))
    rows = [row | {"validation_accuracy": 0.5, "validation_questions": 6} for row in validated.metrics]
    write_jsonl(validated.path / "metrics.jsonl", rows)
    (run,) = reported_runs([validated.path])
    cut = []

    def extents(canvas, name, figure):
        """In place of `keep`, which lays a figure out twice, too."""
        with rc_context(STYLE):
            figure.draw_without_rendering()
            figure.draw_without_rendering()
        ticks = {label for axes in figure.axes for label in (*axes.get_xticklabels(), *axes.get_yticklabels())}
        for text in figure.findobj(Text):
            if text.get_text() and text.get_visible() and text not in ticks:
                place, whole = text.get_window_extent(), figure.bbox
                inside = whole.x0 - 1 <= place.x0 and place.x1 <= whole.x1 + 1
                if not (inside and whole.y0 - 1 <= place.y0 and place.y1 <= whole.y1 + 1):
                    cut.append(f"{name}: {text.get_text()}")
        return name

    monkeypatch.setattr(Canvas, "keep", extents)
    arms = [run.arm, *(f"a-method-with-a-long-name-and-{option}-{n}" for n, option in enumerate(["this"] * 6))]
    runs = [replace(run, arm=arm, base_name=f"base (a-model-with-a-long-name-{arm[-1]})") for arm in arms for _ in "ab"]
    canvas = Canvas(tmp_path, arms)
    for name in CURVES:
        assert curve(canvas, runs, name, CURVES[name])
    contrast = compare_paths([evaluated]).named[0]
    several = [replace(contrast, before=arms[1], after=arm) for arm in arms]
    assert differences(canvas, "differences", several)
    assert draw_mixers(canvas, "mixers", mapped(run.learned))
    assert not cut


def test_accuracies_of_validations_are_drawn_with_their_intervals(trained, tmp_path, monkeypatch):
    """The bands are scipy's Wilson intervals. The ring is at the step chosen by accuracy, and not in the loss."""
    bands = []
    rings = []

    def keep(canvas, name, figure):
        for band in figure.axes[0].collections:
            bands.append({(x, round(y, 9)) for x, y in band.get_paths()[0].vertices.tolist()})
        for line in figure.axes[0].get_lines():
            if line.get_fillstyle() == "none":
                rings.append((name, line.get_xdata()[0], line.get_ydata()[0]))
        return name

    monkeypatch.setattr(Canvas, "keep", keep)
    run = Run(shutil.copytree(trained, tmp_path / "run"))
    accuracies = {0: 0.0, 5: 0.25, 10: 0.75, 21: 0.5}
    rows = [{"step": step, "validation_loss": 1.0, "validation_accuracy": value} for step, value in accuracies.items()]
    effective = {10: 12}  # some questions are in a cluster
    rows[2]["validation_effective_questions"] = effective[10]
    lines = [json.dumps({**row, "validation_questions": 24}) + "\n" for row in rows]
    (run.path / "metrics.jsonl").write_text("".join(lines))
    text = (run.path / "recipe.yaml").read_text().replace("result: last", "result: best")
    (run.path / "recipe.yaml").write_text(text.replace("best_by: loss", "best_by: accuracy"))
    run.add_facts(best={"step": 10, "accuracy": 0.75, "last_accuracy": 0.5, "validations": 3, "since": 1})
    (reported,) = reported_runs([run.path])
    for name in ("validation_loss", "validation_accuracy"):
        assert curve(Canvas(tmp_path, [reported.arm]), [reported], name, CURVES[name])
    ends = set()
    for step, share in accuracies.items():
        count = effective.get(step, 24)
        interval = binomtest(round(count * share), count).proportion_ci(method="wilson")
        ends |= {(step, round(interval.low, 9)), (step, round(interval.high, 9))}
    assert bands == [ends]
    assert rings == [("training-validation-accuracy", 10, 0.75)]


@pytest.mark.usefixtures("undrawn")
def test_a_gate_and_generated_answers(recipe, tmp_path):
    run = tmp_path / "run"
    short = ("training.max_steps=2", "training.warmup_steps=0", "adapter.mixer={kind: token-gate}")
    train_recipe(recipe(*short, "evaluation.protocol=generate"), out=run)
    for base in (True, False):
        evaluate_target(open_target(str(run), base=base), limit=3)
    text = write_report([run], out=tmp_path / "page").read_text("utf-8")
    Reader(text)
    assert "The mixer M" not in text


def test_a_report_is_replaced_with_its_figures(evaluated, page, tmp_path):
    run, out = Path(shutil.copytree(evaluated, tmp_path / "runs" / evaluated.name)), tmp_path / "page"
    before = {path.name for path in Path(shutil.copytree(page, out)).iterdir()}
    shutil.rmtree(run / "eval")
    with locked(run):  # as in training
        write_report([run], out=out)
    after = {path.name for path in out.iterdir()}
    assert "differences-1.png" in before - after and "report.html" in after < before
    assert "Scores" not in (out / "report.html").read_text("utf-8")


@pytest.mark.parametrize("name", ["differences-9.png", "folder/notes.txt", "report.html"])
def test_files_that_no_report_wrote_stay(evaluated, page, tmp_path, name):
    """Other files beside a report, and another program's page, are neither replaced nor removed."""
    if name != "report.html":
        shutil.copytree(page, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=name.partition("/")[0]):
        write_report([evaluated], out=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_without_matplotlib_one_line_says_how_to_install_it(evaluated, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, errors = cli(capsys, "report", evaluated, "--out", tmp_path / "page")
    assert code == 2 and "pip install" in errors and errors.count("\n") == 1 and not (tmp_path / "page").exists()


def test_folders_of_runs_are_found(evaluated, tmp_path):
    shutil.copytree(evaluated, tmp_path / "one")
    (against_base,) = comparisons(tmp_path)
    assert against_base.contrasts
    shutil.copytree(evaluated, tmp_path / "two")
    assert [run.name for run in reported_runs([tmp_path])] == ["one", "two"]
    same = [Path(shutil.copytree(evaluated, tmp_path / folder / "seed-1")) for folder in ("a", "b")]
    assert [run.name for run in reported_runs(same)] == [str(path) for path in same]
    with pytest.raises(UsageError, match="no runs here"):
        reported_runs([tmp_path / "one" / "adapter"])


@pytest.mark.usefixtures("undrawn")
def test_an_experiment_is_shown_by_its_arms(evaluated, tmp_path):
    """Arms are named by the index, with two seeds each."""
    runs = tuple(ExperimentRun(arm, seed, 0.03, f"runs/{arm}-{seed}") for arm in ("plain", "mixed") for seed in (3, 4))
    for run in runs:
        made = shutil.copytree(evaluated, tmp_path / "exp" / run.folder)
        recipe = load_recipe(made / "recipe.yaml", [f"seed={run.seed}", f"name={run.arm}"])
        (made / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    index = ExperimentIndex("exp", ("plain", "mixed"), "accuracy", runs, (("mixed", "plain"),))
    index.write(tmp_path / "exp")
    each_other, *_ = comparisons(tmp_path / "exp")
    assert len(each_other.contrasts) == 2
    replace(index, others=()).write(tmp_path / "exp")
    found = Reader(write_report([tmp_path / "exp"], out=tmp_path / "page").read_text("utf-8"))
    assert any(says(cell, "No difference between mixed and plain", "would have been found") for cell in found.cells)
    assert {"plain-3", "plain-4", "mixed-3", "mixed-4"} <= {*found.cells}
    shutil.rmtree(tmp_path / "exp" / runs[3].folder)
    assert [run.arm for run in reported_runs([tmp_path / "exp"])] == ["plain", "plain", "mixed"]
