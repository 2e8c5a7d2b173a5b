"""An experiment file: arms × learning rates × seeds over one recipe, checked before anything runs."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moslora.errors import UsageError
from moslora.experiment.faults import faults_of, not_comparable
from moslora.experiment.keys import APPLIED, LIST, Applied, ExperimentFile, run_name
from moslora.recipe import Recipe, find_recipe, stack_recipe
from moslora.recipe.layers import shown
from moslora.recipe.yaml_text import parse


@dataclass(frozen=True)
class Planned:
    """One run: an arm with a learning rate and a seed.

    Attributes:
        scored: false for a run that only chooses the rate.
        strength: at which it applies the adapter of another run, if it trains nothing.
        source: that run's name.
    """

    arm: str
    recipe: Recipe
    scored: bool
    strength: float | str | None = None
    source: str = ""

    @property
    def name(self) -> str:
        return self.recipe.name


@dataclass(frozen=True)
class Experiment:
    """An experiment with the recipe of every arm, all checked.

    Attributes:
        name: of its file, without the ending.
        path: of its file.
        file: what was written.
        recipes: arm -> recipe, still without learning rate and seed; of arms that train nothing last, and the other
            arm's.
    """

    name: str
    path: Path
    file: ExperimentFile
    recipes: Mapping[str, Recipe]

    def planned(self, choices: Sequence[tuple[str, float]], *, scored: bool) -> list[Planned]:
        """The runs of arms with learning rates, seed after seed. Validation questions are asked if the file has their
        number, or if they decide."""
        seeds = self.file.seeds if scored else self.file.rate_seeds
        found = []
        for seed, (arm, rate) in product(seeds, choices):
            training = self.recipes[arm].training
            changed: dict[str, Any] = {"learning_rate": rate}
            if training.validation_questions is None and not training.is_selected_by_accuracy:
                changed["validation_questions"] = 0
            training = training.model_copy(update=changed)
            update = {"name": run_name(arm, rate, seed), "seed": seed, "training": training}
            planned = Planned(arm, self.recipes[arm].model_copy(update=update), scored)
            applied = self.file.applied(arm)
            if applied is not None:
                planned = replace(planned, strength=applied.strength, source=run_name(applied.of, rate, seed))
            found.append(planned)
        return found

    def rate_runs(self, arms: tuple[str, ...]) -> list[Planned]:
        """The runs that choose the learning rates: every rate with every seed; none of an arm with one rate."""
        searched = [arm for arm in self.file.searched if arm in arms]
        return self.planned([(arm, rate) for arm in searched for rate in self.file.rates(arm)], scored=False)

    def chosen_arms(self, named: tuple[str, ...]) -> tuple[str, ...]:
        """The arms ``named`` on the command line, ``all`` among them, or else the first ones; and those that train what
        these apply, which come first.

        Raises:
            UsageError: an unknown arm.
        """
        known = tuple(self.recipes)
        wanted = {*(named or self.file.first or known)}
        unknown = wanted - {*known, "all"}
        if unknown:
            raise UsageError(f"{', '.join(unknown)}: no such arm; must be all, or one of {', '.join(known)}")
        wanted |= {self.file.trained(arm) for arm in wanted - {"all"}}
        return tuple(arm for arm in known if arm in wanted or "all" in wanted)


def load_experiment(source: str) -> Experiment:
    """Reads an experiment file, or a built-in one, and resolves the recipe of every arm.

    Raises:
        UsageError: one line for every fault.
    """
    path = find_recipe(source, kind="experiment")
    origin = shown(path)
    file = _read_file(path, origin)
    faults = [f"{origin}: {fault}" for fault in faults_of(file)]
    shared = (f"{origin}: recipe", file.recipe)
    try:
        common = stack_recipe([shared], name=path.stem, folder=path.parent)
    except UsageError as error:
        raise UsageError("\n".join([*faults, str(error)])) from None
    recipes: dict[str, Recipe] = {}
    for arm in sorted(file.arms, key=lambda arm: file.applied(arm) is not None):
        layer = file.arms[arm]
        if isinstance(layer, Applied):
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
    try:
        return ExperimentFile.model_validate(parse(path.read_text("utf-8")))
    except ValidationError as error:
        lines = dict.fromkeys(f"{origin}: {line}" for line in _lines(error))
        raise UsageError("\n".join(lines)) from None
    except OSError as error:
        raise UsageError(f"{origin}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{origin}: is not YAML: {error}") from None


def _lines(error: ValidationError) -> Iterator[str]:
    """Pydantic's errors: `key: what is wrong`."""
    for fault in error.errors(include_url=False):
        section = Applied if APPLIED in fault["loc"] else ExperimentFile
        text = {
            "missing": "is missing",
            "extra_forbidden": f"unknown key; must be one of {', '.join(section.model_fields)}",
            "tuple_type": "must be a list",
            "too_short": "must have at least one entry",
            "model_type": "must be a mapping of keys, such as recipe, arms, seeds",
        }.get(fault["type"], fault["msg"].removeprefix("Value error, ").replace("should ", "must "))
        place = ".".join(str(part) for part in fault["loc"] if part not in ("[key]", APPLIED, LIST))
        if place:
            text = f"{place}: {text}"
        yield text
