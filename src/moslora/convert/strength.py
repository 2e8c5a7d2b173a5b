"""An adapter at strength C, which changes the base C times as much: W + C · (W' − W) (WiSE-FT, arXiv 2109.01903).

ΔW = s · B · M · A is linear in B and in M, and so is the output of a gate. C is multiplied into
whichever of B and M starts at zero, as a training that continues the adapter may freeze the other one, or pull it
towards its start.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from moslora.errors import UsageError
from moslora.files import new_folder
from moslora.runs.adapted_model import save_adapter
from moslora.runs.adapter_folder import AdapterFolder, open_adapter
from moslora.runs.best import TRAINED_STEPS
from moslora.runs.manifest import WEIGHTS
from moslora.runs.run import Run
from moslora.runs.strength import MAX_STRENGTH, Strength
from moslora.version import __version__

OF_ITS_FOLDER = ("format", "moslora", "sha256", "scaler")
"""Keys of a manifest that describe its own folder or optimizer state, and are not copied."""

OF_ITS_RUN = ("results", "experiment")
"""Keys of ``run.json`` that describe the run's own answers and experiment, and are not copied."""


def write_at_strength(adapter: Path, strength: float, out: Path, *, trust_remote_code: bool = False) -> Strength:
    """Write the adapter folder ``adapter`` at ``strength`` as a run in the new folder ``out``.

    The recipe, the facts of the training and the digests of the training rows are copied. The base is not loaded.

    Raises:
        UsageError: the strength is out of range, ``out`` is used, or the change is not linear in the adapter's weights.
    """
    if not 0 < strength <= MAX_STRENGTH:
        raise UsageError(f"strength {strength:g}: must be above 0 and at most {MAX_STRENGTH:g}")
    folder = open_adapter(adapter, trust_remote_code=trust_remote_code)
    weights = at_strength(folder, folder.weights(), strength)
    run = folder.run
    applied = folder.strength or Strength(1.0, run.name, folder.manifest["sha256"][WEIGHTS])
    applied = Strength(applied.value * strength, applied.run, applied.adapter)
    of_adapter = {key: fact for key, fact in folder.manifest.items() if key not in OF_ITS_FOLDER}
    of_run = {key: fact for key, fact in run.facts.items() if key not in OF_ITS_RUN and not key.endswith("_id")}
    of_run.setdefault("versions", {"moslora": __version__})
    if "step" in folder.manifest and TRAINED_STEPS not in folder.manifest:
        of_run[TRAINED_STEPS] = folder.manifest["step"]
    with new_folder(out) as scratch:
        new = Run(scratch)
        new.begin(folder.recipe, of_run | applied.facts)
        save_adapter(new.result, {WEIGHTS: weights}, folder.recipe, facts=of_adapter | applied.facts)
        if run.contents.is_file():
            shutil.copy(run.contents, new.contents)
    return applied


def at_strength(folder: AdapterFolder, weights: Mapping[str, Tensor], strength: float) -> dict[str, Tensor]:
    """Scale ``weights`` of the adapter in ``folder`` so that it changes the base ``strength`` times as much.

    Raises:
        UsageError: its change of the base is not linear in any of its weights.
    """
    linear = folder.recipe.adapter.linear_weights
    if not linear:
        raise UsageError(
            f"{folder.path}: {folder.recipe.adapter.summary()}: only a low-rank update can be scaled, and this method"
            " rescales or rotates whole weights; use LoRA, with or without a mixer, but without DoRA"
        )
    scaled = {}
    for key, weight in weights.items():
        scaled[key] = (strength * weight.double()).to(weight) if key.endswith(linear) else weight
    return scaled
