"""Checks of a request body: it is parsed once, limited, and passed to vLLM as the object that was checked."""
