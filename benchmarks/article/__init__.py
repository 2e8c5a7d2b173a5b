"""The article's systems compared, measured and drawn: results.md, methods.md, argument.md and proof.md."""
