"""Experiment with the recipe of every arm, read from its file and checked before anything runs.

The keys of the file are in `moslora.experiment.keys`; `moslora.experiment.study` runs the experiment.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moslora.errors import UsageError
from moslora.experiment.keys import APPLIED, LIST, OTHERS, AppliedArm, ExperimentFile, run_name
from moslora.prompts.protocols import PROTOCOLS
from moslora.recipe import Recipe, find_recipe, stack_recipe
from moslora.recipe.changes import Arms, marked_fields
from moslora.recipe.layers import shown
from moslora.recipe.yaml_text import parse
from moslora.runs.outcomes import OUTCOMES


@dataclass(frozen=True)
class PlannedRun:
    """A run of an experiment: an arm with a learning rate and a seed.

    Attributes:
        arm: name of its arm.
        recipe: its recipe.
        scored: whether it is scored; otherwise it only helps to choose the learning rate.
        strength: strength at which it applies another run's adapter; ``None`` if it is trained.
        source: name of that other run.
    """

    arm: str
    recipe: Recipe
    scored: bool
    strength: float | str | None = None
    source: str = ""

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.recipe.name


@dataclass(frozen=True)
class Experiment:
    """An experiment whose file and recipes are valid.

    Attributes:
        name: name of its file, without the suffix.
        path: path of its file.
        file: content of its file.
        recipes: arm -> recipe, before learning rate and seed are set. Arms that train nothing come last, with the
            recipe of the arm whose adapters they apply.
    """

    name: str
    path: Path
    file: ExperimentFile
    recipes: Mapping[str, Recipe]

    def planned(self, choices: Sequence[tuple[str, float]], *, scored: bool) -> list[PlannedRun]:
        """Return the runs of arms at learning rates, seed after seed.

        Validation questions are asked only if the recipe sets their number, or if they decide which adapter is a run's
        result.

        Args:
            choices: pairs of arm and learning rate.
            scored: whether the runs are scored, and therefore have the seeds of scored runs.
        """
        seeds = self.file.seeds if scored else self.file.rate_seeds
        runs = []
        for seed, (arm, rate) in product(seeds, choices):
            training = self.recipes[arm].training
            changed: dict[str, Any] = {"learning_rate": rate}
            if training.validation_questions is None and not training.is_selected_by_accuracy:
                changed["validation_questions"] = 0
            training = training.model_copy(update=changed)
            update = {"name": run_name(arm, rate, seed), "seed": seed, "training": training}
            planned = PlannedRun(arm, self.recipes[arm].model_copy(update=update), scored)
            applied = self.file.applied(arm)
            if applied is not None:
                planned = replace(planned, strength=applied.strength, source=run_name(applied.of, rate, seed))
            runs.append(planned)
        return runs

    def rate_runs(self, arms: tuple[str, ...]) -> list[PlannedRun]:
        """Return the runs that choose learning rates: every rate with every seed, of the arms with several rates."""
        searched = [arm for arm in self.file.searched if arm in arms]
        return self.planned([(arm, rate) for arm in searched for rate in self.file.rates(arm)], scored=False)

    def chosen_arms(self, named: tuple[str, ...]) -> tuple[str, ...]:
        """Return the arms to run, and the arms whose adapters these apply, in the order of the recipes.

        Args:
            named: names from the command line, perhaps ``all``; empty for the file's ``first``, or else all.

        Raises:
            UsageError: an arm is unknown.
        """
        arms = tuple(self.recipes)
        chosen = {*(named or self.file.first or arms)}
        unknown = chosen - {*arms, "all"}
        if unknown:
            raise UsageError(f"{', '.join(unknown)}: no such arm; must be all, or one of {', '.join(arms)}")
        if "all" in chosen:
            return arms
        chosen |= {self.file.trained(arm) for arm in chosen}
        return tuple(arm for arm in arms if arm in chosen)


def load_experiment(source: str) -> Experiment:
    """Read an experiment file, or a built-in one, and resolve the recipe of every arm.

    Raises:
        UsageError: a line for each fault.
    """
    path = find_recipe(source, kind="experiment")
    origin = shown(path)
    file = _read_file(path, origin)
    faults = [f"{origin}: {fault}" for fault in _faults_of(file)]
    shared = (f"{origin}: recipe", file.recipe)
    try:
        common = stack_recipe([shared], name=path.stem, folder=path.parent)
    except UsageError as error:
        raise UsageError("\n".join([*faults, str(error)])) from None
    recipes: dict[str, Recipe] = {}
    for arm in sorted(file.arms, key=lambda arm: file.applied(arm) is not None):
        layer = file.arms[arm]
        if isinstance(layer, AppliedArm):
            if layer.of in recipes:
                recipes[arm] = recipes[layer.of]
            continue
        own = (f"{origin}: arms.{arm}", layer)
        try:
            recipes[arm] = stack_recipe([shared, own], name=path.stem, folder=path.parent)
        except UsageError as error:
            faults.append(str(error))
    faults += [f"{origin}: {fault}" for fault in not_comparable(file, common, recipes)]
    if faults:
        raise UsageError("\n".join(faults))
    return Experiment(re.sub(r"[^\w.-]", "-", path.stem), path, file, recipes)


def _read_file(path: Path, origin: str) -> ExperimentFile:
    """Return the content of an experiment file.

    Raises:
        UsageError: a line for each fault.
    """
    try:
        return ExperimentFile.model_validate(parse(path.read_text("utf-8")))
    except ValidationError as error:
        lines = dict.fromkeys(f"{origin}: {line}" for line in _lines(error))
        raise UsageError("\n".join(lines)) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{origin}: cannot be read as YAML: {error}") from None


def _lines(error: ValidationError) -> Iterator[str]:
    """Yield a line for each of pydantic's errors: `key: what is wrong`."""
    for fault in error.errors(include_url=False):
        section = AppliedArm if APPLIED in fault["loc"] else ExperimentFile
        text = {
            "missing": "is missing; set it",
            "extra_forbidden": f"unknown key; must be one of {', '.join(section.model_fields)}",
            "tuple_type": "must be a list",
            "too_short": "must have at least one entry",
            "model_type": "must be a mapping of keys, such as recipe, arms, seeds",
        }.get(fault["type"], fault["msg"].removeprefix("Value error, ").replace("should ", "must "))
        place = ".".join(str(part) for part in fault["loc"] if part not in ("[key]", APPLIED, LIST))
        if place:
            text = f"{place}: {text}"
        yield text


