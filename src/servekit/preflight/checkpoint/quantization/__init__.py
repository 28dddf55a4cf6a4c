"""quantization_config: what vLLM 0.20.2 reads from it, and which of its kernels can run the weights."""
