"""Predictions on disk while they are made, so that a killed evaluation goes on where it was.

``settings.json``      what the predictions depend on; written first
``predictions.jsonl``  one line per question, appended and synced block by block
``results.json``       the numbers of all evaluations in the folder, written last and in one piece
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moslora.errors import MosloraError, UsageError
from moslora.evaluation.predictions import Prediction
from moslora.evaluation.results import RESULTS, Results, Settings, joined, load_results
from moslora.files import write_text, writing

SETTINGS = "settings.json"
PREDICTIONS = "predictions.jsonl"


class Journal:
    """The predictions of one results folder, or of memory alone.

    A question's prediction depends on its id and the settings only, never on the tasks or the limit asked
    for. So a folder made under the same settings is continued, also towards more tasks or a higher limit.

    Args:
        folder: where; made if absent. ``None`` keeps everything in memory.
        settings: of this evaluation.

    Raises:
        UsageError: the folder's predictions were made under other settings.
        MosloraError: a file of the folder cannot be understood.
    """

    def __init__(self, folder: Path | None, settings: Settings) -> None:
        self.folder = folder
        self.predictions: dict[str, Prediction] = {}
        if folder is None:
            return
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        now: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
        then = _read_settings(folder)
        if then is not None:
            _refuse_others(folder, then, now)
            now["data"] = {**then["data"], **now["data"]}
        write_text(folder / SETTINGS, json.dumps(now, indent=2, ensure_ascii=False) + "\n")
        if (folder / PREDICTIONS).exists():
            _drop_torn_line(folder / PREDICTIONS)
            self.predictions = {p.id: p for p in load_predictions(folder)}

    def append(self, predictions: Sequence[Prediction]) -> None:
        """Adds predictions; when it returns they are on the disk."""
        self.predictions.update((p.id, p) for p in predictions)
        if self.folder is None or not predictions:
            return
        path = self.folder / PREDICTIONS
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write("".join(p.to_json() + "\n" for p in predictions))
            file.flush()
            os.fsync(file.fileno())

    def finish(self, results: Results) -> None:
        """Writes ``results.json``: of all questions evaluated here, so that a look at a few takes nothing away."""
        if self.folder is not None:
            write_text(self.folder / RESULTS, self._with_earlier(self.folder, results).to_json())

    def _with_earlier(self, folder: Path, results: Results) -> Results:
        try:
            before = load_results(folder)
        except MosloraError:  # none, or damaged: it is written anew
            return results
        then, now = (
            json.loads(json.dumps({**dataclasses.asdict(one.settings), "data": None})) for one in (before, results)
        )
        answered = Counter(prediction.task for prediction in self.predictions.values())
        kept = all(answered[task] >= score.n for task, score in before.tasks.items())
        return joined(before, results) if then == now and kept else results


def load_predictions(path: Path) -> list[Prediction]:
    """Reads ``predictions.jsonl``, given itself or its folder, in the order written.

    Raises:
        UsageError: there is none.
        MosloraError: a line is not a prediction, or a question comes twice.
    """
    file = path / PREDICTIONS if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{file}: no predictions here; `moslora eval` writes them")
    predictions: dict[str, Prediction] = {}
    # A byte that is no UTF-8 becomes a character that is no part of any prediction, and is named with its line.
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], start=1):
        try:
            prediction = Prediction.from_json(line)
        except (ValueError, TypeError, AttributeError) as error:
            raise MosloraError(
                f"{file}:{number}: not a prediction ({error}); remove the folder, evaluate again"
            ) from None
        if prediction.id in predictions:
            raise MosloraError(f"{file}:{number}: {prediction.id} comes twice; did two processes write here?")
        predictions[prediction.id] = prediction
    return list(predictions.values())


def _read_settings(folder: Path) -> dict[str, Any] | None:
    if not (folder / SETTINGS).exists():
        if (folder / PREDICTIONS).exists():
            raise UsageError(f"{folder}: predictions without {SETTINGS}; give another --out or remove the folder")
        return None
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        return {**settings, "data": dict(settings["data"]), "metadata": dict(settings["metadata"])}
    except (ValueError, KeyError, TypeError):
        raise MosloraError(
            f"{folder / SETTINGS}: cannot be understood; give another --out or remove the folder"
        ) from None


def _refuse_others(folder: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Names every setting that changed. Tasks that only one side knows are no change."""
    old, new = _flat(then), _flat(now)
    changed = [
        f"{key} was {old.get(key)}, is {new.get(key)}"
        for key in {**old, **new}
        if old.get(key) != new.get(key) and not (key.startswith("data.") and (key not in old or key not in new))
    ]
    if changed:
        raise UsageError(
            f"{folder}: holds predictions made under other settings ({'; '.join(changed)});"
            " give another --out or remove the folder"
        )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the entries of ``data`` and ``metadata`` as keys of their own."""
    flat = {key: value for key, value in settings.items() if key not in ("data", "metadata")}
    for section in ("data", "metadata"):
        flat |= {f"{section}.{key}": value for key, value in settings[section].items()}
    return flat


def _drop_torn_line(file: Path) -> None:
    """Cuts what a killed process left behind the last complete line."""
    content = file.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(file, end)