def _faults_of(file: ExperimentFile) -> Iterator[str]:
    """Yield a message for each contradiction between keys of a file."""
    with_rates = [key for key in file.learning_rates if key not in (OTHERS, LIST)]
    arms_by_key = {
        "first": file.first,
        "learning_rates": with_rates,
        "contrast or against": chain(*file.named),
        "of": map(file.trained, file.arms),
    }
    for key, arms in arms_by_key.items():
        for arm in dict.fromkeys(arms):
            if arm not in file.arms:
                yield f"{key}: {arm} is not an arm; must be one of {', '.join(file.arms)}"
    for arm in file.arms:
        if file.trained(arm) in file.arms and file.applied(file.trained(arm)):
            yield f"arms.{arm}.of: {file.trained(arm)} trains nothing itself; name the arm that trains"
        if file.applied(arm) and arm in with_rates:
            yield f"learning_rates.{arm}: this arm trains nothing, at the rate of {file.trained(arm)}; remove it"
    for one, other in file.named:
        if one == other:
            yield f"contrast: {one} against itself; name two arms"
    if not file.named:
        yield "contrast: is missing; name two arms, several such pairs in contrasts, or an arm in against"
    without = [arm for arm in file.arms if not file.rates(arm)]
    if without:
        yield f"learning_rates: none for {', '.join(without)}; add them, or {OTHERS} for all that have none"
    if file.searched and not file.rate_seeds:
        yield "rate_seeds: is missing; several learning_rates need seeds to choose among them"
    seeds = (*file.rate_seeds, *file.seeds)
    names = []
    for arm in file.arms:  # in lower case, as some file systems ignore case
        names += [run_name(arm, rate, seed).lower() for rate, seed in product(file.rates(arm), seeds)]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        yield f"two runs are called {repeated[0]}; change an arm, rate or seed: rate_seeds cannot be among the seeds"


def not_comparable(file: ExperimentFile, common: Recipe, recipes: Mapping[str, Recipe]) -> Iterator[str]:
    """Yield reasons why the arms' recipes cannot be compared, or their outcomes not be measured."""
    for arm, recipe in recipes.items():
        changed = [key for key, _ in marked_fields(Recipe, Arms) if attrgetter(key)(recipe) != attrgetter(key)(common)]
        if changed:
            yield f"arms.{arm}: changes {', '.join(changed)}, which all arms share; set it for all, outside the arms"
    chosen = ["the learning rate"] if file.searched else []
    for arm in file.arms:
        applied = file.applied(arm)
        if applied and applied.strength == "recommended":
            chosen.append(f"the strength of {arm}")
    if chosen and not common.data.holds_out:
        yield f"data.validation_rows = 0: {' and '.join(chosen)} is chosen on them; set some under recipe"
    for outcome in (file.outcome, *file.also):
        if not _is_measured(outcome, file, common):
            yield (
                f"outcome: {outcome} does not exist for these runs by protocol {common.evaluation.protocol}: it needs"
                " questions, for probabilities with options that the protocol scores; nats_per_byte needs passages,"
                " validation_loss validation rows and several seeds"
            )


def _is_measured(outcome: str, file: ExperimentFile, common: Recipe) -> bool:
    """Whether the runs will have this outcome, by their protocol and their questions."""
    measure = OUTCOMES[outcome]
    protocol = PROTOCOLS[common.evaluation.protocol]
    tasks = [task for task in common.questions.tasks if task.is_text == measure.of_texts]
    if measure.of_runs:
        return common.data.holds_out and len(file.seeds) > 1
    if measure.scored and any(task.is_open_ended for task in tasks):
        return False
    if measure.scored and not (protocol.scores_options and (protocol.divides_scores or not measure.per_character)):
        return False
    return bool(tasks)
