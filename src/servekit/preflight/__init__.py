"""Preflight: know before the start whether profile, checkpoint and host fit, and what they will carry."""
