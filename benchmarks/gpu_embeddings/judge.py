"""The targets, and what a record says about each."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

POOL, LONG, LOAD, PLAN = 1.8, 1.8, 1.10, 0.02
"""Least factors of the host's side over the GPU's: KV pool, requests of full length at once, tokens per second and per
watt-hour. Largest error of the plan."""


def judge(record: Mapping[str, Any]) -> Iterator[tuple[str, bool, str]]:
    """Yield the name of each target that the record speaks of, whether it is met, and the figure."""
    if "gathers" in record:
        yield "every row gathered bit for bit", record["gathers"] == 0, str(record["gathers"])
    if sides := record.get("answers"):
        yield "equal blocks", sides["host"]["blocks"] == sides["gpu"]["blocks"], str(sides["host"]["blocks"])
        for name in ("tokens", "logits"):
            same, repeated = (equal(sides["gpu"][name], sides[side][name]) for side in ("host", "again"))
            count = len(sides["gpu"][name])
            figure = f"{same} of {count}; of two runs of one side {repeated}"
            yield f"equal {name}", count > 0 and (same == count or repeated < count), figure
    if engines := record.get("engines"):
        factor = engines["host"]["pool_tokens"] / engines["gpu"]["pool_tokens"]
        yield "KV pool", factor >= POOL, f"{factor:.3f}"
        for side, error in record["plan_over_engine"].items():
            yield f"plan of {side}", abs(error["pool_tokens"]) <= PLAN, f"{error['pool_tokens']:+.2%}"
    for side, got in record.get("places", {}).items():
        yield f"place of {side}", got == side, str(got)
    if running := record.get("long_requests"):
        factor = running["host"] / max(running["gpu"], 1)
        yield "requests of full length at once", factor >= LONG, f"{factor:.2f}"
    turns = record.get("turns", [])
    for figure in ("tokens_per_s", "tokens_per_wh") if turns else ():
        known = all(each[figure] for each in turns)  # without NVML there is no energy
        sides = ([each[figure] for each in turns if each["side"] == side] for side in ("host", "gpu"))
        factor = mean(next(sides)) / mean(next(sides)) if known else 0.0
        yield (
            figure.replace("_", " "),
            factor >= LOAD,
            f"{factor:.3f} of {len(turns) // 2} turns" if known else "unknown",
        )


def equal(first: Sequence[str], second: Sequence[str]) -> int:
    """Return how many are equal, pair by pair."""
    return sum(one == other for one, other in zip(first, second, strict=True))
