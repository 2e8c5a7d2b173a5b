"""An experiment file: arms × learning rates × seeds over one recipe, checked before anything runs."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveFloat, Strict, ValidationError

from moslora.errors import UsageError
from moslora.prompts.protocols import PROTOCOLS, joined_names, readers
from moslora.recipe import Recipe, find_recipe, stack_recipe
from moslora.recipe.changes import shared_keys
from moslora.recipe.fields import Section
from moslora.recipe.layers import shown
from moslora.recipe.yaml_text import parse
from moslora.runs.outcomes import OUTCOMES, OutcomeName

OTHERS = "others"
"""Key of the learning rates of all arms that have none of their own, in a mapping."""

LIST = ""
"""Their key where the file has a list alone."""


def _layer(value: Any) -> Any:
    """A recipe's name, alone, is a layer that extends it."""
    if isinstance(value, str):
        value = {"extends": value}
    if not isinstance(value, dict):
        raise ValueError("must be a recipe's name, or a mapping of keys as in a recipe file")
    return value


def _by_arm(rates: Any) -> Any:
    """A list of learning rates is one for all arms."""
    if isinstance(rates, dict):
        return rates
    return {LIST: rates}


Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
Layer = Annotated[dict[str, Any], BeforeValidator(_layer)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Strict(False)]
Rates = Annotated[tuple[PositiveFloat, ...], Strict(False), Field(min_length=1)]
Pair = Annotated[tuple[str, str], Strict(False)]


class ExperimentFile(Section):
    """The content of an experiment file."""

    recipe: Layer
    """All arms share it: a recipe's name, or keys as in a recipe file with `extends`."""

    arms: Annotated[dict[Name, Layer], Field(min_length=1)]
    """Each arm lays its own over it: a method's name, or keys as in a recipe file."""

    first: Annotated[tuple[str, ...], Strict(False)] = ()
    """The arms that run if none are named; empty for all."""

    learning_rates: Annotated[dict[str, Rates], BeforeValidator(_by_arm)]
    """Each arm uses the one with the lowest validation loss: of a list for all, or of its own or `others`'."""

    rate_seeds: Seeds = ()
    """Seeds of the runs that choose the learning rate; they are never scored."""

    seeds: Annotated[Seeds, Field(min_length=1)]
    """Seeds of the runs that are scored and compared."""

    contrast: Pair | None = None
    """The comparison named beforehand: the second arm against the first."""

    contrasts: Annotated[tuple[Pair, ...], Strict(False)] = ()
    """Or several."""

    against: str | None = None
    """Or that of every other arm against this one."""

    outcome: OutcomeName
    """The number compared."""

    also: Annotated[tuple[OutcomeName, ...], Strict(False)] = ()
    """Other outcomes named beforehand."""

    def rates(self, arm: str) -> tuple[float, ...]:
        """The learning rates tried for ``arm``."""
        for key in (arm, OTHERS, LIST):
            if key in self.learning_rates:
                return self.learning_rates[key]
        return ()

    @property
    def searched(self) -> list[str]:
        """The arms with several rates, among which a search chooses."""
        return [arm for arm in self.arms if len(self.rates(arm)) > 1]

    @property
    def named(self) -> tuple[tuple[str, str], ...]:
        """All comparisons named beforehand."""
        found = []
        if self.contrast is not None:
            found.append(self.contrast)
        found += self.contrasts
        if self.against is not None:
            found += [(self.against, arm) for arm in self.arms if arm != self.against]
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Planned:
    """One run: an arm with a learning rate and a seed. ``scored`` is false for one that only chooses the rate."""

    arm: str
    recipe: Recipe
    scored: bool

    @property
    def name(self) -> str:
        return self.recipe.name


def run_name(arm: str, learning_rate: float, seed: int) -> str:
    return f"{arm}-{learning_rate:g}-{seed}"


@dataclass(frozen=True)
class Experiment:
    """An experiment with the recipe of every arm, all checked.

    Attributes:
        name: of its file, without the ending.
        path: of its file.
        file: what was written.
        recipes: arm -> recipe, still without learning rate and seed.
    """

    name: str
    path: Path
    file: ExperimentFile
    recipes: Mapping[str, Recipe]

    def planned(self, choices: Sequence[tuple[str, float]], *, scored: bool) -> list[Planned]:
        """The runs of arms with learning rates, seed after seed. Validation questions are asked if the file has their
        number, or if they decide."""
        seeds = self.file.rate_seeds
        if scored:
            seeds = self.file.seeds
        found = []
        for seed, (arm, rate) in product(seeds, choices):
            training = self.recipes[arm].training
            changed: dict[str, Any] = {"learning_rate": rate}
            if training.validation_questions is None and not training.is_selected_by_accuracy:
                changed["validation_questions"] = 0
            training = training.model_copy(update=changed)
            update = {"name": run_name(arm, rate, seed), "seed": seed, "training": training}
            found.append(Planned(arm, self.recipes[arm].model_copy(update=update), scored))
        return found

    def search(self, arms: tuple[str, ...]) -> list[Planned]:
        """The runs that choose the learning rates; none of an arm with one rate."""
        choices: list[tuple[str, float]] = []
        for arm in arms:
            if arm in self.file.searched:
                choices += [(arm, rate) for rate in self.file.rates(arm)]
        return self.planned(choices, scored=False)

    def chosen_arms(self, named: tuple[str, ...]) -> tuple[str, ...]:
        """The arms ``named`` on the command line, ``all`` among them, or else the first ones.

        Raises:
            UsageError: an unknown arm.
        """
        known = tuple(self.recipes)
        unknown = [name for name in named if name not in (*known, "all")]
        if unknown:
            raise UsageError(f"{', '.join(unknown)}: no such arm; must be all, or among {', '.join(known)}")
        wanted = named or self.file.first
        if not wanted or "all" in wanted:
            return known
        return tuple(arm for arm in known if arm in wanted)


