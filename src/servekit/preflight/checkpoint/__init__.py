"""The checkpoint, judged from its headers and configuration alone: no weight is read."""
