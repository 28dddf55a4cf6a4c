"""Fills the trace: the GPUs' readings, the metrics page, the command."""
