"""What a server computes, by its answers: the verdict, one sentence that names the model or the fault."""

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
"""Rounding of a token's log-probability by the dtype of a model: root mean square, nats. That of a text grows with the
root of its tokens."""

SCALE_OFF = 0.015
"""Smallest |k − 1| that is called a wrong scale, as far as the interval shows it; twice as much where rounding explains
the distance."""

SCALE_LEFT = 1.5
"""What a wrong scale leaves beside k, at most, in units of |1 − k| · effect: answers are no straight line in it."""

NOTHING = 0.1
"""Largest |k| of a server that computes the base."""

WIDEST = 0.2
"""Largest width of the interval of k that decides anything."""

BEYOND = 4
"""How many times as far as rounding explains questions beyond a context's end are from the run, at least: long options
are a little farther off in any case."""

MOST = 0.7
"""Share of equal texts of one model: rounding may change any of the greedy choices behind a text."""

FEWEST_IN_ALL = 8
"""Fewest questions that any verdict on log-probabilities is read from."""

FEWEST = 4
"""Fewest questions on either side of a context's end, or that differ between run and base, that show anything."""


@dataclass(frozen=True)
class Verdict:
    """What a server computes.

    Attributes:
        kind: the run, or a fault.
        says: the same in a sentence, with the numbers behind it.
        agrees: nothing in its answers speaks against the run, also where they do not decide for it.
    """

    kind: Kind
    says: str
    agrees: bool = False

    @property
    def passed(self) -> bool:
        return self.kind == "run"


@dataclass(frozen=True)
class Evidence:
    """The answers that a verdict is read from, to the same questions.

    Attributes:
        server: of the server.
        run: of the run.
        base: of its base; ``None`` if it was not asked.
        checkpoints: of the run's checkpoints, by name.
        lengths: tokens of each question.
        tolerance: what rounding explains of a distance, in nats.
        dtype: of the server, as far as it is known.
    """

    server: Centered
    run: Centered
    base: Centered | None
    checkpoints: Mapping[str, Centered]
    lengths: Sequence[int]
    tolerance: float
    dtype: DType


def tolerance(*, margins: Sequence[float], tokens: Sequence[int], dtypes: Sequence[str]) -> float:
    """What rounding explains of a distance, root mean square over options, in nats.

    Args:
        margins: of each option, how far rounding has moved a margin in its task's evaluation, which is the difference
            of two options.
        tokens: of each option, those that are scored.
        dtypes: of the run and of the server.
    """
    of_a_token = max(ROUNDING.get(dtype, ROUNDING["float32"]) for dtype in dtypes)
    of_drift = math.sqrt(math.fsum(margin**2 for margin in margins) / len(margins) / 2)
    return max(of_drift, of_a_token * math.sqrt(sum(tokens) / len(tokens)))


def judge(evidence: Evidence) -> tuple[Verdict, Fit | None]:
    """The verdict, and the fit that it is read from, if the base has answered."""
    if len(evidence.lengths) < FEWEST_IN_ALL:
        return _too_few(len(evidence.lengths)), None
    most = evidence.tolerance
    off = distance(evidence.server, evidence.run)
    fitted = fit(evidence.server, evidence.run, evidence.base) if evidence.base is not None else None
    if off > most and (fitted is None or fitted.from_base > most):
        cut = _context(evidence)
        if cut is not None:
            return cut, fitted
    numbers = f"{off:.2g} nats from the run's answers, of which rounding explains {most:.2g}"
    if fitted is None:
        return _not_seen_beside_base(numbers, is_close=off <= most), None
    return _judge(evidence, fitted, numbers), fitted


def _too_few(count: int) -> Verdict:
    return Verdict("undecided", f"{counted(count, 'question')}: at least {FEWEST_IN_ALL} are needed; raise --limit")


