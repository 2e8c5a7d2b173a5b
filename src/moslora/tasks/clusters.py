"""Clusters: questions that share a text, an option pair or a source, and are therefore not independent.

A cluster is named by its first question in the set, so its name does not depend on limit, run or machine. The clusters
of the known sets are stored in this folder; `moslora.data.clusters` finds those of other questions by their texts.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

Clusters = Mapping[str, str]
"""Id of a question -> id of the first question of its cluster. First and single questions have no entry."""

KNOWN = Path(__file__).with_name("known_clusters.json")
"""The clusters of the test sets. First part of the ids -> ``by``, what is shared; ``data``, the set's
`moslora.data.sources.data_hash` from each source; ``clusters``, the last parts of the ids in each, in the order of the
set."""


@cache
def known_clusters() -> Mapping[str, Clusters]:
    """Hash of a set's questions -> the set's `Clusters`, also clusters that its rows do not reveal: HellaSwag's
    questions on one video, and the texts of ``passages`` from one article."""
    clusters_of = {}
    for begin, known in json.loads(KNOWN.read_bytes()).items():
        clusters = {}
        for first, *others in known["clusters"]:
            for other in others:
                clusters[f"{begin}/{other}"] = f"{begin}/{first}"
        for data in known["data"]:
            clusters_of[data] = clusters
    return clusters_of
