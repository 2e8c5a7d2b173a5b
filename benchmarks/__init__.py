"""What makes the figures and tables of the documents, and checks that are too long for the tests; README.md lists all.

Each is a module that is run from the root of the repository: ``python -m benchmarks.ROOM.NAME``.
"""

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""The root of the repository."""

DOCS = ROOT / "docs"
