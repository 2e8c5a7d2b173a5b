"""Check of the engine on this machine: each piece, and whole training steps, compared with the plain formulas."""
