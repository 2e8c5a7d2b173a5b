"""Refuses to compare what cannot be compared."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moslora.errors import UsageError, capped
from moslora.study.outcomes import Outcomes
from moslora.study.pairs import Arm


def refuse_mixed(arms: Sequence[Arm], *, allowed: Sequence[str] = ()) -> None:
    """Refuses runs that were asked differently, and those that differ in base, rows or steps.

    Args:
        arms: all that are compared.
        allowed: fields of base, rows or steps that may differ.

    Raises:
        UsageError: one line for each field, with both values.
    """
    faults: dict[str, str] = {}
    asked: dict[str, tuple[Any, Path]] = {}
    made: dict[str, tuple[Any, Path]] = {}
    for arm in arms:
        for seed, run in arm.runs.items():
            path = arm.paths[seed]
            for seen, fields, fix in (
                (asked, _asked(run), "evaluate both in the same way"),
                (made, _made(run), "if that is meant, add --allow {field}"),
            ):
                for field, value in fields.items():
                    then, where = seen.setdefault(field, (value, path))
                    if value != then and field not in allowed:
                        line = f"{field}: {then} in {where}, {value} in {path}; {fix.format(field=field)}"
                        faults.setdefault(field, line)
    if unknown := [field for field in allowed if field not in made]:
        faults[""] = f"--allow {', '.join(unknown)}: must be among {', '.join(made)}"
    if faults:
        raise UsageError(capped(list(faults.values())))


def _asked(run: Outcomes) -> dict[str, str]:
    """Field -> value, of protocol, template and questions."""
    settings = run.settings
    fields = {name: str(getattr(settings, name)) for name in ("protocol", "format", "beams", "max_length")}
    fields["tasks"] = ", ".join(sorted(run.tasks))
    for task, answers in run.tasks.items():
        digest = hashlib.sha256(repr((answers.ids, answers.gold, settings.data.get(task))).encode()).hexdigest()
        fields[f"questions of {task}"] = f"{len(answers.ids):,} ({digest[:8]})"
    return fields


def _made(run: Outcomes) -> dict[str, str]:
    """Field -> value, of base, rows and steps; the rows are compared under each seed, which chooses them."""
    metadata = run.settings.metadata
    fields = {
        "base": f"{metadata.get('base')} ({metadata.get('fingerprint')})",
        "dtype": run.settings.dtype,
        "quantization": str(metadata.get("quantization")),
    }
    if run.recipe:
        fields |= {f"data.{key}": str(value) for key, value in run.recipe["data"].items() if key != "source"}
        fields["training.global_batch_size"] = str(run.recipe["training"].get("global_batch_size"))
        fields |= {key: str(run.facts.get(key)) for key in ("trained_rows", "steps")}
        fields[f"rows.{run.seed}"] = str(run.facts.get("data", {}).get("sha256"))[:8]
    return fields
