"""Per-layer embeddings in host memory against the same profile with them on the GPU, on one GPU held to an L4."""
