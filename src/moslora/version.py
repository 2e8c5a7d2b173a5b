"""The version of this package, and its folder."""

from pathlib import Path

__version__ = "0.1.0"
PACKAGE = Path(__file__).parent
