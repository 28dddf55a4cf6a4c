"""Files that a profile names, read as vLLM 0.20.2 would read them at its start."""
