"""Training rows of a run: selected, encoded, and cached for later runs and for the other processes of this machine."""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import moslora.data
import moslora.prompts
import moslora.tasks
from moslora.console import note
from moslora.data.audit import count_overlaps
from moslora.data.encode import IGNORE_INDEX, Encoded, Encoder, TokenPair, encode_examples, encoding
from moslora.data.overlap import digest
from moslora.data.select import hold_out, limit_rows
from moslora.data.sources import data_hash, differences, identity, load_examples, load_training, local_path
from moslora.data.steps import StepPlan, label_count
from moslora.download.wheels import home
from moslora.errors import MosloraError, UsageError, counted, first_line
from moslora.files import discard, once_per_machine, replacing, sha256
from moslora.prompts.formats import make_format
from moslora.recipe import DataSection, Recipe
from moslora.tasks import BUILT_IN, INSTRUCTION, Example, Task
from moslora.version import source_files

CODE = (moslora.tasks, moslora.data, moslora.prompts)
"""Packages whose code decides the prepared rows, by which the cache is named."""

_KEPT = 16
"""Maximum number of sets of rows in the cache; the oldest are removed."""

_ROWS = "rows.arrow"
_HASH = "rows.sha256"

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "task": pa.string(),
        "input_ids": pa.large_list(pa.int32()),
        "spans": pa.large_list(pa.int32()),  # positions where labels begin and end, in turn
        "truncated": pa.bool_(),
    }
)


class RowTable(Sequence[Encoded]):
    """Encoded rows in an Arrow batch of `SCHEMA`. A row is built when a step draws it."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.batch = batch
        self.tasks: list[str] = batch["task"].to_pylist()
        ids = batch["input_ids"]
        # Not to_numpy(), which imports pandas.
        self._tokens = np.from_dlpack(ids.values)
        self._offsets = np.from_dlpack(ids.offsets)
        spans = batch["spans"]
        self._spans = np.from_dlpack(spans.values)
        self._spans_of = np.from_dlpack(spans.offsets)

    @classmethod
    def of(cls, rows: Iterable[Encoded]) -> "RowTable":
        """Build a table of ``rows`` in memory."""
        cells = []
        for row in rows:
            is_masked = np.array([IGNORE_INDEX, *row.labels, IGNORE_INDEX]) == IGNORE_INDEX
            cells.append({**vars(row), "spans": np.flatnonzero(np.diff(is_masked))})
        return cls(pa.RecordBatch.from_pylist(cells, schema=SCHEMA))

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, row: Any) -> Any:
        row = range(len(self))[row]
        if isinstance(row, range):
            return [self[i] for i in row]
        ids = self._tokens[self._offsets[row] : self._offsets[row + 1]].tolist()
        spans = self._spans[self._spans_of[row] : self._spans_of[row + 1]].tolist()
        labels = [IGNORE_INDEX] * len(ids)
        for begin, end in zip(spans[::2], spans[1::2], strict=True):
            labels[begin:end] = ids[begin:end]
        return Encoded(
            id=self.batch["id"][row].as_py(),
            task=self.tasks[row],
            input_ids=ids,
            labels=labels,
            truncated=self.batch["truncated"][row].as_py(),
        )

    def last_answer(self, row: int) -> TokenPair:
        """Ids of the tokens before a row's last labelled span, and ids of the tokens in that span."""
        begin, end = self._spans[: self._spans_of[row + 1]][-2:]
        ids = self._tokens[self._offsets[row] : self._offsets[row + 1]]
        return ids[:begin].tolist(), ids[begin:end].tolist()

    def lengths(self) -> list[int]:
        """Number of tokens of each row."""
        lengths: list[int] = np.diff(self._offsets).tolist()
        return lengths

    def token_count(self) -> int:
        """Number of tokens of all rows."""
        return len(self._tokens)

    def label_count(self) -> int:
        """Number of tokens in the loss, equal to `moslora.data.steps.label_count`."""
        return int(self._spans[1::2].sum() - np.maximum(self._spans[::2], 1).sum())

    def token_hash(self) -> str:
        """Hash of every row's length, tokens and labelled positions."""
        columns = [self._offsets, self._tokens, self._spans[::2]]
        has_one_span_at_each_end = np.array_equal(self._spans[1::2], np.diff(self._offsets))
        if not has_one_span_at_each_end:
            columns += [self._spans[1::2], self._spans_of]
        digest = hashlib.sha256()
        for column in columns:
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Replay:
    """Texts to train on beside the rows of each step.

    They have ``share`` of the label tokens of the step, those of rows and texts together, to half a token.

    The texts of a step are a pure function of the seed, the step's number and the label tokens of its rows.
    """

    texts: RowTable  # with a label for every token, each of two tokens or more
    share: float
    seed: int

    def beside(self, step: int, rows: Sequence[Encoded]) -> list[Encoded]:
        """Draw the texts that ``step`` replays beside its ``rows``; the last text is cut where ``share`` is reached."""
        left = round(label_count(rows) * self.share / (1 - self.share))
        generator = random.Random(f"{self.seed}/replay/{step}")
        drawn = []
        while left > 0:
            text = generator.choice(self.texts)
            ids = text.input_ids[: left + 1]  # the first token is predicted by nothing
            drawn.append(replace(text, input_ids=ids, labels=ids))
            left -= len(ids) - 1
        return drawn


