"""The vLLM processes: their start, their output, and why they ended."""
