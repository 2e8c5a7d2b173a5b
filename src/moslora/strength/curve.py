"""A run's numbers at every strength C, and the strength that it is recommended to apply.

    share(C) = (y(C) − y(0)) / (y(1) − y(0))      y the mean over rows, y(0) the base's

Intervals are percentiles over bootstrap samples of the rows, 95 %, in which a row has all its numbers: they are paired.
Importing this does not load torch.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moslora.files import write_text
from moslora.runs.manifest import WEIGHTS, read_manifest
from moslora.runs.run import Run

Floats = NDArray[np.float64]

STRENGTHS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
"""The strengths that are measured, the base's first."""

BASE = STRENGTHS.index(0.0)
WHOLE = STRENGTHS.index(1.0)

SAMPLES = 2_000
"""Bootstrap samples of the rows."""

KEPT = 0.97
"""Share of the fall in the held-out rows' loss that the recommended strength keeps.

The loss hardly differs between strengths 0.7 and 1, where most is forgotten: its minimum would be a poor guide.
"""

FEWEST_ROWS = 30
"""Fewest rows by which a strength is recommended. Samples of fewer rows choose strengths far apart."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Measure:
    """One number of each row at every strength, such as its loss.

    Attributes:
        title: its column in a table.
        values: of each row at each strength, shape ``(len(STRENGTHS), n)``.
        weights: by which the sums of values are divided, shape ``(n,)``: a row's label tokens for a loss, else 1.
        lower_is_better: a fall is a gain.
    """

    title: str
    values: Floats
    weights: Floats
    lower_is_better: bool = False

    @property
    def means(self) -> Floats:
        """y at each strength."""
        found: Floats = self.values.sum(axis=1) / self.weights.sum()
        return found

    @cached_property
    def sampled_means(self) -> Floats:
        """y of each bootstrap sample at each strength, shape ``(SAMPLES, len(STRENGTHS))``."""
        n = len(self.weights)
        draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=SAMPLES).astype(float)
        found: Floats = draws @ self.values.T / (draws @ self.weights)[:, None]
        return found

    def change(self, place: int) -> tuple[float, Range]:
        """y(C) − y(0) at the strength in this place, and its interval."""
        return float(self.means[place] - self.means[BASE]), _range(_change(self.sampled_means, place))

    @property
    def has_changed(self) -> bool:
        """Whether the run, at strength 1, differs from its base by more than the choice of the rows explains."""
        low, high = self.change(WHOLE)[1]
        return low > 0 or high < 0

    def share(self, place: int) -> tuple[float, Range]:
        """share(C) at the strength in this place, and its interval over the samples that the run changes at all."""
        whole = _change(self.sampled_means, WHOLE)
        changed = whole != 0
        of_samples = _change(self.sampled_means, place)[changed] / whole[changed]
        return self.change(place)[0] / self.change(WHOLE)[0], _range(of_samples)


def _change(means: Floats, place: int) -> Floats:
    found: Floats = means[:, place] - means[:, BASE]
    return found


def _range(samples: Floats) -> Range:
    low, high = np.percentile(samples, (2.5, 97.5))
    return float(low), float(high)


@dataclass(frozen=True)
class Curve:
    """The measures of an adapter at every strength.

    Attributes:
        adapter: sha256 of its weights.
        loss: of the held-out rows, nats per label token, which decides.
        others: what is shown beside it.
    """

    adapter: str
    loss: Measure
    others: tuple[Measure, ...]

    @property
    def heading(self) -> str:
        """The line above the table."""
        return f"{self.rows:,} held-out rows; in percent of the change at strength 1, with 95 % intervals over rows"

    @property
    def rows(self) -> int:
        """Number of held-out rows."""
        return len(self.loss.weights)

    @property
    def recommended(self) -> float | None:
        """Lowest strength that keeps `KEPT` of the loss's largest fall up to strength 1; ``None`` with too few rows, or
        if the loss is lowest without the adapter."""
        place = int(_recommended(self.loss.means))
        if self.rows < FEWEST_ROWS or place == BASE:
            return None
        return STRENGTHS[place]

    @property
    def chosen_by_samples(self) -> Range:
        """Range of the strengths that bootstrap samples of the rows recommend."""
        places = _recommended(self.loss.sampled_means)
        low, high = np.percentile(np.array(STRENGTHS)[places], (2.5, 97.5), method="nearest")
        return float(low), float(high)

    @property
    def falls_beyond(self) -> bool:
        """Whether the loss is lowest above strength 1."""
        return int(self.loss.means.argmin()) > WHOLE

    def table(self) -> list[list[str]]:
        """Header first, a row for each strength: each mean, and where there is a change, its share and interval."""
        measures = (self.loss, *self.others)
        rows = [["strength", *(measure.title for measure in measures)]]
        for place, strength in enumerate(STRENGTHS):
            rows.append([f"{strength:g}", *(_cell(measure, place) for measure in measures)])
        return rows

    def conclusion(self) -> str:
        """What is recommended, how sure that is, and what it keeps; or why nothing is."""
        if self.recommended is None:
            if self.rows < FEWEST_ROWS:
                return f"no strength is recommended by {self.rows} rows; it takes {FEWEST_ROWS} or more"
            return "no strength is recommended: the loss of these rows is lowest without the adapter, that of the base"
        low, high = self.chosen_by_samples
        said = (
            f"recommended strength {self.recommended:g}: the lowest that keeps {100 * KEPT:.0f} % of the fall in the"
            f" loss of {self.rows:,} rows (samples of the rows choose {low:g} to {high:g})"
        )
        kept = [
            f"{_share(measure, STRENGTHS.index(self.recommended))} in {measure.title}"
            for measure in self.others
            if measure.has_changed
        ]
        if kept:
            said += f"; of what the run changes it keeps {', '.join(kept)}"
        if self.falls_beyond:
            said += ". Above 1 the loss falls further: more steps or a higher learning rate would fit better"
        return said


def _recommended(mean_losses: Floats) -> NDArray[np.intp]:
    """Places of the recommended strengths by mean losses, shape ``(…, len(STRENGTHS))``; the base's if none falls."""
    falls = mean_losses[..., [BASE]] - mean_losses[..., : WHOLE + 1]
    found: NDArray[np.intp] = (falls >= KEPT * falls.max(axis=-1, keepdims=True)).argmax(axis=-1)
    return found


