"""Whatever a user writes: a recipe, an override or a row of data is taken whole, or refused in lines that say where.
Whatever happens to a file of a checkpoint: it is named, and the checkpoint before it taken.

Nothing else may happen: no other exception, no line without its place, no half-written file or output. The inputs are
random, near what is right: right and wrong keys, values of every YAML or JSON type, text of every kind. They are the
same in every run (`derandomize`), so that a change cannot fail by chance; the examples written out are what was found.
`make soak` tries others, and more of them.
"""

import io
import json
import os
import shutil
import sys
import tempfile
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from moslora.cli import main
from moslora.data.local import read_file
from moslora.errors import MosloraError, UsageError
from moslora.prompts.formats import FORMATS, LabelFormat
from moslora.prompts.instructions import answer_pattern, llm_adapters_row
from moslora.recipe import find_recipe, load_recipe, recipe_schema, trace_recipe
from moslora.recipe.yaml_text import parse, render_inline
from moslora.runs.adapter_folder import open_adapter
from moslora.runs.resuming import newest_saved
from moslora.runs.run import Run
from moslora.tasks import COMMONSENSE, INSTRUCTION

SCHEMA = recipe_schema()
LLAMA = str(find_recipe("llama3-8b"))
TIMES = int(os.environ.get("MOSLORA_EXAMPLES", "1"))
"""Above 1, so many times the examples, and others in every run."""


def tries(examples):
    return settings(
        max_examples=TIMES * examples,
        derandomize=TIMES == 1,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


TEXT = st.one_of(
    st.text(max_size=12), st.sampled_from(["", " ", "~x", "a" * 300, "\\0", "a\nb", "é\u2028", "\ud800", "(", "1e400"])
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 40), st.integers(), st.floats(), TEXT, st.dates(), st.binary(max_size=3)
)
NO_MODEL = ": model.name: is missing"
KEYS = st.one_of(st.text(max_size=8), st.integers(), st.booleans(), st.none())
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)


