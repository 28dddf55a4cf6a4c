"""The host: GPUs, ports, folders and patches."""
