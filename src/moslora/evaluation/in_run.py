"""An evaluation in the folder of a run: its name says which weights were scored, and the run is told the scores."""

from pathlib import Path

from moslora.console import note
from moslora.errors import UsageError, first_line
from moslora.evaluation.results import read_results
from moslora.runs.adapter_folder import AdapterFolder
from moslora.runs.run import BESIDE, EVALUATIONS, Run
from moslora.runs.trackers import KINDS, record


def is_in_run(folder: Path, run: Run) -> bool:
    """Whether ``folder`` is one of the run's ``eval/``, however both are written."""
    return folder.resolve().parent == (run.path / EVALUATIONS).resolve()


def refuse_name_of_other_weights(folder: Path, run: Run | None, *, suffix: str) -> None:
    """Refuses a name that in the run's ``eval/`` stands for other weights than those of this ``suffix``: the base's,
    those of another checkpoint, or a server's."""
    its_own = "".join(BESIDE.findall(folder.name))
    if run is not None and is_in_run(folder, run) and suffix != its_own:
        raise UsageError(
            f"--out {folder}: in a run's eval/ this name stands for other weights; let it end in {suffix!r}, not in"
            f" {its_own!r}"
        )


def tell_run(trained: AdapterFolder, folder: Path, *, base: bool) -> None:
    """Adds the scores in ``folder``, of an adapter or of its ``base``, to the run's card, and to the records that its
    training began in trackers."""
    run = trained.run
    summary = read_results(folder).summary()
    run.add_facts(results={folder.name: summary})
    scores = {name: value for name, value in summary.items() if name in ("macro", "majority_class")}
    scores |= summary["tasks"] | summary.get("nats_per_byte", {})
    scores = {f"eval/{folder.name}/{name}": score for name, score in scores.items()}
    for name in trained.recipe.tracking.to:
        try:
            if f"{name}_id" in run.facts:
                step = 0 if base else trained.manifest["step"]
                with record(name, trained.recipe, run) as (tracker, _):
                    KINDS[name].score(tracker, scores, step)
        except Exception as error:  # of whatever kind: the scores are on the disk
            note(f"the scores could not be written into {name}: {first_line(error)}")
