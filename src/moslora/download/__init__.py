"""Downloads: wheels from PyPI, and use of the hub's cache if the hub does not answer."""
