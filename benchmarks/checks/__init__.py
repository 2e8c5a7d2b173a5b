"""Long checks: kills and damages, planned memory, llama.cpp, error rates of comparisons."""
