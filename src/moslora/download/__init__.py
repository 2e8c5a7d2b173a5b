"""Downloads: wheels from PyPI, and the hub's cache."""
