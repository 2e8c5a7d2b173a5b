"""Experiments: arms × learning rates × seeds, each run once, and a run trained again."""
