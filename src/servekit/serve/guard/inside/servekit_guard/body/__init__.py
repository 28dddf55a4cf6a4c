"""What a request body may hold: read once, bounded before vLLM sees it, and handed to vLLM as it was checked."""
