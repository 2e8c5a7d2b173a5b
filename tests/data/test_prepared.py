"""Rows from the cache: the same as fresh ones to the bit, made once, and again when what they depend on changes."""

import json
from collections.abc import Callable

import pytest

from changes_kit import write_jsonl
from forked_kit import python
from message_kit import in_order, says
from moslora.base.load import load_tokenizer
from moslora.console import note_once
from moslora.data import prepared
from moslora.data.encode import Encoder, encode_examples
from moslora.data.overlap import digest
from moslora.data.prepared import RunRows
from moslora.data.select import hold_out, limit_rows
from moslora.data.sources import data_hash, load_examples, load_training
from moslora.data.steps import label_count
from moslora.errors import UsageError
from moslora.prompts.formats import FORMATS
from moslora.recipe import Recipe
from training_kit import importing_tests

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache; the rows in it."""
    monkeypatch.setenv("MOSLORA_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "rows"


def prepare(recipe, tokenizer=None):
    encoder = Encoder(tokenizer or load_tokenizer(recipe.model), max_length=recipe.data.max_length)
    return RunRows(recipe.data, recipe.training_tasks, encoder, recipe.seed).prepare()


@pytest.fixture
def made(monkeypatch):
    """An entry for each time that rows were made."""
    times = []
    make = RunRows._from_sources
    monkeypatch.setattr(RunRows, "_from_sources", lambda rows: (times.append(None), make(rows))[1])
    return times


OTHERS = ("data.max_length=40", "data.format=llm-adapters", "data.loss_on=all")


@pytest.mark.parametrize("change", ("data.rows=20", *OTHERS))
def test_cached_rows_are_the_fresh_ones(recipe, cache, made, change):
    """Every row, the batches of them, what is counted, recorded and said; first from memory, then from the disk."""
    own = recipe(change)
    rows = load_training(own.training_tasks, source=own.data.source)
    chosen = limit_rows(rows, rows=own.data.rows, seed=own.seed)
    trained, aside = hold_out(chosen, validation_rows=own.data.validation_rows, seed=own.seed)
    encoder = Encoder(load_tokenizer(own.model), max_length=own.data.max_length)
    fresh, validation = (
        encode_examples(examples, FORMATS[own.data.format], encoder, loss_on=own.data.loss_on)
        for examples in (trained, aside)
    )
    written, read = prepare(own), prepare(own)
    assert len(made) == 1
    for found in (written, read):
        assert list(found.rows) == fresh and list(found.validation) == validation
        assert found.rows[-1] == fresh[-1] and found.validation[1::2] == validation[1::2]
        assert found.sha256 == data_hash(trained) and found.source_sha256 == data_hash(rows)
        assert found.contents == b"".join(map(digest, trained))
        assert found.rows.token_count() == sum(len(row.input_ids) for row in fresh)
        assert found.rows.label_count() == label_count(fresh)
        assert found.rows.batch["truncated"].true_count == sum(row.truncated for row in fresh)
    assert (change == "data.max_length=40") <= (read.rows.batch["truncated"].true_count > 0)
    assert written.remarks() == read.remarks()


def test_cache_depends_on_everything_that_decides_rows(recipe, cache, world, tmp_path, made):
    changes = ("seed=4", "data.validation_rows=7", "data.tasks=[boolq]", "data.rows=9", *OTHERS)
    for n, change in enumerate(changes, start=1):
        prepare(recipe(change))
        assert len(made) == n, change
    prepare(recipe("data.tasks=[boolq]", "evaluation.tasks=[obqa]", "training.epochs=1", "adapter.rank=2"))
    assert len(made) == n, "neither the evaluation nor the training counts"

    tokenizer = load_tokenizer(recipe().model)
    prepare(recipe(), tokenizer)
    tokenizer.add_tokens(["the"])
    prepare(recipe(), tokenizer)
    tokenizer.eos_token = "the"
    prepare(recipe(), tokenizer)
    assert len(made) == n + 3

    for template in ("{{ messages[0].content }} {{ eos_token }}", "{{ messages[0].content }}"):
        tokenizer.chat_template = template
        prepare(recipe("data.format=chat"), tokenizer)
        prepare(recipe(), tokenizer)
    tokenizer.add_tokens(["an"])
    tokenizer.chat_template = None
    prepare(recipe(), tokenizer)
    assert len(made) == (n := n + 6), "without chat the template does not count"

    file = tmp_path / "mixed.jsonl"
    rows = json.loads((world / "data" / "boolq" / "train.json").read_text(encoding="utf-8"))
    for count in (20, 30, 20):
        file.write_text("\n".join(map(json.dumps, rows[:count])), encoding="utf-8")
        assert len(prepare(recipe(f"data.source={file}", "data.tasks=[boolq]")).rows) == count - 6
    assert len(made) == n + 2 and len(list(cache.iterdir())) <= prepared._KEPT


@pytest.mark.parametrize("name", ["rows.arrow", "rows.sha256"])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:50] + b"\xff" + b[51:]])
def test_damaged_rows_are_made_again(recipe, cache, made, name, damage):
    before = list(prepare(recipe()).rows)
    (file,) = cache.glob(f"*/{name}")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert list(prepare(recipe()).rows) == before and len(made) == 2
    assert file.read_bytes() == whole and prepare(recipe()) and len(made) == 2  # and are read the next time


def test_cached_rows_are_read_into_memory(recipe, cache):
    """Another machine may do to the file what it likes."""
    prepare(recipe())
    read = prepare(recipe())
    before = list(read.rows)
    (file,) = cache.glob("*/rows.arrow")
    with file.open("r+b") as opened:
        opened.write(bytes(file.stat().st_size))
    assert list(read.rows) == before


@pytest.mark.slow
def test_two_processes_make_them_once(recipe, cache, world):
    script = (
        "import sys, tests.data.test_prepared as t; from moslora.recipe import load_recipe\n"
        "made = t.RunRows._from_sources\n"
        "def say(rows): print('made', flush=True); import time; time.sleep(1); return made(rows)\n"
        "t.RunRows._from_sources = say; print(t.prepare(load_recipe(sys.argv[1], [])).sha256)"
    )
    environment = importing_tests() | {"CUDA_VISIBLE_DEVICES": ""}
    both = [python("-c", script, world / "recipe.yaml", env=environment) for _ in range(2)]
    said = [process.communicate(timeout=240)[0].split() for process in both]
    assert sorted(map(len, said)) == [1, 2] and said[0][-1] == said[1][-1] == prepare(recipe()).sha256


def test_without_a_writable_cache_training_goes_on(recipe, cache, monkeypatch, capsys):
    """A folder that cannot be written, and a disk that fills up."""

    def full(*args):
        raise OSError(28, "No space left on device")

    cache.parent.mkdir()
    cache.write_text("a file in the folder's place")
    rows = list(prepare(recipe()).rows)
    assert len(rows) == 84 and capsys.readouterr().out.count("could not be cached") == 1
    cache.unlink()
    monkeypatch.setattr("os.replace", full)
    assert list(prepare(recipe()).rows) == rows and capsys.readouterr().out.count("could not be cached") == 1
    assert not list(cache.iterdir())


def test_a_fixed_date_in_a_chat_template_is_recorded(recipe, cache):
    tokenizer = load_tokenizer(recipe().model)
    for template, dated in (("{{ messages[0].content }}", False), ("{{ strftime_now('%Y') }}", True)):
        tokenizer.chat_template = template
        notes = prepare(recipe("data.format=chat"), tokenizer).notes
        assert any("26 Jul 2024" in note for note in notes) == dated


ROLES = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
PLAIN = "{% for m in messages %}{% if m.role == 'user' %}USER: {% endif %}{{ m.content }} {% endfor %}"
SYSTEMS = {
    "of SmolLM": ("{% if messages[0].role != 'system' %}<system>Be nice.{% endif %}" + ROLES, "'Be nice.'"),
    "of Vicuna": ("{% if messages[0].role != 'system' %}A chat. {% endif %}" + PLAIN, "'A chat.'"),
    "none": (ROLES, ""),
    "a row's alone": ("<s>" + ROLES, ""),
    "refused": ("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + ROLES, ""),
}


@pytest.mark.parametrize(("template", "own"), SYSTEMS.values(), ids=SYSTEMS)
def test_a_chat_templates_own_system_message_is_told(recipe, cache, template, own):
    """Where a row has none, as no row here has."""
    tokenizer = load_tokenizer(recipe().model)
    tokenizer.chat_template = template
    told = [note for note in prepare(recipe("data.format=chat"), tokenizer).notes if "system message" in note]
    assert len(told) == bool(own) and all(own in note for note in told)


def test_the_questions_of_an_own_task_keep_its_wording(recipe, cache, tmp_path):
    lines = []
    for number in range(20):
        options = [f"one {number}", f"two {number}", "three"]
        lines.append(json.dumps({"q": f"Which {number}?", "options": options, "right": number % 3, "about": "c"}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    task = f"{{train: {tmp_path}/rows.jsonl, question: q, answer: right, context: about, instruction: 'Choose:'}}"
    own = recipe(f"tasks.mine={task}", "data.tasks=[mine]", "evaluation.tasks=[mine]", "data.validation_rows=5")
    written, read = prepare(own), prepare(own)
    assert len(written.questions) == 5 and list(read.questions) == list(written.questions)
    (mine,) = own.training_tasks
    assert all(example.wording == mine.wording and example.context == "c" for example in read.questions)
    assert [example.id for example in read.questions] == [row.id for row in read.validation]


def test_bad_rows_are_named_and_repeated_rows_counted(recipe, cache, tmp_path, capsys):
    rows = [{"q": f"Which {number}?", "right": "no" if number % 3 else "yes"} for number in range(20)]
    rows += [rows[2], {**rows[4], "right": "yes"}, {"q": " ", "right": "no"}, {"q": "Which?", "right": "maybe"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl", rows)
    files = f"train: {tmp_path}/rows.jsonl, test: {tmp_path}/test.jsonl"
    task = f"{{{files}, question: q, options: ['yes', 'no'], answer: right}}"
    words = (f"tasks.mine={task}", "data.tasks=[mine]", "evaluation.tasks=[mine]", "data.validation_rows=0")
    with pytest.raises(UsageError, match=in_order("rows.jsonl:23", "rows.jsonl:24", "maybe", "'yes', 'no'")):
        prepare(recipe(*words))
    skipping = recipe(*words, "data.bad_rows=skip")
    for _ in range(2):  # from the cache as well
        note_once.cache_clear()
        found = prepare(skipping)
        assert len(found.rows) == 22 and says(capsys.readouterr().out, "2 bad rows skipped", "rows.jsonl:23", ":24")
    assert len(load_examples(skipping.own_tasks["mine"], "test", source="wheel")) == 22
    assert any(says(line, "mine: 2 rows", "1 question") for line in found.remarks())
