"""`servekit plan --rate`: how many replicas a rate of requests needs."""

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from servekit.cli.options import Finite
from servekit.errors import ConfigurationError, Finding

_MOST_REPLICAS = 1000


def fleet_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that `plan_replicas` needs."""
    for option in (
        click.option(
            "--run",
            "runs",
            multiple=True,
            type=click.Path(path_type=Path),
            help="With --rate: a record of `servekit bench`; repeat it, two loads at least.",
        ),
        click.option(
            "--replicas",
            type=click.IntRange(1, _MOST_REPLICAS),
            help="With --rate: for this many. Default: as many as are needed.",
        ),
        click.option(
            "--output",
            "output_tokens",
            type=click.IntRange(1),
            default=256,
            show_default=True,
            help="With --rate: tokens of an answer.",
        ),
        click.option(
            "--prompt",
            "prompt_tokens",
            type=click.IntRange(0),
            default=512,
            show_default=True,
            help="With --rate: tokens of a prompt.",
        ),
        click.option(
            "--rate",
            type=Finite(min=0, min_open=True),
            help="Requests per second: plan how many replicas they need.",
        ),
    ):
        function = option(function)
    return function


def plan_replicas(
    *,
    rate: float,
    prompt_tokens: int,
    output_tokens: int,
    replicas: int | None,
    runs: tuple[Path, ...],
    max_running: int,
    pool_tokens: int | None,
) -> dict[str, Any]:
    """Return the plan and a simulation of it as values that JSON can hold.

    Raises ConfigurationError for records that are missing or do not do.
    """
    from servekit.measure.fleet import Work, fit_speeds, most_running, plan_fleet, simulate
    from servekit.measure.report.runs import load_run

    records = [load_run(path).record for path in runs]
    work = Work(rate, prompt_tokens, output_tokens)
    try:
        speeds = fit_speeds(records)
        plan = plan_fleet(work, speeds, max_running=max_running, pool_tokens=pool_tokens, replicas=replicas)
    except ValueError as error:
        remedy = "name records of `servekit bench --loads text --streams 8,128` or the like, of one configuration"
        raise ConfigurationError([Finding(str(error), key="--run", remedy=remedy)]) from None
    if plan.replicas > _MOST_REPLICAS:
        remedy = "plan for a part of the rate, or give --replicas"
        raise ConfigurationError(
            [Finding(f"needs more than {_MOST_REPLICAS:,} replicas", "--rate", got=f"{rate:g}", remedy=remedy)]
        )
    # JSON has no infinity.
    planned = {name: None if value == math.inf else value for name, value in asdict(plan).items()}
    found: dict[str, Any] = {"plan": planned, "speeds": asdict(speeds), "simulated": None}
    if plan.busy < 1:
        most = int(most_running(work, max_running, pool_tokens)[1])
        found["simulated"] = asdict(simulate(work, speeds, replicas=plan.replicas, max_running=most))
    return found


def replicas_text(found: dict[str, Any], rate: float) -> str:
    """Write the plan for people."""
    plan, simulated = found["plan"], found["simulated"]
    rows = [
        ("needed", f"{plan['needed']}, each below 80 % of its highest rate"),
        ("highest", f"{plan['highest_rate']:.3g} requests/s a replica; first bottleneck: {plan['bottleneck']}"),
        ("replicas", f"{plan['replicas']} at {rate:g} requests/s: {plan['busy']:.0%} of their highest rate"),
    ]
    if plan["replicas"] > 1:
        rows.append(
            (
                "one away",
                f"{plan['busy_without_one']:.0%}{', which is too much' if plan['busy_without_one'] >= 1 else ''}",
            )
        )
    if simulated:
        of_them = "mean {mean_request_s:.3g}, 95 % within {p95_request_s:.3g}, waiting {mean_wait_s:.3g}"
        rows += [
            ("running", f"{plan['running']:.3g} requests on each; {1000 * plan['token_s']:.3g} ms a token"),
            ("request", f"{plan['request_s']:.3g} s; simulated: {of_them.format(**simulated)}"),
        ]
    else:
        rows.append(("overload", "queues grow without end: add replicas"))
    if plan["beyond_measured"]:
        rows.append(
            ("beware", f"more requests run at once than in any record ({found['speeds']['measured_running']:.0f})")
        )
    return "\n".join(["replicas", *(f"  {label:<10}{text}" for label, text in rows)])
