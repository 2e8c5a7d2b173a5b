"""Processes and devices of one command: processes are started, compared and ended together."""
