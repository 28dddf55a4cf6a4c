"""The memory plan: GPU memory, KV cache and what runs out first."""
