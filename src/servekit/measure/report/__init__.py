"""The card's table from records, and the check that a record follows from its trace."""
