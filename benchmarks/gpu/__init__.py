"""The proof on a GPU; README.md in this folder shows how to run it."""
