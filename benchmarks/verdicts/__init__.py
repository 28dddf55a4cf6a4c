"""Mutated checkpoints: the verdict of `servekit check` against the engine's own."""
