"""Simulated worlds with a known truth: equal arms that differ by luck as much as the committed runs do.

    y[arm, s, i] = difficulty[i] + luck[arm, s] + taste[arm, i] + noise[arm, s, i]

`luck` is that of a training, `taste` what an arm knows of a question under every seed. All have the mean 0. The first
arm has no luck, and where y is the outcome only difficulty, so that every other arm varies as its contrast does. Where
an answer is right if y > 0, all arms have taste and noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr

from benchmarks import DOCS
from moslora.compare.comparison import compare_paths
from moslora.compare.distribution import Floats
from moslora.compare.statistics import Codes, effects
from moslora.report.figures.forgetting import FORGOTTEN
from moslora.runs.scores import MACRO

RUNS = DOCS / "experiments" / "article"
"""The runs that the worlds are like."""

SEEDS = (1, 3, 4, 6, 8)

QUESTIONS = 256
"""Maximum number of questions, unless they are right or wrong. Where the runs have more, each varies less here, so that
their mean varies as much."""

CLUSTERS = (1, 2, 3, 4, 6)
"""Sizes of the clusters, in turn."""

Draw = Callable[[np.random.Generator, tuple[int, ...]], Floats]
"""Draws numbers of mean 0 and variance 1, of a shape."""


def normal(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return random.standard_normal(shape)


def student(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Student's t of 4 degrees, whose kurtosis is infinite."""
    return random.standard_t(4, shape) / math.sqrt(2)


