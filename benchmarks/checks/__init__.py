"""Long checks: kills, planned memory, llama.cpp, error rates of comparisons."""
