"""The vLLM processes: how they are started, what they print, why they ended."""
