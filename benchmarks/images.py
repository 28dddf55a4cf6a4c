"""CPU time of one image on its way to the engine: vLLM's media connector and servekit's, alternately.

Time on the event loop delays all other requests' tokens; the decoding runs on threads. 448 x 448 pixels of noise.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.programs import clean_environment, engine_program, timed
from servekit.serve.guard import INSIDE

NAME = "images"
ROUNDS = 7
SCRIPT = Path(__file__).parent / "inside" / "connectors.py"


def run(rounds: int | None) -> dict[str, Any]:
    """Return milliseconds per image on the event loop and in total, in each round, by kind and connector."""
    python = Path(engine_program()).with_name("python")
    done = timed([str(python), str(SCRIPT), str(rounds or ROUNDS)], clean_environment() | {"PYTHONPATH": str(INSIDE)})
    if done.code != 0:
        raise SystemExit(f"{SCRIPT.name} ended with {done.code}:\n{done.output[-2000:]}")
    result: dict[str, Any] = json.loads(done.output.splitlines()[-1])
    return result


def table(result: dict[str, Any]) -> list[str]:
    """Format the result as lines."""
    rows = [f"{'':<8}{'bytes':>9}{'':>4}{'connector':<12}{'event loop':>12}{'all threads':>13} ms an image, medians"]
    for kind, values in result.items():
        for name in ("vllm", "servekit"):
            loop_ms, all_ms = (statistics.median(each) for each in zip(*values[name], strict=True))
            rows.append(f"{kind:<8}{values['bytes']:>9}{'':>4}{name:<12}{loop_ms:>12.2f}{all_ms:>13.2f}")
    return rows
