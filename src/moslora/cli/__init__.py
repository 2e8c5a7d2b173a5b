"""The command line. Each command imports what it needs when it runs, so that --help is fast."""

from moslora.cli.main import app, main

__all__ = ["app", "main"]
