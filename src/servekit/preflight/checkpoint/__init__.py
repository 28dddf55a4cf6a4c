"""The checkpoint, checked from its headers and configuration alone: preflight reads no weight."""
