"""Benchmarks: ratios taken side by side, in one run, in turns; `python -m benchmarks` runs them.

A module here is a benchmark when it has

- `NAME`, what it is called on the command line;
- `run(rounds)`, which measures and returns values that JSON can hold; `rounds` None is its own choice;
- `table(result)`, which gives those values as lines for a person.

The first line of its docstring says what it measures.
"""
