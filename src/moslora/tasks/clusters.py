"""Clusters: questions that share a text, an option pair or a source, and are therefore not independent.

A cluster is named by the first question of the set that is in it. So it is the same under every limit, in every run and
on every machine, as long as the set is the same. Those of the known sets are stored here; those of other questions are
found by their texts (`moslora.data.clusters`).
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

Clusters = Mapping[str, str]
"""Id of a question -> id of the first question of its cluster. Those that are not here are the first, or alone."""

KNOWN = Path(__file__).with_name("known_clusters.json")
"""The clusters of the test sets. First part of the ids -> ``by``, what is shared; ``data``, the set's
`moslora.data.sources.data_hash` from each source; ``clusters``, the last parts of the ids in each, in the order of the
set."""


@cache
def known_clusters() -> Mapping[str, Clusters]:
    """Hash of a set's questions -> their clusters. They need not be in the rows: HellaSwag's are those of its videos,
    and those of the passages are their articles."""
    found = {}
    for begin, known in json.loads(KNOWN.read_bytes()).items():
        clusters = {}
        for first, *others in known["clusters"]:
            for other in others:
                clusters[f"{begin}/{other}"] = f"{begin}/{first}"
        for data in known["data"]:
            found[data] = clusters
    return found
