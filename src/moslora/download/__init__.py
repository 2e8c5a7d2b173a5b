"""Downloads: wheels from PyPI, and whether the hub answers."""
