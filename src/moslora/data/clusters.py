"""The clusters of questions by their texts: those that share a text or an option pair, or are equal."""

from collections.abc import Hashable, Mapping, Sequence

from moslora.data.overlap import normalized
from moslora.tasks import BUILT_IN, Example

LONG_CONTEXT = 100
"""Minimum number of characters of a context that groups the questions of a task that does not say what does. A shorter
one may be a subject or a heading, which questions share without being about the same thing."""


def find_clusters(examples: Sequence[Example]) -> dict[str, str]:
    """The clusters of all questions of a set, by their texts; of a user's task also those that are equal."""
    shared = {example.id: _shared_text(example) for example in examples}
    questions: dict[str, Hashable] = {}  # with their context, and the options in any order
    for example in examples:
        if example.task not in BUILT_IN and not example.is_text:
            options = [] if example.is_open_ended else sorted(example.choices)
            questions[example.id] = (example.context, example.question, *options)
    return clusters_of(shared, questions)


def clusters_of(shared: Mapping[str, str], questions: Mapping[str, Hashable]) -> dict[str, str]:
    """The clusters of questions: id -> id of the first in its cluster.

    Args:
        shared: id -> the text that a question shares with others, or "": those whose texts have the same words are a
            cluster. A text that all of them share says nothing, and groups none.
        questions: id -> the question itself, or something false. Of those that share no text the equal ones are a
            cluster.
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
    """What a question shares with the others of its cluster; empty for nothing."""
    if example.cluster is not None:
        return example.cluster
    context = example.context or ""
    if example.task not in BUILT_IN:
        return context if len(context) >= LONG_CONTEXT else ""
    shared = BUILT_IN[example.task].shared
    if shared == "options":
        return "\n".join(sorted(example.choices))
    return context if shared == "context" else ""
