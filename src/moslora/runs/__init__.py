"""Runs on disk: where they lie, their manifest, and the adapter folder that passes between commands."""
