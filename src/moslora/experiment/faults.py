"""What is wrong with an experiment file: parts that do not fit together, and arms that cannot be compared."""

from collections.abc import Iterator, Mapping
from itertools import chain, product
from operator import attrgetter

from moslora.experiment.keys import LIST, OTHERS, ExperimentFile, run_name
from moslora.prompts.protocols import PROTOCOLS
from moslora.recipe import Recipe
from moslora.recipe.changes import Arms, marked_fields
from moslora.runs.outcomes import OUTCOMES


def faults_of(file: ExperimentFile) -> Iterator[str]:
    """Parts of the file that do not fit together."""
    with_rates = [key for key in file.learning_rates if key not in (OTHERS, LIST)]
    compared = chain(*file.named)
    of = [file.trained(arm) for arm in file.arms]
    named = {"first": file.first, "learning_rates": with_rates, "contrast or against": compared, "of": of}
    for key, arms in named.items():
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
    for arm in file.arms:  # in lower case, as some file systems do not tell the case apart
        names += [run_name(arm, rate, seed).lower() for rate, seed in product(file.rates(arm), seeds)]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        yield f"two runs are called {twice[0]}; change an arm, rate or seed: rate_seeds cannot be among the seeds"


def not_comparable(file: ExperimentFile, common: Recipe, recipes: Mapping[str, Recipe]) -> Iterator[str]:
    """Reasons why the arms' recipes cannot be compared."""
    for arm, recipe in recipes.items():
        changed = [key for key, _ in marked_fields(Recipe, Arms) if attrgetter(key)(recipe) != attrgetter(key)(common)]
        if changed:
            yield f"arms.{arm}: changes {', '.join(changed)}, which all arms share; set it for all, outside the arms"
    chosen = ["the learning rate"] if file.searched else []
    for arm in file.arms:
        applied = file.applied(arm)
        if applied and applied.strength == "recommended":
            chosen.append(f"the strength of {arm}")
    if chosen and not common.data.validation_rows:
        yield f"data.validation_rows = 0: {' and '.join(chosen)} is chosen on them; set some under recipe"
    for outcome in (file.outcome, *file.also):
        if not _is_measured(outcome, file, common):
            yield (
                f"outcome: {outcome} does not exist for these runs by protocol {common.evaluation.protocol}: it needs"
                " questions, for probabilities with options that the protocol scores; nats_per_byte needs passages,"
                " validation_loss validation rows and several seeds"
            )


def _is_measured(outcome: str, file: ExperimentFile, common: Recipe) -> bool:
    """Whether the runs have such an outcome: their protocol gives it, and something is asked that has it."""
    measure = OUTCOMES[outcome]
    protocol = PROTOCOLS[common.evaluation.protocol]
    tasks = [task for task in common.questions.tasks if task.is_text == measure.of_texts]
    if measure.of_runs:
        return common.data.validation_rows > 0 and len(file.seeds) > 1
    if measure.scored and any(task.is_open_ended for task in tasks):
        return False
    if measure.scored and not (protocol.scores_options and (protocol.divides_scores or not measure.per_character)):
        return False
    return bool(tasks)
