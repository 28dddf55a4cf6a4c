"""A broken file: `servekit check` against `vllm serve` on the same file, alternately.

vLLM 0.20.2 also rejects each of the eight lines of broken.yaml on its own.
"""

import re
from pathlib import Path
from typing import Any

from benchmarks.programs import (
    ROOT,
    SERVEKIT,
    SPREAD_HEAD,
    Timed,
    clean_environment,
    engine_program,
    spread,
    timed,
    working_folder,
)
from servekit.measure.statistics import ratio_of_medians

NAME = "check"
ROUNDS = 5
BROKEN = Path(__file__).with_name("broken.yaml")
KEYS = tuple(re.findall(r"^([a-z][a-z-]*):", BROKEN.read_text(encoding="utf-8"), re.MULTILINE))


def run(rounds: int | None) -> dict[str, Any]:
    """Return wall times in seconds and the keys each program blames."""
    file = str(BROKEN.relative_to(ROOT))
    runs: dict[str, list[Timed]] = {"servekit": [], "vllm": []}
    with working_folder() as folder:
        commands = {
            "servekit": [str(SERVEKIT), "check", "--config", file],
            "vllm": [engine_program(), "serve", str(folder / "model"), "--config", file],
        }
        for number in range(rounds or ROUNDS):
            for name in sorted(commands, reverse=bool(number % 2)):
                runs[name].append(timed(commands[name], clean_environment()))
                assert runs[name][-1].code, f"{name} accepts a broken file: {runs[name][-1].output}"
    wall = {name: [each.wall_s for each in those] for name, those in runs.items()}
    cpu = {name: [each.cpu_s for each in those] for name, those in runs.items()}
    said = {name: those[-1].output for name, those in runs.items()}
    return {
        "mistakes": len(KEYS),
        "wall_s": wall,
        "cpu_s": cpu,
        "ratio": round(ratio_of_medians(wall["vllm"], wall["servekit"]), 1),
        "cpu_ratio": round(ratio_of_medians(cpu["vllm"], cpu["servekit"]), 1),
        "names": {
            "servekit": [key for key in KEYS if re.search(rf"\.yaml:\d+: {key}[:.]", said["servekit"])],
            "vllm": [key for key in KEYS if key in vllm_error(said["vllm"])],
        },
    }


def vllm_error(output: str) -> str:
    """Return argparse's error line, or the last lines of a traceback."""
    told = [line for line in output.splitlines() if ": error: " in line]
    return told[-1] if told else "\n".join(output.splitlines()[-5:])


def table(result: dict[str, Any]) -> list[str]:
    """Format the result as lines."""
    wall, names, by_cpu = result["wall_s"], result["names"], result["cpu_ratio"]
    return [
        f"{'':<10}{SPREAD_HEAD}   mistakes named, of {result['mistakes']}",
        *(f"{who:<10}{spread(wall[who])}   {len(names[who])}: {', '.join(names[who])}" for who in wall),
        f"servekit check is {result['ratio']} times as fast (wanted: 15), {by_cpu} times by processor time",
    ]
