"""What the lines of errors have in common."""

import pytest

from moslora.errors import SHOWN_FAULTS, capped


@pytest.mark.parametrize(
    ("count", "last"),
    [
        (1, "fault 0"),
        (SHOWN_FAULTS, f"fault {SHOWN_FAULTS - 1}"),
        (SHOWN_FAULTS + 1, "… and 1 more"),
        (SHOWN_FAULTS + 7, "… and 7 more"),
    ],
)
def test_many_faults_are_so_many_lines_and_a_count(count: int, last: str) -> None:
    lines = capped([f"fault {i}" for i in range(count)]).split("\n")
    assert lines[-1] == last and len(lines) == min(count, SHOWN_FAULTS + 1)