def load_experiment(source: str) -> Experiment:
    """Reads an experiment file, or a built-in one, and resolves the recipe of every arm.

    Raises:
        UsageError: one line for every fault.
    """
    path = find_recipe(source, kind="experiment")
    origin = shown(path)
    file = _read_file(path, origin)
    faults = [f"{origin}: {fault}" for fault in _faults(file)]
    shared = (f"{origin}: recipe", file.recipe)
    try:
        common = stack_recipe([shared], name=path.stem, folder=path.parent)
    except UsageError as error:
        raise UsageError("\n".join([*faults, str(error)])) from None
    recipes = {}
    for arm, layer in file.arms.items():
        own = (f"{origin}: arms.{arm}", layer)
        try:
            recipes[arm] = stack_recipe([shared, own], name=path.stem, folder=path.parent)
        except UsageError as error:
            faults.append(str(error))
    faults += [f"{origin}: {fault}" for fault in _not_comparable(file, common, recipes)]
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
        text = {
            "missing": "is missing",
            "extra_forbidden": f"unknown key; must be one of {', '.join(ExperimentFile.model_fields)}",
            "tuple_type": "must be a list",
            "too_short": "must have at least one entry",
            "model_type": "must be a mapping of keys, such as recipe, arms, seeds",
        }.get(fault["type"], fault["msg"].removeprefix("Value error, ").replace("should ", "must "))
        place = ".".join(str(part) for part in fault["loc"] if part not in ("[key]", LIST))
        if place:
            text = f"{place}: {text}"
        yield text


def _faults(file: ExperimentFile) -> Iterator[str]:
    """Parts of the file that do not fit together."""
    if OTHERS in file.arms and LIST not in file.learning_rates:
        yield f"arms.{OTHERS}: in learning_rates, that is all arms without rates of their own; choose another name"
    with_rates = [key for key in file.learning_rates if key not in (OTHERS, LIST)]
    compared = chain(*file.named)
    for key, arms in {"first": file.first, "learning_rates": with_rates, "contrast or against": compared}.items():
        for arm in dict.fromkeys(arms):
            if arm not in file.arms:
                yield f"{key}: {arm} is not an arm; must be one of {', '.join(file.arms)}"
    for one, other in file.named:
        if one == other:
            yield f"contrast: {one} against itself; name two arms"
    if not file.named:
        yield "contrast: is missing; name two arms, several such pairs in contrasts, or an arm in against"
    without = [arm for arm in file.arms if not file.rates(arm)]
    if without:
        yield f"learning_rates: none for {', '.join(without)}; add them, or {OTHERS} for all that have none"
    in_both = sorted({*file.seeds} & {*file.rate_seeds})
    if in_both:
        yield f"rate_seeds: {in_both[0]} is also among the seeds; the rate must be chosen with seeds of its own"
    if file.searched and not file.rate_seeds:
        yield "rate_seeds: is missing; several learning_rates need seeds to choose among them"
    twice = _names_of_several_runs(file)
    if twice:
        yield f"{len(twice)} runs would share a folder with another, such as {twice[0]}; change an arm, rate or seed"


def _names_of_several_runs(file: ExperimentFile) -> list[str]:
    """Names in small letters, as some file systems do not tell the case apart."""
    names: Counter[str] = Counter()
    for arm in file.arms:
        for rate, seed in product(file.rates(arm), (*file.rate_seeds, *file.seeds)):
            names[run_name(arm, rate, seed).lower()] += 1
    return [name for name, count in names.items() if count > 1]


def _not_comparable(file: ExperimentFile, common: Recipe, recipes: Mapping[str, Recipe]) -> Iterator[str]:
    """Reasons why the arms' recipes cannot be compared."""
    for arm, recipe in recipes.items():
        changed = [key for key in shared_keys(Recipe) if attrgetter(key)(recipe) != attrgetter(key)(common)]
        if changed:
            yield f"arms.{arm}: changes {', '.join(changed)}, which all arms share; set it for all, outside the arms"
    first_with: dict[str, str] = {}  # a recipe's text -> the first arm with it
    for arm, recipe in recipes.items():
        text = recipe.model_copy(update={"name": "same"}).to_yaml()
        other = first_with.setdefault(text, arm)
        if other != arm:
            yield f"arms.{arm}: changes nothing that arm {other} does not change; the two are one recipe"
    if file.searched and not common.data.validation_rows:
        yield "data.validation_rows = 0: the learning rate is chosen on them; set some under recipe"
    for outcome in (file.outcome, *file.also):
        yield from _no_such_outcome(outcome, common)


def _no_such_outcome(outcome: str, common: Recipe) -> Iterator[str]:
    """Why the runs have no such outcome: their protocol does not give it, or nothing is asked that has it."""
    measure = OUTCOMES[outcome]
    protocol = PROTOCOLS[common.evaluation.protocol]
    if measure.scored and not protocol.scores_options:
        scoring = joined_names(reader for reader in readers(common.data.format) if reader.scores_options)
        fix = f"choose accuracy, or protocol {scoring}"
        yield f"outcome: {outcome} does not exist under protocol {protocol.name}; {fix}"
    in_words = [task.name for task in common.questions.tasks if task.is_open_ended]
    if measure.scored and in_words:
        yield f"outcome: {outcome} does not exist for answers in words ({', '.join(in_words)}); choose accuracy"
    kind = "questions, such as obqa"
    if measure.of_texts:
        kind = "texts, such as passages"
    if not any(task.is_text == measure.of_texts for task in common.questions.tasks):
        yield f"outcome: {outcome} is of {kind}, and none are asked; add some to evaluation.tasks"
