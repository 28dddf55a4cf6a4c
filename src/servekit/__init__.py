"""servekit: one validated file, one command, one dedicated OpenAI-compatible vLLM endpoint."""

__version__ = "0.1.0"

ENGINE_VERSION = "0.20.2"
"""The vLLM release that servekit is made for: its arguments, routes, metrics and faults are known."""
