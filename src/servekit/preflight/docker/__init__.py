"""Docker and Compose on this host."""
