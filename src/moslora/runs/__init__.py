"""Runs on disk: finding them, their manifest, and the adapter folder that commands pass on."""
