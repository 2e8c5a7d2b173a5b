"""Keys of an experiment file. How they fit together is checked in `moslora.experiment.file`."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PositiveFloat, Strict, Tag

from moslora.compare.index import MarginText
from moslora.recipe.fields import Section
from moslora.runs.outcomes import OUTCOMES, OutcomeName
from moslora.runs.strength import MAX_STRENGTH
from moslora.schema import Listed

OTHERS = "others"
"""Key of the learning rates for all arms without an entry."""

LIST = ""
"""Key of the learning rates where the file has a list instead of a mapping."""

APPLIED = "[of]"
"""Name of an arm that trains nothing in the location of pydantic's errors."""


class AppliedArm(Section):
    """An arm that trains nothing: another arm's adapters at a strength."""

    of: str
    """Arm whose adapters are applied."""

    strength: Annotated[float, Field(gt=0, le=MAX_STRENGTH)] | Literal["recommended"]
    """Strength of the adapters: a number, or for each adapter what `moslora strength` recommends."""


def _layer(value: Any) -> Any:
    """Return an arm's keys of a recipe as a mapping; a recipe's name alone becomes ``{extends: NAME}``."""
    if isinstance(value, str):
        value = {"extends": value}
    if not isinstance(value, dict):
        raise ValueError("must be a recipe's name, or a mapping of keys as in a recipe file")
    return value


def _kind(value: Any) -> str:
    """Return the tag by which pydantic reads an arm: `APPLIED` for one that trains nothing, else `LIST`."""
    return APPLIED if isinstance(value, dict) and "of" in value else LIST


def _by_arm(rates: Any) -> Any:
    """Return a mapping from arms to learning rates; a plain list, which is for every arm, is put under `LIST`."""
    if isinstance(rates, dict):
        return rates
    return {LIST: rates}


Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
Layer = Annotated[dict[str, Any], BeforeValidator(_layer)]
Arm = Annotated[Annotated[AppliedArm, Tag(APPLIED)] | Annotated[Layer, Tag(LIST)], Discriminator(_kind)]
Seeds = Listed[Annotated[int, Field(ge=0, lt=2**32)]]
Rates = Annotated[Listed[PositiveFloat], Field(min_length=1)]
Pair = Annotated[tuple[str, str], Strict(False)]


class ExperimentFile(Section):
    """Content of an experiment file."""

    recipe: Layer
    """All arms share it: a recipe's name, or keys as in a recipe file with `extends`."""

    arms: Annotated[dict[Name, Arm], Field(min_length=1)]
    """Each arm lays its own over it: a method's name, or keys as in a recipe file. Or it trains nothing: `of` another
    arm, at a `strength`."""

    first: Listed[str] = ()
    """The arms that run if none are named; empty for all."""

    learning_rates: Annotated[dict[str, Rates], BeforeValidator(_by_arm)]
    """Each arm uses the one with the lowest validation loss: of a list for all, or of its own or `others`'."""

    rate_seeds: Seeds = ()
    """Seeds of the runs that choose the learning rate, each with every rate; they are never scored."""

    seeds: Annotated[Seeds, Field(min_length=1)]
    """Seeds of the runs that are scored and compared."""

    contrast: Pair | None = None
    """The comparison named beforehand: the second arm against the first."""

    contrasts: Listed[Pair] = ()
    """Or several."""

    against: str | None = None
    """Or that of every other arm against this one."""

    outcome: OutcomeName = Field(description=f"The number compared: {', '.join(OUTCOMES)}.")

    margin: MarginText | None = None
    """The largest difference of `outcome` that does not matter: a number, or a share of the gain, such as 20%."""

    also: Listed[OutcomeName] = ()
    """Other outcomes named beforehand."""

    def applied(self, arm: str) -> AppliedArm | None:
        """Return the file's entry of an arm that trains nothing; ``None`` for an arm that trains."""
        layer = self.arms[arm]
        return layer if isinstance(layer, AppliedArm) else None

    def trained(self, arm: str) -> str:
        """Return the arm that trains the adapters of ``arm``: itself, or the arm that it applies."""
        applied = self.applied(arm)
        return applied.of if applied else arm

    def rates(self, arm: str) -> tuple[float, ...]:
        """Return the learning rates tried for ``arm``."""
        for key in (self.trained(arm), OTHERS, LIST):
            if key in self.learning_rates:
                return self.learning_rates[key]
        return ()

    @property
    def searched(self) -> list[str]:
        """Arms with several learning rates, of which a search chooses one."""
        return [arm for arm in self.arms if len(self.rates(arm)) > 1 and not self.applied(arm)]

    @property
    def named(self) -> tuple[tuple[str, str], ...]:
        """All planned comparisons."""
        pairs = []
        if self.contrast is not None:
            pairs.append(self.contrast)
        pairs += self.contrasts
        if self.against is not None:
            pairs += [(self.against, arm) for arm in self.arms if arm != self.against]
        return tuple(dict.fromkeys(pairs))


def run_name(arm: str, learning_rate: float, seed: int) -> str:
    """Return the name of a run, which is also that of its folder."""
    return f"{arm}-{learning_rate:g}-{seed}"
