"""Judge what a server computes by its answers: a verdict names the model or the fault, with the numbers behind it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moslora.choices import DType
from moslora.errors import counted
from moslora.verify.fit import Centered, Fit, distance, distances, fit, size

Kind = Literal[
    "run",
    "base",
    "scale",
    "checkpoint",
    "quantised",
    "context",
    "another model",
    "prompt",
    "not the run",
    "undecided",
]

ROUNDING: Mapping[str, float] = {"float32": 0.001, "float16": 0.012, "bfloat16": 0.05}
"""Rounding of a token's log-probability by the dtype of a model: root mean square, in nats. The rounding of a text
grows with the root of its number of tokens."""

SCALE_OFF = 0.015
"""Smallest distance of k's interval from 1 that is called a wrong scale; twice as much where rounding explains the
distance of the answers."""

SCALE_LEFT = 1.5
"""Largest residual of a wrong scale, in units of |1 − k| · effect: answers are not linear in the scale."""

NOTHING = 0.1
"""Largest |k| of a server that computes the base."""

WIDEST = 0.2
"""Largest width of the interval of k that allows a verdict."""

BEYOND = 4
"""Smallest distance of questions beyond a context's end, in units of the tolerance: long options are always a little
farther from the run."""

MOST = 0.7
"""Smallest share of equal texts of one and the same model: rounding may change any of a text's greedy choices."""

FEWEST_IN_ALL = 8
"""Smallest number of answered questions that allows a verdict."""

FEWEST = 4
"""Smallest number of questions on either side of a context's end, of questions that run and base answer differently,
and of tested prompts."""


@dataclass(frozen=True)
class Verdict:
    """Verdict on what a server computes.

    Attributes:
        kind: what the server was found to compute: the run, its base, a checkpoint, …, or a fault.
        says: the verdict as a sentence, with the numbers behind it.
        agrees: whether nothing in the answers speaks against the run, even if they do not prove it.
    """

    kind: Kind
    says: str
    agrees: bool = False

    @property
    def passed(self) -> bool:
        """Whether the verdict is that the server computes the run."""
        return self.kind == "run"


@dataclass(frozen=True)
class Evidence:
    """Answers of several models to the same questions.

    Attributes:
        server: answers of the server.
        run: answers of the run.
        base: answers of the run's base; ``None`` if it was not asked.
        checkpoints: answers of the run's checkpoints, by name.
        lengths: number of tokens of each question.
        tolerance: largest distance of two models' log-probabilities that rounding explains, in nats.
        dtype: precision of the server, as far as it is known.
    """

    server: Centered
    run: Centered
    base: Centered | None
    checkpoints: Mapping[str, Centered]
    lengths: Sequence[int]
    tolerance: float
    dtype: DType


def tolerance(*, margins: Sequence[float], tokens: Sequence[int], dtypes: Sequence[str]) -> float:
    """Largest distance that rounding explains: root mean square over options, in nats.

    Args:
        margins: for each option, the recorded change of a margin (a difference of two options) by rounding.
        tokens: for each option, the number of scored tokens.
        dtypes: precisions of the run and of the server.
    """
    of_a_token = max(ROUNDING.get(dtype, ROUNDING["float32"]) for dtype in dtypes)
    of_drift = math.sqrt(math.fsum(margin**2 for margin in margins) / len(margins) / 2)
    return max(of_drift, of_a_token * math.sqrt(sum(tokens) / len(tokens)))


def judge(evidence: Evidence) -> tuple[Verdict, Fit | None]:
    """Return the verdict, and the fit behind it if the base has answered."""
    if len(evidence.lengths) < FEWEST_IN_ALL:
        return _too_few(len(evidence.lengths)), None
    most = evidence.tolerance
    gap = distance(evidence.server, evidence.run)
    fitted = fit(evidence.server, evidence.run, evidence.base) if evidence.base is not None else None
    if gap > most and (fitted is None or fitted.from_base > most):
        cut = _context(evidence)
        if cut is not None:
            return cut, fitted
    numbers = f"{gap:.2g} nats from the run's answers, of which rounding explains {most:.2g}"
    if fitted is None:
        return _not_seen_beside_base(numbers, is_close=gap <= most), None
    return _judge(evidence, fitted, numbers), fitted


def _too_few(count: int) -> Verdict:
    """Verdict on fewer answers than can be judged."""
    return Verdict("undecided", f"{counted(count, 'question')}: at least {FEWEST_IN_ALL} are needed; raise --limit")


