"""The standard loads, by the engine's own load generator, each under `measure`."""