@dataclass(frozen=True)
class TrainingData:
    """Encoded rows of a run, and facts about them."""

    rows: RowTable  # training rows
    validation: RowTable
    contents: bytes  # concatenated digests of the training rows (`moslora.data.overlap.digest`)
    sha256: str  # of the training examples
    source_sha256: str  # of all rows of the source, equal under every seed
    encoding: dict[str, str]  # hashes of tokenizer and chat template (`moslora.data.encode.encoding`)
    notes: list[str]  # for the user
    questions: Sequence[Example] = ()  # validation rows of tasks, without bare instructions
    replay: Replay | None = None

    @cached_property
    def tokens_sha256(self) -> str:
        """Hash of the tokens and masks of the training rows and the replayed texts."""
        hashes = [self.rows.token_hash()]
        if self.replay is None:
            return hashes[0]
        hashes.append(self.replay.texts.token_hash())
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def facts(self, plan: StepPlan, *, steps: int) -> dict[str, Any]:
        """Facts for the manifest; ``tasks`` counts the rows of each task in the first ``steps`` of ``plan``."""
        return {
            "sha256": self.sha256,
            "source_sha256": self.source_sha256,
            "tokens_sha256": self.tokens_sha256,
            "tasks": plan.draws(self.rows.tasks, steps=steps),
            "notes": self.notes,
        }

    def remarks(self) -> list[str]:
        """Lines for the user: the numbers of rows and tokens, the number of cut rows, and the notes."""
        rows = self.rows
        lines = [
            f"{len(rows):,} training rows of {rows.token_count() / len(rows):.1f} tokens on average, of which"
            f" {rows.label_count() / len(rows):.1f} labelled; {len(self.validation)} validation rows"
        ]
        truncated = rows.batch["truncated"].true_count
        if truncated:
            share = truncated / len(rows)
            lines.append(
                f"{truncated:,} rows ({share:.1%}) lost the start of their question or first turns to data.max_length"
            )
        if self.replay is not None:
            count = len(self.replay.texts)
            lines.append(f"{self.replay.share:.0%} of each step's label tokens are of {count:,} replayed texts")
        return lines + [f"note: {note}" for note in self.notes]


