"""What Gemma 4 writes, read as reasoning, content and tool calls: in place of vLLM's parsers of the same name."""
