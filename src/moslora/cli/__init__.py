"""The command line: parses, calls, prints. What it calls is imported when it is called."""

from moslora.cli.main import app, main

__all__ = ["app", "main"]
