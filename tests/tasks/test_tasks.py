"""The table of the eight sets, and the names that lead to it."""

import pytest

from moslora.errors import UsageError
from moslora.recipe import resolve_tasks
from moslora.tasks import COMMONSENSE, TASKS


def test_the_sets_add_up_to_the_published_mixture():
    """commonsense_170k is the eight training sets with WinoGrande's six files; ours has its xl alone."""
    rows = {name: task.rows["train"] for name, task in TASKS.items()}
    assert sum(rows.values()) == 147_580
    all_winogrande = 160 + 640 + 2_558 + 10_234 + 40_398 + 9_248
    assert sum(rows.values()) - rows["winogrande"] + all_winogrande == 170_420
    assert sum(task.rows["test"] for task in TASKS.values()) == 22_419


@pytest.mark.parametrize(
    ("names", "resolved"),
    [
        ("commonsense", COMMONSENSE),
        ("piqa", ("piqa",)),
        ("piqa, boolq,piqa", ("piqa", "boolq")),
        (["obqa", "commonsense"], ("obqa", *(task for task in COMMONSENSE if task != "obqa"))),
    ],
)
def test_resolve(names, resolved):
    assert tuple(task.name for task in resolve_tasks(names)) == resolved


def test_unknown_names_come_all_at_once_with_the_closest_known_one():
    with pytest.raises(UsageError) as error:
        resolve_tasks("arc_esy,boolq,Hellaswag,xyz")
    first, second, third = str(error.value).splitlines()
    assert "'arc_esy'" in first and "did you mean arc_easy?" in first
    assert "did you mean hellaswag?" in second
    assert "'xyz'" in third and "did you mean" not in third and "commonsense" in third


@pytest.mark.parametrize("names", ["", " , ", []])
def test_no_name_is_an_error(names):
    with pytest.raises(UsageError, match="task"):
        resolve_tasks(names)