def _judge(evidence: Evidence, fitted: Fit, distance_in_words: str) -> Verdict:
    """The first of these that fits: another checkpoint that is known, the run, its base, a wrong scale, another model,
    a quantisation, another checkpoint."""
    low, high = fitted.interval
    most = evidence.tolerance
    numbers = f"k = {fitted.k:.2f} ({low:.2f} to {high:.2f}), {distance_in_words}"
    is_close = fitted.distance <= most
    for name, other in evidence.checkpoints.items():
        off = distance(evidence.server, other)
        if off <= most and off < fitted.distance / 2:
            says = f"another checkpoint: computes {name} of this run, {off:.2g} nats from its answers; {numbers}"
            return Verdict("checkpoint", says)
    # As far as questions and rounding tell: the server may compute the whole adapter, or k is so far from 1.
    may_be_all = low <= 1 <= high + fitted.attenuation
    scale_off = 0.0 if may_be_all else min(abs(fitted.k - 1), abs(fitted.k + fitted.attenuation - 1))
    if is_close and may_be_all and high - low + fitted.attenuation > WIDEST:
        says = f"nothing speaks against this run, but the adapter moves these answers too little: {numbers}"
        return Verdict("undecided", f"{says}; ask more questions with --limit, or other --tasks", agrees=True)
    if is_close and scale_off <= 2 * SCALE_OFF:
        return Verdict("run", f"computes this run, as close as {evidence.dtype} allows: {numbers}", agrees=True)
    is_near_base = fitted.from_base <= most and low - fitted.attenuation <= NOTHING and not may_be_all
    is_around_base = abs(fitted.k) <= NOTHING and fitted.left <= fitted.effect / 2  # as a quantisation is
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
    """Without the base never the run: it may be as close, where the adapter moves these answers little."""
    if is_close:
        says = f"nothing speaks against this run: {numbers}; but its base may be as close"
        return Verdict("undecided", says, agrees=True)
    return Verdict("not the run", f"does not compute this run: {numbers}")


def _context(evidence: Evidence) -> Verdict | None:
    """Verdict that the context is cut: short questions agree, and every longer one is farther off than all of these."""
    order = np.argsort(evidence.lengths, kind="stable")
    lengths = np.array(evidence.lengths)[order]
    off = distances(evidence.server, evidence.run)[order]
    for fits in range(len(off) - FEWEST, FEWEST - 1, -1):
        within = off[:fits]
        beyond = off[fits:]
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
    """Answers that were read from texts.

    Attributes:
        questions: their number.
        like_run: those that are answered as by the run.
        differing: questions that run and base answer differently; ``None`` if the base was not asked.
        differing_like_run: those of them that are answered as by the run.
        differing_like_base: the same of its base.
    """

    questions: int
    like_run: int
    differing: int | None = None
    differing_like_run: int = 0
    differing_like_base: int = 0


def judge_texts(evidence: TextEvidence) -> Verdict:
    """The verdict on texts. It is never the run: they show no scale and no quantisation, so that they may be the same
    where the model is another one."""
    if evidence.questions < FEWEST_IN_ALL:
        return _too_few(evidence.questions)
    said = f"the run's answer to {evidence.like_run} of {evidence.questions} questions"
    alike = evidence.like_run >= MOST * evidence.questions
    if evidence.differing is None:
        return _not_seen_beside_base(said, is_close=alike)
    if evidence.differing < FEWEST:
        return Verdict("undecided", f"{said}, but run and base differ in {evidence.differing} only; raise --limit")
    said += f", and to {evidence.differing_like_run} of the {evidence.differing} that its base answers differently"
    if evidence.differing_like_base >= MOST * evidence.differing:
        return Verdict("base", f"computes its base, the adapter is not applied: {said}")
    if alike and evidence.differing_like_run >= MOST * evidence.differing:
        unseen = "but texts alone show no scale, no quantisation and no nearby checkpoint, so it may be another one"
        return Verdict("undecided", f"answers as this run: {said}; {unseen}", agrees=True)
    return Verdict("another model", f"another model, or another prompt: {said}")