def write_curve(run: Run, curve: Curve) -> None:
    """Writes ``curve`` into the folder of ``run``, whose result it is of."""
    write_text(run.curve, json.dumps({"strengths": STRENGTHS, **asdict(curve)}, default=_as_list) + "\n")


def read_curve(run: Run) -> Curve | None:
    """The curve of the result of ``run``; ``None`` if there is none, or it is of other weights or strengths."""
    try:
        known = json.loads(run.curve.read_bytes())
    except (OSError, ValueError):
        return None
    if known["strengths"] != [*STRENGTHS] or known["adapter"] != read_manifest(run.result)["sha256"][WEIGHTS]:
        return None
    return Curve(known["adapter"], _measure(known["loss"]), tuple(map(_measure, known["others"])))


def _as_list(array: Floats) -> list[Any]:
    """Six digits of each number."""
    return [float(f"{value:.6g}") for value in array] if array.ndim == 1 else [*map(_as_list, array)]


def _measure(known: Mapping[str, Any]) -> Measure:
    arrays = {key: np.array(known[key], float) for key in ("values", "weights")}
    return Measure(**{**known, **arrays})


def _cell(measure: Measure, place: int) -> str:
    mean = f"{measure.means[place]:.4f}"
    if place == BASE or not measure.has_changed:
        return mean
    return f"{mean}, {_share(measure, place)}"


def _share(measure: Measure, place: int) -> str:
    share, (low, high) = measure.share(place)
    if place == WHOLE:
        return "100 %"
    return f"{100 * share:.0f} % ({100 * low:.0f} to {100 * high:.0f})"
