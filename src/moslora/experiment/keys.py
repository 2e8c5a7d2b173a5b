"""The keys of an experiment file."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PositiveFloat, Strict, Tag

from moslora.compare.margin import Margin, read_margin
from moslora.recipe.fields import Section
from moslora.runs.outcomes import OUTCOMES, OutcomeName
from moslora.runs.strength import MAX_STRENGTH
from moslora.schema import Listed

OTHERS = "others"
"""Key of the learning rates of all arms that have none of their own, in a mapping."""

LIST = ""
"""Their key where the file has a list alone."""

APPLIED = "[of]"
"""What pydantic calls an arm that trains nothing; of others it says nothing."""


class AppliedArm(Section):
    """An arm that trains nothing: another arm's adapters at a strength."""

    of: str
    """The other arm."""

    strength: Annotated[float, Field(gt=0, le=MAX_STRENGTH)] | Literal["recommended"]
    """How strongly they are applied, or for each of them as `moslora strength` recommends."""


def _layer(value: Any) -> Any:
    """A recipe's name, alone, is a layer that extends it."""
    if isinstance(value, str):
        value = {"extends": value}
    if not isinstance(value, dict):
        raise ValueError("must be a recipe's name, or a mapping of keys as in a recipe file")
    return value


def _kind(value: Any) -> str:
    """Which of the two kinds of arms ``value`` is."""
    return APPLIED if isinstance(value, dict) and "of" in value else LIST


def _by_arm(rates: Any) -> Any:
    """A list of learning rates is one for all arms."""
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
    """The content of an experiment file."""

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

    margin: Annotated[Margin | None, BeforeValidator(read_margin)] = None
    """The largest difference of `outcome` that does not matter: a number, or a share of the gain, such as 20%."""

    also: Listed[OutcomeName] = ()
    """Other outcomes named beforehand."""

    def applied(self, arm: str) -> AppliedArm | None:
        """What ``arm`` applies, if it trains nothing."""
        layer = self.arms[arm]
        return layer if isinstance(layer, AppliedArm) else None

    def trained(self, arm: str) -> str:
        """The arm that trains what ``arm`` applies: itself, or another one."""
        applied = self.applied(arm)
        return applied.of if applied else arm

    def rates(self, arm: str) -> tuple[float, ...]:
        """The learning rates tried for ``arm``."""
        for key in (self.trained(arm), OTHERS, LIST):
            if key in self.learning_rates:
                return self.learning_rates[key]
        return ()

    @property
    def searched(self) -> list[str]:
        """The arms with several rates, among which a search chooses."""
        return [arm for arm in self.arms if len(self.rates(arm)) > 1 and not self.applied(arm)]

    @property
    def named(self) -> tuple[tuple[str, str], ...]:
        """All comparisons named beforehand."""
        pairs = []
        if self.contrast is not None:
            pairs.append(self.contrast)
        pairs += self.contrasts
        if self.against is not None:
            pairs += [(self.against, arm) for arm in self.arms if arm != self.against]
        return tuple(dict.fromkeys(pairs))


def run_name(arm: str, learning_rate: float, seed: int) -> str:
    return f"{arm}-{learning_rate:g}-{seed}"
