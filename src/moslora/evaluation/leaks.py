"""Test questions that are also training rows: leaks."""

from collections.abc import Mapping, Sequence

from moslora.console import note
from moslora.data.overlap import DIGEST_BYTES, digest
from moslora.runs.adapter_folder import AdapterFolder
from moslora.runs.header import Leaks
from moslora.tasks import Example


def find_leaks(folder: AdapterFolder | None, questions: Mapping[str, Sequence[Example]]) -> dict[str, Leaks]:
    """The leaks among all test ``questions``, by task; empty without a run, or if it has no record of its training
    rows. Texts are no questions, and have none."""
    if folder is None:
        return {}
    file = folder.run.contents  # `digest` of each row
    contents = file.read_bytes() if file.is_file() else b""
    if len(contents) != DIGEST_BYTES * folder.manifest.get("trained_rows", -1):
        note("unknown whether test questions were in the training rows: this adapter has no record of them")
        return {}
    digests = {contents[start : start + DIGEST_BYTES] for start in range(0, len(contents), DIGEST_BYTES)}
    before = folder.predecessor
    if before is not None:
        note(f"unknown whether test questions were in the training rows of {before.run}, which this run continued")
    compared_with = f"the {folder.manifest['trained_rows']:,} rows this run was trained on"
    found = {}
    for task, rows in questions.items():
        if not any(row.is_text for row in rows):
            ids = sorted(row.id for row in rows if digest(row) in digests)
            found[task] = Leaks(compared_with, tuple(ids))
    return found
