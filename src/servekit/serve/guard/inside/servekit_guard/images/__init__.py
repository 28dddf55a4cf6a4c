"""Images: where they may come from, what is decoded, and vLLM's cache of them."""
