"""What the lines of errors have in common."""

import pytest

from moslora.errors import SHOWN_FAULTS, UsageError, capped, needing


@pytest.mark.parametrize(
    ("count", "last"),
    [
        (1, "fault 0"),
        (SHOWN_FAULTS, f"fault {SHOWN_FAULTS - 1}"),
        (SHOWN_FAULTS + 1, "… and 1 more"),
        (SHOWN_FAULTS + 7, "… and 7 more"),
    ],
)
def test_faults_are_capped_with_a_count(count, last):
    lines = capped([f"fault {i}" for i in range(count)]).split("\n")
    assert lines[-1] == last and len(lines) == min(count, SHOWN_FAULTS + 1)


@pytest.mark.parametrize(
    ("error", "said", "command"),
    [
        (ModuleNotFoundError("No module named 'peft'", name="peft"), "x: peft is not installed; ", "install peft"),
        (
            ImportError("cannot import name 'a' from 'b'", name="b"),
            "x: peft cannot be imported (cannot import name 'a'",
            "install --force-reinstall peft",
        ),
    ],
)
def test_missing_and_broken_packages_have_different_messages(error, said, command):
    with pytest.raises(UsageError) as told, needing("peft", "x"):
        raise error
    assert str(told.value).startswith(said) and str(told.value).endswith(f"-m pip {command}")
