"""The eight commonsense sets as one table, and the one shape in which a question travels.

The sets are those of LLM-Adapters (arXiv 2304.01933), on which MoSLoRA (arXiv 2406.11909, section 4.1)
reports. Every other module asks this table; none knows a set's size, place or splits by itself.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from moslora.choices import Split
from moslora.errors import UsageError

INSTRUCTION = "instruction"
"""Task name of a local row that belongs to none of the eight sets: a bare instruction with its response."""


@dataclass(frozen=True)
class Example:
    """One multiple-choice question, whatever source it comes from.

    Attributes:
        id: ``<task>/<split>/<row>``; the row is the position in the source (HellaSwag's own ``ind`` repeats).
        task: a name of `TASKS`, or `INSTRUCTION`.
        question: BoolQ question without "?", PIQA goal, SIQA question, HellaSwag context, WinoGrande
            sentence with "_", ARC and OpenBookQA question; the whole instruction of an instruction row.
        choices: the text of the options; ("true", "false") for BoolQ; whole responses for instruction rows.
        gold: position of the right choice.
        context: BoolQ passage, SIQA context or HellaSwag activity label, where the source tells it apart.
        meta: what single sources add and a single format reads (HellaSwag's ``ctx_a`` and ``ctx_b``).
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
    """Where a set lies on the Hugging Face hub, as parquet (dataset scripts no longer load).

    Attributes:
        path: dataset id.
        revision: pinned commit.
        config: subset, None for the only one.
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
        name: ours.
        llm_adapters_name: folder name in LLM-Adapters' ``dataset/``.
        hub: place on the hub.
        splits: our split -> hub split. Five of the eight sets have no public test labels, so LLM-Adapters
            tests on their validation split; only the other three have a dev split to spare.
        rows: rows per split of ours (WinoGrande: of its ``xl`` training set).
        blob_ids: git blob ids of LLM-Adapters' ``dataset/<llm_adapters_name>/{train,test}.json``: the
            identity of their text without carrying it.
    """

    name: str
    llm_adapters_name: str
    hub: Hub
    splits: Mapping[Split, str] = field(hash=False)
    rows: Mapping[Split, int] = field(hash=False)
    blob_ids: Mapping[Split, str] = field(hash=False)


_TESTED_ON_VALIDATION: Mapping[Split, str] = {"train": "train", "test": "validation"}
_WITH_DEV: Mapping[Split, str] = {"train": "train", "test": "test", "dev": "validation"}
_ARC = "allenai/ai2_arc"
_ARC_REVISION = "210d026faf9955653af8916fad021475a3f00453"

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="boolq",
            llm_adapters_name="boolq",
            hub=Hub("google/boolq", "35b264d03638db9f4ce671b711558bf7ff0f80d5"),
            splits=_TESTED_ON_VALIDATION,
            rows={"train": 9_427, "test": 3_270},
            blob_ids={
                "train": "87a7beee26b49f81c450641ef2ff84f55611321f",
                "test": "6d7edb0a8e8a6566b546ccf0d98d24e48db3fdf3",
            },
        ),
        Task(
            name="piqa",
            llm_adapters_name="piqa",
            # The parquet copy that lm-eval reads; the original, ybisk/piqa, is a script.
            hub=Hub("baber/piqa", "142f6d7367fd9877f0fb3b5734ea6a545f54cdd1"),
            splits=_TESTED_ON_VALIDATION,
            rows={"train": 16_113, "test": 1_838},
            blob_ids={
                "train": "44326ba946f8bd645bfa7a189e619d29b5bc17e5",
                "test": "f7a1c260692ef31796d4763cb6334f316a754fed",
            },
        ),
        Task(
            name="siqa",
            llm_adapters_name="social_i_qa",
            hub=Hub(
                "allenai/social_i_qa",
                "537a2ec8ec565adc0b70b70752893e59e024df26",  # tip of refs/convert/parquet; main is a script
                data_files={
                    "train": "default/train/0000.parquet",
                    "validation": "default/validation/0000.parquet",
                },
            ),
            splits=_TESTED_ON_VALIDATION,
            rows={"train": 33_410, "test": 1_954},
            blob_ids={
                "train": "bd524129d80efdfabc8476bbedc4f41b400cfda0",
                "test": "eadf221799ca394367b144c0f86ee0436db409d2",
            },
        ),
        Task(
            name="hellaswag",
            llm_adapters_name="hellaswag",
            hub=Hub("Rowan/hellaswag", "218ec52e09a7e7462a5400043bb9a69a41d06b76"),
            splits=_TESTED_ON_VALIDATION,
            rows={"train": 39_905, "test": 10_042},
            blob_ids={
                "train": "ca68dc85fc2a2f73c9b1b8b0823cc41a8f669718",
                "test": "183c4920415f83ba4b793c4873a33e7e10bd1be5",
            },
        ),
        Task(
            name="winogrande",
            llm_adapters_name="winogrande",
            hub=Hub("allenai/winogrande", "01e74176c63542e6b0bcb004dcdea22d94fb67b5", config="winogrande_xl"),
            splits=_TESTED_ON_VALIDATION,
            rows={"train": 40_398, "test": 1_267},
            blob_ids={
                "train": "0b56375ac6b4464fa97abfb72812f15c772ba305",
                "test": "21257263593dd4d00546e1918c88ca0f357b08ad",
            },
        ),
        Task(
            name="arc_easy",
            llm_adapters_name="ARC-Easy",
            hub=Hub(_ARC, _ARC_REVISION, config="ARC-Easy"),
            splits=_WITH_DEV,
            rows={"train": 2_251, "test": 2_376, "dev": 570},
            blob_ids={
                "train": "488a8e5e5bbbd7a630ebbfe07a1fd91b7d9d8c9b",
                "test": "6c0d30aaedaeca148df6bcd7aaacf7c31e6ad70f",
            },
        ),
        Task(
            name="arc_challenge",
            llm_adapters_name="ARC-Challenge",
            hub=Hub(_ARC, _ARC_REVISION, config="ARC-Challenge"),
            splits=_WITH_DEV,
            rows={"train": 1_119, "test": 1_172, "dev": 299},
            blob_ids={
                "train": "d7e080b04bff9fd16dd85455fb04481807a088d8",
                "test": "9540685439144200b5a7e48dab9ca4655be2af09",
            },
        ),
        Task(
            name="obqa",
            llm_adapters_name="openbookqa",
            hub=Hub("allenai/openbookqa", "388097ea7776314e93a529163e0fea805b8a6454", config="main"),
            splits=_WITH_DEV,
            rows={"train": 4_957, "test": 500, "dev": 500},
            blob_ids={
                "train": "75bcd5eb9f5e77a3796c05e6bb38f169d19563fc",
                "test": "a6e69676104bcb77237388c3b5a3f0dcbb81d1e2",
            },
        ),
    )
}

COMMONSENSE: tuple[str, ...] = tuple(TASKS)
"""The group ``commonsense``, in the order of LLM-Adapters' tables."""


def task_number(name: str) -> int:
    """Place of a task among the eight, from 0; behind them all for a row that belongs to none."""
    return COMMONSENSE.index(name) if name in TASKS else len(COMMONSENSE)


def resolve_tasks(names: str | Sequence[str]) -> tuple[str, ...]:
    """The task names behind ``"commonsense"``, ``"boolq,piqa"`` or a list of such; each once, order kept.

    Raises:
        UsageError: for unknown names, one line each with the closest known name, or for no name at all.
    """
    parts = names.split(",") if isinstance(names, str) else [p for name in names for p in name.split(",")]
    given = [part.strip() for part in parts if part.strip()]
    known = (*COMMONSENSE, "commonsense")
    faults = []
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name.lower(), known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            faults.append(f"unknown task {name!r}: {hint}known: {', '.join(known)}")
    if faults:
        raise UsageError("\n".join(faults))
    if not given:
        raise UsageError(f"no task is named: give some of {', '.join(known)}")
    resolved = [task for name in given for task in (COMMONSENSE if name == "commonsense" else (name,))]
    return tuple(dict.fromkeys(resolved))
