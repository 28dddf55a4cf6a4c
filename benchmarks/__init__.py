"""Benchmarks that measure two sides alternately in one run and report ratios; `python -m benchmarks` runs them.

A module here is a benchmark when it has

- `NAME`, its name on the command line;
- `run(rounds)`, which measures and returns JSON-serializable values; with `rounds` None it uses its default;
- `table(result)`, which formats those values as lines for a person.

The first line of its docstring says what it measures.
"""
