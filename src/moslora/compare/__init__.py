"""Comparison of runs, question by question and seed by seed: what can be concluded, and what cannot."""
