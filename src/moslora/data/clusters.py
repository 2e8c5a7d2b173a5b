"""The clusters of questions by their texts: those that share a text or an option pair."""

from collections.abc import Mapping, Sequence

from moslora.data.overlap import normalized
from moslora.tasks import BUILT_IN, Example

LONG_CONTEXT = 100
"""Minimum number of characters of a context that groups the questions of a task that does not say what does. A shorter
one may be a subject or a heading, which questions share without being about the same thing."""


def find_clusters(examples: Sequence[Example]) -> dict[str, str]:
    """The clusters of all questions of a set, by their texts."""
    return clusters_of({example.id: _shared_text(example) for example in examples})


def clusters_of(texts: Mapping[str, str]) -> dict[str, str]:
    """The clusters of questions, id -> the text that a question shares with others, or "": those whose texts have the
    same words. A text that all of them share says nothing, and groups none."""
    first: dict[str, str] = {}  # words -> the first question that has them
    found = {}
    for id, text in texts.items():
        words = normalized(text)
        if not words:
            continue
        first_id = first.setdefault(words, id)
        if first_id != id:
            found[id] = first_id
    if len(found) == len(texts) - 1:
        return {}
    return found


def _shared_text(example: Example) -> str:
    """What a question shares with the others of its cluster; empty for nothing."""
    if example.cluster is not None:
        return example.cluster
    context = example.context or ""
    if example.task in BUILT_IN:
        shared = BUILT_IN[example.task].shared
        if shared == "options":
            return "\n".join(sorted(example.choices))
        groups = shared == "context"
    else:
        groups = len(context) >= LONG_CONTEXT
    if groups:
        return context
    return ""
