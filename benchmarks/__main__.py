"""Run benchmarks and print a table for each: `python -m benchmarks [NAME...] [--rounds N] [--json FILE]`."""

import argparse
import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any, Protocol, cast

import benchmarks
from benchmarks.machine import describe_machine


class Benchmark(Protocol):
    """The interface of a benchmark module."""

    NAME: str
    __doc__: str | None

    def run(self, rounds: int | None) -> dict[str, Any]:
        """Measure; with `rounds` None the benchmark uses its default."""

    def table(self, result: dict[str, Any]) -> list[str]:
        """Format the result as lines."""


def main() -> None:
    """Run the chosen benchmarks one after the other."""
    found = find_benchmarks()
    options = parse(found)
    machine = describe_machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    results: dict[str, Any] = {}
    for name in options.names or found:
        print(f"\n{name}: {first_line(found[name])}", flush=True)
        results[name] = found[name].run(options.rounds)
        print("\n".join(f"  {line}" for line in found[name].table(results[name])), flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": machine, "results": results}, indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")


def find_benchmarks() -> dict[str, Benchmark]:
    """Return every module of this package that implements the protocol, by its name."""
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name != "__main__")
    modules = [importlib.import_module(f"benchmarks.{name}") for name in names]
    kept = [cast("Benchmark", module) for module in modules if hasattr(module, "NAME")]
    return {benchmark.NAME: benchmark for benchmark in kept}


def parse(found: dict[str, Benchmark]) -> argparse.Namespace:
    """Return the options; exit with a message if a name is unknown."""
    lines = "\n".join(f"  {name:<12}{first_line(benchmark)}" for name, benchmark in found.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"Benchmarks that need no GPU:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which (default: all)")
    parser.add_argument("--rounds", type=int, help="measurements of each side (default: the benchmark's own)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write machine and results to FILE")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(found))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(found)}")
    return options


def first_line(benchmark: Benchmark) -> str:
    """Return the first line of a benchmark's docstring."""
    return (benchmark.__doc__ or "").partition("\n")[0]


if __name__ == "__main__":
    main()
