"""A comparison for programs: one contrast as JSON, and whether a required conclusion was reached."""

import json
from dataclasses import dataclass
from typing import Any

from moslora.choices import Required
from moslora.compare.comparison import Comparison
from moslora.compare.conclusion import TOO_FEW, conclusions, verdict_on
from moslora.compare.contrast import Contrast
from moslora.compare.display import members_of
from moslora.compare.equality import margin_in_words, p_worse
from moslora.compare.statistics import LEVEL, Member
from moslora.errors import UsageError
from moslora.runs.scores import MACRO

NOT_CONCLUDED = 4
"""Exit code if the required conclusion was not reached."""


@dataclass(frozen=True)
class Gate:
    """The only contrast of a comparison, and the conclusion that is required of it, if any.

    Raises:
        UsageError: there are several contrasts; or the requirement needs a direction or a margin that is not known.
    """

    comparison: Comparison
    required: Required | None = None

    def __post_init__(self) -> None:
        if self.comparison.main is None:
            names = ", ".join(arm.name for arm in self.comparison.arms)
            raise UsageError(f"--require and --json are of one contrast; name it with --contrast A,B among {names}")
        outcome = self.comparison.outcome
        if self.required in ("better", "not-worse") and not outcome.direction:
            raise UsageError(
                f"--require {self.required}: which {outcome.name} is better is not known; add --better higher, or lower"
            )
        if self.required in ("not-worse", "equal") and not self.comparison.margin.size:
            raise UsageError(
                f"--require {self.required}: needs a margin, the largest difference of {outcome.name} that counts as"
                " none; add --margin"
            )

    @property
    def contrast(self) -> Contrast:
        """Contrast that the requirement is about."""
        assert self.comparison.main is not None
        return self.comparison.main

    @property
    def member(self) -> Member:
        """Interval and p values of the contrast in its family."""
        ((_, member),) = members_of(self.comparison)
        return member

    @property
    def concluded(self) -> bool:
        """Whether the required conclusion was reached.

        `better` than the first arm; `not-worse`, as the 95 % interval excludes a loss of the margin or more; or `equal`
        within the margin.
        """
        verdict = verdict_on(self.contrast, self.member)
        if verdict == TOO_FEW:
            return False
        if self.required == "not-worse":
            return p_worse(self.contrast, self.comparison.margin) <= LEVEL / 2
        return self.member.equal <= LEVEL if self.required == "equal" else verdict == self.required

    def __str__(self) -> str:
        """Return a line on the requirement and whether it was concluded."""
        within = (
            "" if self.required == "better" else f" within {margin_in_words(self.contrast, self.comparison.margin)}"
        )
        return f"required: {self.required}{within}; {'' if self.concluded else 'NOT '}concluded"

    def to_json(self) -> str:
        """Return the contrast as JSON, with differences in the unit of the outcome."""
        contrast, outcome = self.contrast, self.contrast.outcome
        effect = contrast.effects[MACRO]
        margin = self.comparison.margin
        values: dict[str, Any] = {
            "before": contrast.before,
            "after": contrast.after,
            "outcome": outcome.name,
            "unit": outcome.unit,
            "n": contrast.questions(),
            "seeds": contrast.seeds,
            "difference": outcome.factor * effect.difference,
            "interval": [outcome.factor * end for end in effect.interval],
            "p": effect.p,
            "margin": str(margin) if margin.size else None,
            "p_equal": self.member.equal if margin.size else None,
            "verdict": verdict_on(contrast, self.member),
            "sentence": " ".join(conclusions(self.comparison)),
        }
        if self.required:
            values |= {"required": self.required, "concluded": self.concluded}
        return json.dumps(values, indent=2, ensure_ascii=False)
