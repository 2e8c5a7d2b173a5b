"""Verify what a server computes: compare its answers with those of a run, its base and its checkpoints."""
