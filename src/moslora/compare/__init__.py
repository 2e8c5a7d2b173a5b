"""Runs against each other, question by question and seed by seed: what can be concluded, and what cannot."""
