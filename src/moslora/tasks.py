"""The eight commonsense sets as one table, and `Example`, the form of a question.

The sets are those of LLM-Adapters (arXiv 2304.01933), on which MoSLoRA (arXiv 2406.11909, section 4.1) reports.
A set's size, location and splits are defined here and nowhere else.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from moslora.choices import Split
from moslora.errors import UsageError

INSTRUCTION = "instruction"
"""Task name of a local row that is not from the eight sets: a bare instruction with its response."""


@dataclass(frozen=True)
class Example:
    """One multiple-choice question from any source.

    Attributes:
        id: ``<task>/<split>/<row>``; the row is the position in the source (HellaSwag's own ``ind`` repeats).
        task: a name of `TASKS`, or `INSTRUCTION`.
        question: BoolQ question without "?", PIQA goal, SIQA question, HellaSwag context, WinoGrande
            sentence with "_", ARC and OpenBookQA question; the whole instruction of an instruction row.
        choices: the text of the options; ("true", "false") for BoolQ; whole responses for instruction rows.
        gold: position of the right choice.
        context: BoolQ passage, SIQA context or HellaSwag activity label, where the source has it as a field.
        meta: further fields of one source that one format reads (HellaSwag's ``ctx_a`` and ``ctx_b``).
    """

    id: str
    task: str
    question: str
    choices: tuple[str, ...]
    gold: int
    context: str | None = None
    meta: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Hub:
    """A set on the Hugging Face hub, as parquet (dataset scripts no longer load).

    Attributes:
        path: dataset id.
        revision: pinned commit.
        config: subset; None if there is only one.
        data_files: hub split -> file, where the commit is a parquet conversion without a dataset card.
    """

    path: str
    revision: str
    config: str | None = None
    data_files: Mapping[str, str] | None = field(default=None, hash=False)


@dataclass(frozen=True)
class Task:
    """One set.

    Attributes:
        llm_adapters_name: folder name in LLM-Adapters' ``dataset/``.
        rows: rows per split of ours (WinoGrande: of its ``xl`` training set).
    """

    name: str
    llm_adapters_name: str
    hub: Hub
    rows: Mapping[Split, int] = field(hash=False)

    @property
    def splits(self) -> Mapping[Split, str]:
        """Our split -> hub split. Five sets have no public test labels: as in LLM-Adapters, their validation split is
        the test split. Only the other three have a dev split."""
        if "dev" in self.rows:
            return {"train": "train", "test": "test", "dev": "validation"}
        return {"train": "train", "test": "validation"}


_ARC = "allenai/ai2_arc"
_ARC_REVISION = "210d026faf9955653af8916fad021475a3f00453"

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="boolq",
            llm_adapters_name="boolq",
            hub=Hub("google/boolq", "35b264d03638db9f4ce671b711558bf7ff0f80d5"),
            rows={"train": 9_427, "test": 3_270},
        ),
        Task(
            name="piqa",
            llm_adapters_name="piqa",
            # The parquet copy that lm-eval reads; the original, ybisk/piqa, is a script.
            hub=Hub("baber/piqa", "142f6d7367fd9877f0fb3b5734ea6a545f54cdd1"),
            rows={"train": 16_113, "test": 1_838},
        ),
        Task(
            name="siqa",
            llm_adapters_name="social_i_qa",
            hub=Hub(
                "allenai/social_i_qa",
                "537a2ec8ec565adc0b70b70752893e59e024df26",  # tip of refs/convert/parquet; main is a script
                data_files={"train": "default/train/0000.parquet", "validation": "default/validation/0000.parquet"},
            ),
            rows={"train": 33_410, "test": 1_954},
        ),
        Task(
            name="hellaswag",
            llm_adapters_name="hellaswag",
            hub=Hub("Rowan/hellaswag", "218ec52e09a7e7462a5400043bb9a69a41d06b76"),
            rows={"train": 39_905, "test": 10_042},
        ),
        Task(
            name="winogrande",
            llm_adapters_name="winogrande",
            hub=Hub("allenai/winogrande", "01e74176c63542e6b0bcb004dcdea22d94fb67b5", config="winogrande_xl"),
            rows={"train": 40_398, "test": 1_267},
        ),
        Task(
            name="arc_easy",
            llm_adapters_name="ARC-Easy",
            hub=Hub(_ARC, _ARC_REVISION, config="ARC-Easy"),
            rows={"train": 2_251, "test": 2_376, "dev": 570},
        ),
        Task(
            name="arc_challenge",
            llm_adapters_name="ARC-Challenge",
            hub=Hub(_ARC, _ARC_REVISION, config="ARC-Challenge"),
            rows={"train": 1_119, "test": 1_172, "dev": 299},
        ),
        Task(
            name="obqa",
            llm_adapters_name="openbookqa",
            hub=Hub("allenai/openbookqa", "388097ea7776314e93a529163e0fea805b8a6454", config="main"),
            rows={"train": 4_957, "test": 500, "dev": 500},
        ),
    )
}

COMMONSENSE: tuple[str, ...] = tuple(TASKS)
"""The group ``commonsense``, in the order of LLM-Adapters' tables."""


def task_number(name: str) -> int:
    """Index of a task among the eight; 8 for a row of none of them."""
    return COMMONSENSE.index(name) if name in TASKS else len(COMMONSENSE)


def resolve_tasks(names: str | Sequence[str]) -> tuple[str, ...]:
    """The task names in ``"commonsense"``, ``"boolq,piqa"`` or a list of these; each once, order kept.

    Raises:
        UsageError: unknown names, one line each with the closest known name; or no name at all.
    """
    parts = ",".join([names] if isinstance(names, str) else names).split(",")
    given = [part.strip() for part in parts if part.strip()]
    known = (*COMMONSENSE, "commonsense")
    faults = []
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name.lower(), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"must be one of {', '.join(known)}"
            faults.append(f"unknown task {name!r}; {hint}")
    if not given:
        faults.append(f"no task given; choose from {', '.join(known)}")
    if faults:
        raise UsageError("\n".join(faults))
    resolved = [task for name in given for task in (COMMONSENSE if name == "commonsense" else (name,))]
    return tuple(dict.fromkeys(resolved))