def near(schema):
    """Values that the schema of a field describes, as far as single values go."""
    if "$ref" in schema:
        return near(SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")])
    if "anyOf" in schema:
        return st.one_of(*map(near, schema["anyOf"]))
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema["type"]:
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(max(schema.get("minimum", 0), schema.get("exclusiveMinimum", 0)), 64)
        case "number":
            return st.floats(0, 0.99) | st.integers(0, 9)
        case "string":
            return st.sampled_from(["./x.json", "hub", "wheel", "boolq,piqa", "offline", "x"]) | TEXT
        case "array" if "prefixItems" in schema:
            return st.tuples(*map(near, schema["prefixItems"])).map(list)
        case "array":
            return st.lists(near(schema["items"]), max_size=3)
    if not schema.get("properties"):
        return st.dictionaries(st.sampled_from(COMMONSENSE) | TEXT, st.integers(-1, 9), max_size=3)
    fields = {key: near(value) for key, value in schema["properties"].items() if key != "extends"}
    fixed = {key: fields.pop(key) for key, value in schema["properties"].items() if "const" in value}
    return st.fixed_dictionaries(fixed, optional=fields)


def _spoiled(value, wrong, named):
    """`value` with other keys or values, also within its sections, and nearly always a model."""
    if named:
        value["model"] = {**value.get("model", {}), "name": "x"}
    for key, other in wrong.items():
        if isinstance(value.get(key), dict) and isinstance(other, dict):
            other = value[key] | other
        value[key] = other
    return value


RECIPES = st.builds(
    _spoiled,
    near(SCHEMA),
    st.dictionaries(st.sampled_from([*SCHEMA["properties"]]) | KEYS, ANYTHING, max_size=2),
    st.sampled_from([True] * 9 + [False]),
)


def command(*arguments):
    """Exit code, output and errors of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["moslora", *arguments])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def check_lines(error, *places):
    """Every line says where, in printable text, and what: nothing is empty and nothing runs on."""
    lines = str(error).split("\n")
    for line in lines:
        assert line.isprintable(), line
        assert line.startswith(places), line
        assert len(line.partition(": ")[2]) > 8, line
    assert len(set(lines)) == len(lines), lines


def check_recipe(path, *overrides, places):
    """A recipe is one or is refused; the command that prints it agrees."""
    try:
        recipe = load_recipe(path, overrides)
    except UsageError as error:
        check_lines(error, *places)
        code, out, err = command("recipes", "show", "--", str(path), *overrides)
        # To be looked at, a recipe needs no model. Rules between fields are looked at once none is wrong or missing.
        faults = [line for line in str(error).split("\n") if NO_MODEL not in line]
        if faults:
            assert err == "".join(f"error: {line}\n" for line in faults)
        elif code:
            check_lines(UsageError(err.removesuffix("\n").replace("error: ", "")), *places)
        assert code == 2 and not out if err else code == 0
    else:
        again = path.with_name("again.yaml")
        again.write_text(recipe.to_yaml(), encoding="utf-8")
        assert load_recipe(again) == recipe
        rows = trace_recipe(path, overrides)
        assert {origin for _, _, origin in rows} <= {str(path), "base.yaml", LLAMA, "override", "default"}
        code, out, err = command("recipes", "show", "--", str(path), *overrides)
        assert (code, err) == (0, "") and len(out.splitlines()) == len(rows)


def written(value):
    return yaml.dump(value, Dumper=yaml.SafeDumper, allow_unicode=True)


@pytest.fixture(scope="module", autouse=True)
def folder():
    """A working directory for all examples."""
    with tempfile.TemporaryDirectory() as scratch, chdir(scratch):
        yield


@pytest.mark.slow
@tries(150)
@given(value=RECIPES, base=st.none() | RECIPES, name=st.sampled_from(["base.yaml", "llama3-8b", "a"]) | ANYTHING)
def test_any_recipe_file_is_read_or_refused(value, base, name):
    if base is not None:
        Path("base.yaml").write_text(written(base), encoding="utf-8", errors="surrogatepass")
        if isinstance(value, dict):
            value = value | {"extends": name}
    Path("any.yaml").write_text(written(value), encoding="utf-8", errors="surrogatepass")
    check_recipe(Path("any.yaml"), places=("any.yaml: ", "base.yaml: "))


@tries(100)
@given(text=st.text(max_size=60) | st.text("{}[]:,-&*!|>'\"#%@ \n\tab1~", max_size=40) | st.binary(max_size=30))
@example(text="training: &a {x: *a}")
@example(text="&a [*a]")
@example(text="model: " + "{a: " * 400 + "1" + "}" * 400)
@example(text="seed: 0x" + "f" * 5000)
@example(text="training: {epochs: 0x" + "f" * 300 + "}")
@example(text="model: {name: 2001-99-99}")
@example(text="? {a: b}\n: c")
@example(text="model: {name: x}\nadapter: {target_modules: 'a{99999999999999999999}'}")
@example(text="model: {name: x}\nadapter: {target_modules: '" + "(" * 3000 + ")" * 3000 + "'}")
@example(text='model: {name: x}\n"a\\nb": 1')
@example(text='model: {name: x}\n"\\ud800": 1')
@example(text='model: {name: "\\ud800"}')
@example(text='model: {name: "\\x85", revision: "a\\n b\\u2028\\ufeff\\xa0"}')
@example(text='extends: "a\\0b"')
@example(text="extends: ~nobody-at-all")
@example(text="extends: " + "a" * 300)
def test_any_text_is_a_recipe_or_refused(text):
    content = text if isinstance(text, bytes) else text.encode("utf-8", errors="surrogatepass")
    Path("any.yaml").write_bytes(content)
    check_recipe(Path("any.yaml"), places=("any.yaml: ",))


DOTTED = [key for key, _, _ in trace_recipe("smollm2-135m")]


@pytest.mark.slow
@tries(150)
@given(
    overrides=st.lists(
        st.tuples(
            st.sampled_from(DOTTED) | st.sampled_from(DOTTED).map(lambda key: key[:-1]) | st.text(max_size=10),
            st.sampled_from(["=", "", "==", "=:"]),
            SCALARS.map(lambda value: written(value).split("\n")[0])
            | st.text(max_size=20)
            | st.sampled_from(["{", "[]"]),
        ).map("".join),
        max_size=3,
    )
)
@example(overrides=[".".join("a" * 3000) + "=1"])
@example(overrides=["a" * 3000 + "=1"])
@example(overrides=["seed=0x" + "f" * 5000])
@example(overrides=["training.epochs=&a {b: *a}"])
@example(overrides=["model.name=\ud800"])
@example(overrides=["a\nb=1", "\ud800=1", "=", ""])
@example(overrides=["-=null"])
@example(overrides=["=", "-\n"])
@example(overrides=["name=a\u2028b", 'tracking.project="a\\nb"'])
@example(overrides=["extends=llama3-8b"])
def test_any_override_is_laid_or_refused(overrides):
    Path("any.yaml").write_text("model: {name: x}", encoding="utf-8")
    check_recipe(Path("any.yaml"), *overrides, places=("override", "any.yaml: "))


@tries(150)
@given(value=st.recursive(st.text(st.characters(exclude_categories=["Cs"])), lambda inner: st.lists(inner, max_size=3)))
def test_any_text_fits_on_one_line_and_comes_back(value):
    line = render_inline(value)
    assert line.isprintable() and parse(line) == value


# Rows of data

LABELS = st.sampled_from(["true", "answer1", "answer2", "ending4", "option1", "x", ""])
INSTRUCTIONS = st.sampled_from(
    [
        "Please answer the following question with true or false, question: a?\n\nAnswer format: true/false",
        "Please choose the correct answer to the question: a?\n\nAnswer1: a Answer2: b\n\nAnswer format: answer1",
        "Please choose the correct ending to complete the given sentence: a\n\nEnding1: a\n\nAnswer format: answer1",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
KNOWN = {"instruction": INSTRUCTIONS, "input": st.just(""), "output": LABELS.map("the correct answer is {}".format)}
ROWS = st.one_of(
    st.fixed_dictionaries(
        KNOWN | {"answer": LABELS}, optional={"task": st.sampled_from([*COMMONSENSE, "bolq"]) | JSON}
    ),
    st.fixed_dictionaries({}, optional=dict.fromkeys(["instruction", "input", "output", "answer", "task"], JSON)),
    JSON,
)
GOOD = {"instruction": "i", "input": "", "output": "o", "answer": "a"}
BAD = [
    {"task": ["boolq"]},
    {"task": {}},
    {"output": "\ud800"},
    {"task": "\ud800\n"},
    {"output": ""},
    {"instruction": "\u2028"},
]


def check_example(found):
    """An example that every format renders or refuses, and that writes back as text."""
    assert 0 <= found.gold < len(found.choices)
    json.dumps(llm_adapters_row(found), ensure_ascii=False).encode()
    for format in FORMATS.values():
        try:
            options = format.options(found)
        except MosloraError as error:
            check_lines(error, found.id)
        else:
            assert len(options) == len(found.choices)
            assert isinstance(format, LabelFormat) or all(option.characters > 0 for option in options)
    if found.task != INSTRUCTION:
        assert len(found.choices) > 1, "a question with one option asks nothing"
        assert answer_pattern(found).search(llm_adapters_row(found)["output"])


@tries(300)
@given(
    text=st.lists(ROWS, max_size=4).map(json.dumps)
    | st.lists(ROWS, max_size=4).map(lambda rows: "\n".join(map(json.dumps, rows)))
    | st.text('{}[]",:\\ \n1eu', max_size=40)
    | st.binary(max_size=20),
    suffix=st.sampled_from(["json", "jsonl"]),
)
@example(text="[" * 100_000, suffix="jsonl")
@example(text='{"a":' * 100_000, suffix="json")
@example(text="9" * 5000, suffix="jsonl")
@example(text="[" + "9" * 5000, suffix="json")
@example(text="\ufeff" + json.dumps(GOOD), suffix="jsonl")
@example(text=json.dumps([GOOD | bad for bad in BAD]), suffix="json")
def test_any_rows_are_read_or_refused(text, suffix):
    path = Path(f"rows.{suffix}")
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", errors="surrogatepass"))
    try:
        examples = read_file(path, "train")
    except MosloraError as error:
        check_lines(error, str(path))
    else:
        for found in examples:
            check_example(found)


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    """A run whose files may be damaged, and its recipe."""
    run = Run(shutil.copytree(trained, tmp_path_factory.mktemp("saved") / "run"))
    return run, load_recipe(run.path / "recipe.yaml")


def same_json(content, other):
    """As without the last line break."""
    try:
        return bool(json.loads(content) == json.loads(other))
    except ValueError:
        return False


@tries(50)
@given(draw=st.data())
def test_any_damage_of_a_checkpoint_or_result_is_named_and_the_one_before_taken(saved, draw):
    """A file that is cut, or has up to three bits flipped."""
    run, recipe = saved
    before, last = run.checkpoints[-2:]
    damaged, expected = draw.draw(st.sampled_from([(last, before), (run.result, last)]))
    path = draw.draw(st.sampled_from(sorted(damaged.iterdir())))
    whole = path.read_bytes()
    content = bytearray(whole)
    if draw.draw(st.booleans()):
        del content[draw.draw(st.integers(0, len(whole) - 1)) :]
    else:
        for bit in draw.draw(st.sets(st.integers(0, 8 * len(whole) - 1), min_size=1, max_size=3)):
            content[bit // 8] ^= 1 << bit % 8
    assume(path.suffix != ".json" or not same_json(whole, content))
    hidden = run.result.with_name("hidden")
    path.write_bytes(content)
    if damaged == last:
        run.result.rename(hidden)
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            found = newest_saved(run, recipe)
        assert found and found.path == expected and f"skipped {damaged}: {path}: " in said.getvalue()
        with pytest.raises(MosloraError):
            open_adapter(damaged).weights()
    finally:
        path.write_bytes(whole)
        if hidden.exists():
            hidden.rename(run.result)
