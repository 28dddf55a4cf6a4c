"""The proof on a GPU; README.md beside this says how to run it."""
