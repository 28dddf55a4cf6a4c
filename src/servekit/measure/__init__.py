"""Measures a running endpoint, and reports. `servekit serve` imports none of it.

`recording/` fills the raw trace, `figures/` computes the record from it, `report/` makes tables of records.
"""
