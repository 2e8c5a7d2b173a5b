"""What is wrong with an experiment file: parts that do not fit together, and arms that cannot be compared."""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain, product
from operator import attrgetter

from moslora.experiment.keys import LIST, OTHERS, ExperimentFile, run_name
from moslora.prompts.protocols import PROTOCOLS, joined_names, readers
from moslora.recipe import Recipe
from moslora.recipe.changes import Arms, marked_fields
from moslora.runs.outcomes import OUTCOMES


def faults_of(file: ExperimentFile) -> Iterator[str]:
    """Parts of the file that do not fit together."""
    if OTHERS in file.arms and LIST not in file.learning_rates:
        yield f"arms.{OTHERS}: reserved: in learning_rates it stands for all arms without rates; choose another name"
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
    if file.margin is not None and file.margin.of_gain and OUTCOMES[file.outcome].of_runs:
        yield f"margin: {file.margin} of the gain over the base, which has no {file.outcome}; give a number"
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


def not_comparable(file: ExperimentFile, common: Recipe, recipes: Mapping[str, Recipe]) -> Iterator[str]:
    """Reasons why the arms' recipes cannot be compared."""
    for arm, recipe in recipes.items():
        changed = [key for key, _ in marked_fields(Recipe, Arms) if attrgetter(key)(recipe) != attrgetter(key)(common)]
        if changed:
            yield f"arms.{arm}: changes {', '.join(changed)}, which all arms share; set it for all, outside the arms"
    first_with: dict[tuple[str, frozenset[float]], str] = {}  # a recipe's text and its rates -> the first arm with them
    for arm, recipe in recipes.items():
        text = recipe.model_copy(update={"name": "same"}).to_yaml()
        other = first_with.setdefault((text, frozenset(file.rates(arm))), arm)
        if other != arm:
            yield f"arms.{arm}: changes nothing that arm {other} does not change; leave it out, or give it another rate"
    if file.searched and not common.data.validation_rows:
        yield "data.validation_rows = 0: the learning rate is chosen on them; set some under recipe"
    for outcome in (file.outcome, *file.also):
        yield from _no_such_outcome(outcome, file, common)


def _no_such_outcome(outcome: str, file: ExperimentFile, common: Recipe) -> Iterator[str]:
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
    if measure.per_character and protocol.scores_options and not protocol.divides_scores:
        yield f"outcome: {outcome} does not exist under protocol {protocol.name}; choose log_probability"
    if measure.of_runs:
        if not common.data.validation_rows:
            yield f"outcome: {outcome} is of held-out rows, and data.validation_rows = 0; set some under recipe"
        if len(file.seeds) == 1:
            yield f"outcome: {outcome} is one number of each run, so one seed says nothing; add others to seeds"
        return
    kind = "questions, such as obqa"
    if measure.of_texts:
        kind = "texts, such as passages"
    if not any(task.is_text == measure.of_texts for task in common.questions.tasks):
        yield f"outcome: {outcome} needs {kind}, and none are asked; add some to evaluation.tasks"
