"""Replicas in Docker behind the router and the gateway, under load."""