def lognormal(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Skewness 6, kurtosis 114."""
    return (random.lognormal(size=shape) - math.exp(0.5)) / math.sqrt((math.e - 1) * math.e)


def with_bad_seeds(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Normal, but one in six is 4 lower."""
    bad = random.random(shape) < 1 / 6
    return (random.standard_normal(shape) - 4 * bad + 4 / 6) / math.sqrt(1 + 16 * 5 / 36)


@dataclass(frozen=True)
class World:
    """Arms and the questions that they answer.

    Attributes:
        title: what is special.
        luck: its standard deviation in each arm, shape ``(arms,)``.
        taste: that of its tastes.
        noise: that of its noise.
        questions: n.
        binary: answers are right or wrong, and difficulties have the variance 1.
        seeds: S, runs of each arm.
        draw_luck: draws luck.
        draw: draws tastes and noise.
        clusters: of the questions, which share a part of taste and noise; ``None`` if each is alone.
        shared: the share of their variance; equal questions share all, and their difficulty.
        known: the comparison is told of the clusters.
    """

    title: str
    luck: Floats
    taste: Floats
    noise: Floats
    questions: int
    binary: bool
    seeds: int = 4
    draw_luck: Draw = normal
    draw: Draw = normal
    clusters: Codes | None = None
    shared: float = 0.5
    known: bool = True

    def study(self, random: np.random.Generator) -> tuple[list[Floats], Floats]:
        """Differences of each other arm from the first, shape ``(S, n)``, and the true differences.

        Under other seeds all arms are equal. With one seed the luck counts, as the models are what is compared.
        """
        luck = self.luck[:, None] * self.draw_luck(random, (len(self.luck), self.seeds))
        difficulty = np.zeros(self.questions)
        if self.binary:
            difficulty = random.standard_normal(self.questions)
        if self.clusters is not None and self.shared == 1:
            difficulty = difficulty[self.clusters]
        answers = []
        for arm, of_seeds in enumerate(luck):
            taste = self.taste[arm] * self._by_question(random, ())
            noise = self.noise[arm] * self._by_question(random, (self.seeds,))
            y = difficulty + of_seeds[:, None] + taste + noise
            answers.append((y > 0).astype(float) if self.binary else y)
        true = np.zeros(len(luck))
        if self.seeds == 1:
            true = luck[:, 0]
            if self.binary:  # of normal tastes and noise
                true = ndtr(true / np.sqrt(1 + self.taste**2 + self.noise**2))
        return [other - answers[0] for other in answers[1:]], true[1:] - true[0]

    def _by_question(self, random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        """Numbers of variance 1, shape ``(*shape, n)``."""
        alone = self.draw(random, (*shape, self.questions))
        if self.clusters is None:
            return alone
        together = self.draw(random, (*shape, int(self.clusters.max()) + 1))
        return math.sqrt(1 - self.shared) * alone + math.sqrt(self.shared) * together[..., self.clusters]


def worlds() -> list[World]:
    """Worlds like the committed runs, for each outcome, with other tails, and with questions in clusters."""
    found = []
    for outcome in ("log_probability", "accuracy", FORGOTTEN):
        like_runs = estimated(outcome)
        found += [like_runs, *with_tails(like_runs)]
        if outcome != "log_probability":
            found += in_clusters(like_runs)
    return found


def estimated(outcome: str) -> World:
    """Normal, with the variances of each contrast of `RUNS`."""
    contrasts = compare_paths([RUNS], outcome=outcome).named
    compared = contrasts[0].outcome
    seeds = contrasts[0].seeds
    questions = contrasts[0].questions()
    if not compared.binary:
        questions = min(QUESTIONS, questions)
    variances = []
    for contrast in contrasts:
        differences = {task: y[1] - y[0] for task, y in contrast.y.items()}
        estimate = effects(differences, binary=False)[MACRO].distribution
        variances.append((estimate.seeds.variance, estimate.questions.variance, estimate.interaction))
    of_seeds, of_questions, of_both = np.array([(0.0, 0.0, 0.0), *variances]).T
    luck = np.sqrt(np.maximum(0, of_seeds - of_both) * seeds)
    taste = np.sqrt(np.maximum(0, of_questions - of_both) * questions)
    noise = np.sqrt(of_both * seeds * questions)
    world = World(compared.title.removesuffix(", %"), luck, taste, noise, questions, compared.binary)
    return thresholded(world) if world.binary else world


def thresholded(world: World) -> World:
    """The world with answers that are right where a normal sum is above 0, and differ as much as those of ``world``; by
    taste and noise as much as those of its contrasts on average, the first arm too.

    Two sums with correlation ρ are both above 0 in 1/4 + asin(ρ) / 2π of cases. T and N are the variances of a
    difference by taste and by noise. So one arm's sums under two seeds have the correlation cos(πN), and the arcsine of
    two arms' correlation is πT lower.
    """
    noise = float((world.noise[1:] ** 2).mean())
    taste = float((world.taste[1:] ** 2).mean())
    of_one_arm = math.cos(math.pi * noise)
    of_two_arms = math.sin(math.asin(of_one_arm) - math.pi * taste)
    alike = np.ones(len(world.luck))
    return replace(
        world,
        luck=world.luck * math.sqrt(2 * math.pi / of_two_arms),
        taste=alike * math.sqrt(of_one_arm / of_two_arms - 1),
        noise=alike * math.sqrt((1 - of_one_arm) / of_two_arms),
    )


def with_tails(world: World) -> list[World]:
    """Return copies of ``world`` whose luck, and if not binary also taste and noise, have other tails."""
    found = [replace(world, title=f"{world.title}, one bad seed in six", draw_luck=with_bad_seeds)]
    for name, draw in (("t of 4 degrees", student), ("lognormal", lognormal)):
        rest = normal if world.binary else draw
        found.append(replace(world, title=f"{world.title}, {name}", draw_luck=draw, draw=rest))
    return found


def in_clusters(world: World) -> list[World]:
    """Return copies of ``world`` with questions in clusters: known to the comparison, unknown, or of equal
    questions."""
    sizes = np.resize(CLUSTERS, world.questions)
    codes = np.repeat(np.arange(len(sizes)), sizes)[: world.questions]
    known = replace(world, title=f"{world.title}, clusters", clusters=codes)
    equal = replace(known, title=f"{world.title}, equal questions", shared=1.0)
    return [known, replace(known, title=f"{known.title} that are not named", known=False), equal]
