"""The real client packages against a running endpoint."""
