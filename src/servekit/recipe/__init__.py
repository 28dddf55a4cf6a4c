"""Makes the checkpoint that is served, and judges one: `serve` imports nothing of it."""
