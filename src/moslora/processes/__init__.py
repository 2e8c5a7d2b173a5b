"""Several processes as one command: started, compared, and ended together."""
