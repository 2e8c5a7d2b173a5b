"""The article's systems compared, measured and drawn: results-runs.md, methods.md, argument.md and proof.md."""