def _judge(evidence: Evidence, fitted: Fit, distance_in_words: str) -> Verdict:
    """Return the first verdict that fits: an evaluated checkpoint, the run, its base, a wrong scale, another model, a
    quantisation, another checkpoint."""
    low, high = fitted.interval
    most = evidence.tolerance
    numbers = f"k = {fitted.k:.2f} ({low:.2f} to {high:.2f}), {distance_in_words}"
    is_close = fitted.distance <= most
    for name, other in evidence.checkpoints.items():
        gap = distance(evidence.server, other)
        if gap <= most and gap < fitted.distance / 2:
            says = f"another checkpoint: computes {name} of this run, {gap:.2g} nats from its answers; {numbers}"
            return Verdict("checkpoint", says)
    # Rounding of the run may have made k smaller by the attenuation.
    may_be_all = low <= 1 <= high + fitted.attenuation
    scale_off = 0.0 if may_be_all else min(abs(fitted.k - 1), abs(fitted.k + fitted.attenuation - 1))
    if is_close and may_be_all and high - low + fitted.attenuation > WIDEST:
        says = f"nothing speaks against this run, but the adapter moves these answers too little: {numbers}"
        return Verdict("undecided", f"{says}; ask more questions with --limit, or other --tasks", agrees=True)
    if is_close and scale_off <= 2 * SCALE_OFF:
        return Verdict("run", f"computes this run, as close as {evidence.dtype} allows: {numbers}", agrees=True)
    is_near_base = fitted.from_base <= most and low - fitted.attenuation <= NOTHING and not may_be_all
    is_around_base = abs(fitted.k) <= NOTHING and fitted.left <= fitted.effect / 2  # a quantised base is
    if is_near_base or is_around_base:
        fix = "load the adapter, or serve the merged model"
        return Verdict("base", f"computes its base, the adapter is not applied: {numbers}; {fix}")
    from_scale = SCALE_LEFT * abs(1 - fitted.k) * fitted.effect
    is_straight = fitted.left <= min(max(most, from_scale), fitted.effect / 4)
    if is_straight and scale_off > SCALE_OFF:
        return Verdict("scale", f"a wrong scale: {numbers}; compare alpha, rank and rslora of what is served")
    if fitted.left > fitted.effect / 2:
        return Verdict("another model", f"another model, another size, or another prompt: {numbers}")
    if low <= 1.1 and high >= 0.9:
        what = "of the server or of the base that the run was evaluated with, or with a checkpoint close to this run"
        return Verdict("quantised", f"consistent with a quantisation, {what}: {numbers}")
    return Verdict("checkpoint", f"another checkpoint, or another training of this base: {numbers}")


def _not_seen_beside_base(numbers: str, *, is_close: bool) -> Verdict:
    """Verdict without the base's answers, which may be as close to the server's as the run's answers are."""
    if is_close:
        says = f"nothing speaks against this run: {numbers}; but its base may be as close"
        return Verdict("undecided", says, agrees=True)
    return Verdict("not the run", f"does not compute this run: {numbers}")


def _context(evidence: Evidence) -> Verdict | None:
    """Verdict that the context is cut, if all short questions agree and every longer one is farther from the run."""
    order = np.argsort(evidence.lengths, kind="stable")
    lengths = np.array(evidence.lengths)[order]
    gap = distances(evidence.server, evidence.run)[order]
    for fits in range(len(gap) - FEWEST, FEWEST - 1, -1):
        within = gap[:fits]
        beyond = gap[fits:]
        is_apart = lengths[fits - 1] < lengths[fits] and within.max() < beyond.min()
        if is_apart and size([within]) <= evidence.tolerance and size([beyond]) > BEYOND * evidence.tolerance:
            return Verdict(
                "context",
                f"the context is cut: {fits} questions of up to {lengths[fits - 1]} tokens agree with this run, and"
                f" {len(beyond)} longer ones do not; serve with a longer context",
            )
    return None


@dataclass(frozen=True)
class TextEvidence:
    """Numbers of questions that a server answers in texts.

    Attributes:
        questions: answered questions.
        like_run: questions that are answered as by the run.
        differing: questions that run and base answer differently; ``None`` if the base was not asked.
        differing_like_run: differing questions that are answered as by the run.
        differing_like_base: differing questions that are answered as by the base.
    """

    questions: int
    like_run: int
    differing: int | None = None
    differing_like_run: int = 0
    differing_like_base: int = 0


def judge_texts(evidence: TextEvidence) -> Verdict:
    """Return the verdict on texts. It is never that the server computes the run: texts show neither scale nor
    quantisation."""
    if evidence.questions < FEWEST_IN_ALL:
        return _too_few(evidence.questions)
    counts = f"the run's answer to {evidence.like_run} of {evidence.questions} questions"
    is_close = evidence.like_run >= MOST * evidence.questions
    if evidence.differing is None:
        return _not_seen_beside_base(counts, is_close=is_close)
    if evidence.differing < FEWEST:
        return Verdict("undecided", f"{counts}, but run and base differ in {evidence.differing} only; raise --limit")
    counts += f", and to {evidence.differing_like_run} of the {evidence.differing} that its base answers differently"
    if evidence.differing_like_base >= MOST * evidence.differing:
        return Verdict("base", f"computes its base, the adapter is not applied: {counts}")
    if is_close and evidence.differing_like_run >= MOST * evidence.differing:
        unseen = "but texts alone show no scale, no quantisation and no nearby checkpoint, so it may be another one"
        return Verdict("undecided", f"answers as this run: {counts}; {unseen}", agrees=True)
    return Verdict("another model", f"another model, or another prompt: {counts}")
