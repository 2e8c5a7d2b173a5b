"""Studies: several runs, compared."""
