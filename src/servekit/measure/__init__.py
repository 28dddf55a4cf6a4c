"""Figures of an endpoint: statistics and energy. Beside the launcher's own way: `servekit serve` imports none of it."""
