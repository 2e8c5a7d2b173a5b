"""What comes from outside: wheels of PyPI, and the hub's cache."""
