"""What this machine computes, compared with the plain formulas: piece by piece, and as whole training steps."""