@dataclass(frozen=True)
class RunRows:
    """Description of a run's rows, from which they are loaded: tasks, their selection, and the tokenizer."""

    data: DataSection
    tasks: Sequence[Task]
    encoder: Encoder
    seed: int
    replayed: Sequence[Task] = ()

    @classmethod
    def of(cls, recipe: Recipe, encoder: Encoder) -> "RunRows":
        """Describe the rows of a recipe."""
        return cls(recipe.data, recipe.training_tasks, encoder, recipe.seed, recipe.replayed)

    def prepare(self) -> TrainingData:
        """Load the rows from the cache, or make and cache them. An unwritable cache is only noted."""
        folder = self._folder()
        with once_per_machine(folder):
            data = self._read(folder)
            if data is not None:
                return data
            data = self._from_sources()
            try:
                _write(data, folder)
            except (MosloraError, OSError) as error:
                note(f"the prepared rows could not be cached: {first_line(error)}")
        return data

    def prepare_offline(self) -> TrainingData | None:
        """Load the rows if they are in the cache or all their sources are local files; otherwise return ``None``."""
        tasks = (*self.tasks, *self.replayed)
        if all(task.is_of_files if task.own else local_path(self.data.source) for task in tasks):
            return self.prepare()
        return self._read(self._folder())

    def _from_sources(self) -> TrainingData:
        data = self.data
        format = make_format(data.format, self.encoder.tokenizer)
        rows = load_training(self.tasks, source=data.source, bad_rows=data.bad_rows)
        chosen = limit_rows(rows, rows=data.rows, seed=self.seed)
        training, validation = hold_out(chosen, validation_rows=data.held_out_of(len(chosen)), seed=self.seed)
        without_test = [task for task in self.tasks if task.own and "test" not in task.splits]
        held_out = [load_examples(task, "test", source=data.source) for task in without_test]
        unused = {
            "held out as test questions": sum(map(len, held_out)),
            "equal to validation rows, and not used": len(chosen) - len(training) - len(validation),
            "skipped (data.rows)": len(rows) - len(chosen),
        }
        notes = [*differences(data.source, data.tasks), *format.remarks(), *_repetitions(rows)]
        if any(unused.values()):
            parts = {"trained on": len(training), "for validation": len(validation), **unused}
            counts = [f"{number:,} {use}" for use, number in parts.items() if number or use not in unused]
            notes.append(f"{sum(parts.values()):,} rows: {', '.join(counts)}")
        return TrainingData(
            rows=RowTable.of(encode_examples(training, format, self.encoder, loss_on=data.loss_on)),
            validation=RowTable.of(encode_examples(validation, format, self.encoder, loss_on=data.loss_on)),
            contents=b"".join(digest(example) for example in training),
            sha256=data_hash(training),
            source_sha256=data_hash(rows),
            encoding=encoding(self.encoder, data.format),
            notes=notes,
            questions=[example for example in validation if example.task != INSTRUCTION],
            replay=self._replay(RowTable.of(self._texts())),
        )

    def _texts(self) -> Iterator[Encoded]:
        """Encode the replayed texts that have more than one token, cut to `data.max_length`."""
        for task in self.replayed:
            for example in load_examples(task, "test", source=self.data.source):
                text = self.encoder.encode_text(example.choices[0])
                if len(text.ids) > 1:
                    yield Encoded(example.id, task.name, text.ids, text.ids, text.truncated)

    def _replay(self, texts: RowTable) -> Replay | None:
        """Build the replay of ``texts``, or ``None`` if the run replays none."""
        if self.data.replay is None:
            return None
        if not texts:
            raise UsageError(f"data.replay.texts: no text of {self.data.replay.texts} has two tokens; use other texts")
        return Replay(texts, self.data.replay.share, self.seed)

    def _read(self, folder: Path) -> TrainingData | None:
        """Read the rows in ``folder``; ``None`` if there are none or they are damaged.

        Rows are also made again if bad rows may be skipped, as the user is told of these each time.
        """
        if self.data.bad_rows == "skip":
            return None
        try:
            contents = (folder / _ROWS).read_bytes()  # not mapped, as another machine may replace or remove the file
            if (folder / _HASH).read_text(encoding="utf-8") != hashlib.sha256(contents).hexdigest():
                return None
            file = pa.ipc.open_file(contents)
            rows = RowTable(file.get_batch(0))
            validation = RowTable(file.get_batch(1))
            texts = RowTable(file.get_batch(2))
            metadata = file.schema.metadata
        except (OSError, UnicodeDecodeError):
            return None
        facts = json.loads(metadata[b"facts"])
        questions = _from_json(metadata[b"questions"], self.tasks)
        replay = self._replay(texts)
        return TrainingData(rows, validation, metadata[b"contents"], questions=questions, replay=replay, **facts)

    def _folder(self) -> Path:
        """Folder of the rows in the cache, named by a hash of everything that they depend on."""
        depends_on = {
            "data": self.data.model_dump(mode="json"),
            "seed": self.seed,
            "encoding": encoding(self.encoder, self.data.format),
            "tasks": [task.name for task in self.tasks],
            "source": identity((*self.tasks, *self.replayed), "train", source=self.data.source),
            "clusters": [task.cluster for task in self.tasks],
            "packages": [version(package) for package in ("pyarrow", "tokenizers")],
            "code": [sha256(path) for path in source_files(CODE)],
        }
        return home() / "rows" / hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:32]


def _write(data: TrainingData, folder: Path) -> None:
    """Write the rows into ``folder``, and remove the oldest sets of rows beside it."""
    facts = {name: getattr(data, name) for name in ("sha256", "source_sha256", "encoding", "notes")}
    without_wording = [vars(replace(example, wording=None)) for example in data.questions]  # the task has it
    questions = json.dumps(without_wording, ensure_ascii=False)
    metadata = {"facts": json.dumps(facts), "contents": data.contents, "questions": questions}
    with replacing(folder) as new:
        new.mkdir()
        with pa.ipc.new_file(str(new / _ROWS), SCHEMA.with_metadata(metadata)) as file:
            file.write_batch(data.rows.batch)
            file.write_batch(data.validation.batch)
            file.write_batch((data.replay.texts if data.replay else RowTable.of([])).batch)
        (new / _HASH).write_text(sha256(new / _ROWS), encoding="utf-8")
    with suppress(OSError):  # another process may remove them too
        oldest_first = sorted(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in oldest_first[:-_KEPT]:
            discard(old)


def _repetitions(rows: Sequence[Example]) -> Iterator[str]:
    """Count repeated and contradictory rows of the user's own tasks, a line per task."""
    tasks = {row.task for row in rows}.difference(BUILT_IN)
    own = {task: [row for row in rows if row.task == task] for task in sorted(tasks)}
    for task, overlap in count_overlaps(own, dict.fromkeys(own, ())).items():
        if overlap.repeats:
            repeats = f"{counted(overlap.repeats, 'row')} with the question of an earlier one"
            yield f"{task}: {repeats}, {counted(overlap.conflicts, 'question')} with several answers"


def _from_json(text: str | bytes, tasks: Sequence[Task]) -> list[Example]:
    """Read examples of these ``tasks`` as `_write` wrote them."""
    wordings = {task.name: task.wording for task in tasks if task.own}
    examples = []
    for row in json.loads(text):
        completed = {"choices": tuple(row["choices"]), "wording": wordings.get(row["task"])}
        examples.append(Example(**row | completed))
    return examples
