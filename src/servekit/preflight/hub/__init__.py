"""A model of the Hugging Face hub: what of it is in the local cache, what the hub says of the rest, its hashes."""
