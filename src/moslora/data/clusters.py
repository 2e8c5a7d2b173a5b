"""Clusters of dependent questions, found by their texts: a shared passage, a shared pair of options, or equality."""

from collections.abc import Hashable, Mapping, Sequence

from moslora.data.overlap import normalized
from moslora.tasks import BUILT_IN, Example

LONG_CONTEXT = 100
"""Minimum length of a context that groups the questions of a task without a declared `cluster`. A shorter one may be a
subject or a heading, which independent questions share."""


def find_clusters(examples: Sequence[Example]) -> dict[str, str]:
    """Find clusters of questions that share a text, and in a user's task also of equal questions.

    Returns:
        id of each later question of a cluster -> id of its first question.
    """
    shared = {example.id: _shared_text(example) for example in examples}
    questions: dict[str, Hashable] = {}  # with context and sorted options
    for example in examples:
        if example.task not in BUILT_IN and not example.is_text:
            options = [] if example.is_open_ended else sorted(example.choices)
            questions[example.id] = (example.context, example.question, *options)
    return clusters_of(shared, questions)


def clusters_of(shared: Mapping[str, str], questions: Mapping[str, Hashable]) -> dict[str, str]:
    """Group questions that share a text, and of the others those that are equal.

    Args:
        shared: id -> the text that a question shares with others, or "". Texts with the same words form a cluster. A
            text that all questions share forms none.
        questions: id -> the question itself, by which questions without a shared text are compared. A question is in
            no cluster if it has neither a shared text nor a truthy value here.

    Returns:
        id of each later question of a cluster -> id of its first question.
    """
    words = {id: normalized(text) for id, text in shared.items()}
    all_share = len(set(words.values())) == 1
    first: dict[Hashable, str] = {}  # what a cluster has in common -> the first question of it
    clusters = {}
    for id in shared:
        common: Hashable = ("words", words[id]) if words[id] and not all_share else questions.get(id)
        if not common:
            continue
        first_id = first.setdefault(common, id)
        if first_id != id:
            clusters[id] = first_id
    return clusters


def _shared_text(example: Example) -> str:
    """Text that a question shares with the others of its cluster; empty if there is none."""
    if example.cluster is not None:
        return example.cluster
    context = example.context or ""
    if example.task not in BUILT_IN:
        return context if len(context) >= LONG_CONTEXT else ""
    shared = BUILT_IN[example.task].shared
    if shared == "options":
        return "\n".join(sorted(example.choices))
    return context if shared == "context" else ""
