"""A run's numbers at every strength C, and the recommended strength.

    share(C) = (y(C) − y(0)) / (y(1) − y(0))      y the mean over rows, y(0) the base's

Intervals, 95 %, are percentiles over bootstrap samples of the rows. All numbers of a row stay together, so differences
are paired. Importing this module does not load torch.
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
"""Strengths that are measured, the base's first."""

BASE = STRENGTHS.index(0.0)
WHOLE = STRENGTHS.index(1.0)

SAMPLES = 2_000
"""Number of bootstrap samples of the rows."""

KEPT = 0.97
"""Share of the fall in the held-out rows' loss that the recommended strength keeps.

The loss hardly differs between strengths 0.7 and 1, where most is forgotten: its minimum would be a poor guide.
"""

FEWEST_ROWS = 30
"""Fewest rows that recommend a strength. Samples of fewer rows choose strengths far apart."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Measure:
    """Quantity that is measured on each row at every strength, such as the loss.

    Attributes:
        title: title of its column in a table.
        values: value of each row at each strength, shape ``(len(STRENGTHS), n)``; a loss is summed over label tokens.
        weights: divisor of each row, shape ``(n,)``: its label tokens for a loss, otherwise 1.
    """

    title: str
    values: Floats
    weights: Floats

    @property
    def means(self) -> Floats:
        """Mean of the measure over the rows at each strength, shape ``(len(STRENGTHS),)``."""
        means: Floats = self.values.sum(axis=1) / self.weights.sum()
        return means

    @cached_property
    def sampled_means(self) -> Floats:
        """Mean y of each bootstrap sample at each strength, shape ``(SAMPLES, len(STRENGTHS))``."""
        n = len(self.weights)
        draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=SAMPLES).astype(float)
        means: Floats = draws @ self.values.T / (draws @ self.weights)[:, None]
        return means

    def change(self, place: int) -> tuple[float, Range]:
        """Change y(C) − y(0) at ``STRENGTHS[place]``, and its interval."""
        return float(self.means[place] - self.means[BASE]), _range(_change(self.sampled_means, place))

    @property
    def has_changed(self) -> bool:
        """Whether the run at strength 1 differs from its base by more than the choice of rows explains."""
        low, high = self.change(WHOLE)[1]
        return low > 0 or high < 0

    def share(self, place: int) -> tuple[float, Range]:
        """share(C) at ``STRENGTHS[place]``, and its interval over the samples in which strength 1 changes y."""
        whole = _change(self.sampled_means, WHOLE)
        changed = whole != 0
        of_samples = _change(self.sampled_means, place)[changed] / whole[changed]
        return self.change(place)[0] / self.change(WHOLE)[0], _range(of_samples)


def _change(means: Floats, place: int) -> Floats:
    """y(C) − y(0) of each sample, shape ``(SAMPLES,)``; ``means`` as `Measure.sampled_means`."""
    change: Floats = means[:, place] - means[:, BASE]
    return change


def _range(samples: Floats) -> Range:
    """Interval that holds 95 % of the samples."""
    low, high = np.percentile(samples, (2.5, 97.5))
    return float(low), float(high)


@dataclass(frozen=True)
class Curve:
    """Measures of an adapter at every strength.

    Attributes:
        adapter: sha256 of its weights.
        loss: loss of the held-out rows, nats per label token, by which a strength is recommended.
        others: measures that are shown beside the loss.
    """

    adapter: str
    loss: Measure
    others: tuple[Measure, ...]

    @property
    def heading(self) -> str:
        """Line above the table."""
        return f"{self.rows:,} held-out rows; in percent of the change at strength 1, with 95 % intervals over rows"

    @property
    def rows(self) -> int:
        """Number of held-out rows."""
        return len(self.loss.weights)

    @property
    def recommended(self) -> float | None:
        """Lowest strength that keeps `KEPT` of the loss's largest fall up to strength 1.

        ``None`` with too few rows, or if the loss is lowest without the adapter.
        """
        place = int(_recommended(self.loss.means))
        if self.rows < FEWEST_ROWS or place == BASE:
            return None
        return STRENGTHS[place]

    @property
    def chosen_by_samples(self) -> Range:
        """Interval that holds 95 % of the strengths that bootstrap samples of the rows recommend."""
        places = _recommended(self.loss.sampled_means)
        low, high = np.percentile(np.array(STRENGTHS)[places], (2.5, 97.5), method="nearest")
        return float(low), float(high)

    def table(self) -> list[list[str]]:
        """Table, header first: for each strength every mean, and if there is a change, its share and interval."""
        measures = (self.loss, *self.others)
        rows = [["strength", *(measure.title for measure in measures)]]
        for place, strength in enumerate(STRENGTHS):
            rows.append([f"{strength:g}", *(_cell(measure, place) for measure in measures)])
        return rows

    def conclusion(self) -> str:
        """Sentence with the recommended strength, its range, and what it keeps of each measure; or why none is."""
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
        return said


def _recommended(mean_losses: Floats) -> NDArray[np.intp]:
    """Indices in :data:`STRENGTHS` of the recommended strengths, shape ``(…,)``; the base's if no loss falls.

    ``mean_losses`` has shape ``(…, len(STRENGTHS))``.
    """
    falls = mean_losses[..., [BASE]] - mean_losses[..., : WHOLE + 1]
    places: NDArray[np.intp] = (falls >= KEPT * falls.max(axis=-1, keepdims=True)).argmax(axis=-1)
    return places


def write_curve(run: Run, curve: Curve) -> None:
    """Write a ``curve`` that was measured on the result of a training ``run`` into the run's folder."""
    write_text(run.curve, json.dumps({"strengths": STRENGTHS, **asdict(curve)}, default=_as_list) + "\n")


def read_curve(run: Run) -> Curve | None:
    """Read the curve measured on the result of ``run``; ``None`` if it is missing, or of other weights or strengths."""
    try:
        content = json.loads(run.curve.read_bytes())
    except (OSError, ValueError):
        return None
    if content["strengths"] != [*STRENGTHS] or content["adapter"] != read_manifest(run.result)["sha256"][WEIGHTS]:
        return None
    return Curve(content["adapter"], _measure(content["loss"]), tuple(map(_measure, content["others"])))


def _as_list(array: Floats) -> list[Any]:
    """Nested lists of the numbers, each rounded to six significant digits."""
    return [float(f"{value:.6g}") for value in array] if array.ndim == 1 else [*map(_as_list, array)]


def _measure(values: Mapping[str, Any]) -> Measure:
    """Build a `Measure` from its JSON in a file of `write_curve`."""
    return Measure(values["title"], np.array(values["values"], float), np.array(values["weights"], float))


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
