"""A server against a run: what it computes, by its answers to questions that the run has answered."""
