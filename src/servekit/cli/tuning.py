"""`servekit tune`: the best profile for this GPU, by measurement."""

import os
import re
import signal
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from servekit.cli.checks import loaded
from servekit.cli.options import Finite, chosen_loads, observe_url, settings_options
from servekit.settings import Settings, Target, flag_of

if TYPE_CHECKING:
    from servekit.tune.candidates import Candidate

_CPU_STREAMS = 8
_UNITS = {"h": 3600, "m": 60, "s": 1}


class Duration(click.ParamType[float]):
    """A duration such as 2h, 90min or 1h30m, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        if isinstance(value, float):
            return value
        parts = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s)?", value.replace(" ", ""))
        if not parts or not any(parts.groups()):
            self.fail(f"must be a duration such as 2h, 90min or 1h30m (got {value})", param, ctx)
        return sum(float(number or 0) * unit for number, unit in zip(parts.groups(), _UNITS.values(), strict=True))


@click.command(
    short_help="Find the best profile for this GPU by measurement.",
    epilog="\b\nExamples:\n"
    "  servekit tune --dry-run                         what would be tried, why, and how long it takes\n"
    "  servekit tune --budget 2h                       tokens/s; the same command again goes on after an interruption\n"
    "  servekit tune --goal energy --dir tune-energy   joules per token\n"
    "  servekit tune --candidate a.yaml --candidate b.yaml --rounds 5 --dir mine\n"
    "  servekit serve --config tune/best.yaml          serve what was found\n"
    "\b\nEach candidate is started by `servekit serve`, with the options of `serve` given here. The GPU and the ports\n"
    "must be free: stop a running endpoint first. The contract is never changed (docs/tune.md).\n"
    "\b\nExit codes: 0 done, or the budget is spent; 2 a flag, a profile or the folder is wrong; 3 something else\n"
    "uses the GPU or a port, or the profile does not fit; 4 the profile as it is did not start; 130 interrupted.",
)
@click.option(
    "--goal",
    type=click.Choice(["throughput", "energy", "latency"]),
    default="throughput",
    show_default=True,
    help="Tokens/s, J per output token, or seconds per request.",
)
@click.option(
    "--budget", type=Duration(), default="4h", show_default=True, help="Of all starts together, such as 90min."
)
@click.option(
    "--loads", default="text,images-1", show_default=True, help="Kinds of requests: text, images-1, images-3."
)
@click.option("--streams", help="Requests at once.  [default: 128; 8 for latency and on the CPU]")
@click.option(
    "--sampling", default="sampled", show_default=True, help="sampled, as Gemma asks for, or greedy; or both."
)
@click.option("--seconds", type=Finite(min=1), default=120, show_default=True, help="Of each final run, about.")
@click.option("--warm-up-s", type=Finite(min=0), default=30, show_default=True, help="Of each warm-up; 0: none.")
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Starts of each finalist; 1: no intervals.",
)
@click.option(
    "--candidate",
    "own",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A profile of your own to try, in place of servekit's candidates; repeatable.",
)
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), default="tune", show_default=True, help="For all results."
)
@click.option("--format", "output", type=click.Choice(["text", "markdown", "json"]), default="text", show_default=True)
@click.option("--dry-run", is_flag=True, help="Print what it would do; start nothing and keep nothing.")
@settings_options(tuple(Settings.model_fields))
def tune(
    *,
    goal: str,
    budget: float,
    loads: str,
    streams: str | None,
    sampling: str,
    seconds: float,
    warm_up_s: float,
    rounds: int,
    own: tuple[Path, ...],
    folder: Path,
    output: str,
    dry_run: bool,
    **flags: Any,
) -> None:
    """Find the fastest or the most frugal profile for this GPU, within the contract, by measurement.

    Starts the profile as it is and a dozen candidates at most, one after the other, each under the same loads, and
    reports which differences are beyond the noise. Writes the best profile with the reasons as comments.
    """
    from servekit.serve.plan import build_plan
    from servekit.tune import tune_report
    from servekit.tune.goals import GOALS
    from servekit.tune.tune_run import Request, describe
    from servekit.tune.tune_run import tune as tune_profile

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a shell starts what runs behind `&` without SIGINT
        signal.signal(number, _interrupt)
    with loaded(flags) as (settings, profile), ExitStack() as stack:
        on_cpu = build_plan(profile, settings, os.environ).target is Target.CPU
        at_once = streams or str(_CPU_STREAMS if on_cpu else GOALS[goal].streams)
        request = Request(
            goal=goal,
            loads=[*dict.fromkeys(chosen_loads(loads, at_once, sampling))],
            seconds=seconds,
            warm_up_s=warm_up_s,
            rounds=rounds,
            budget_s=budget,
            own=own,
            folder=Path(stack.enter_context(tempfile.TemporaryDirectory())) if dry_run else folder,
            settings=settings,
            profile=profile,
            words=lambda candidate, state: _words(flags, candidate, state),
            observe_url=observe_url(settings),
            report=lambda line: click.echo(line, err=True),
        )
        if dry_run:
            click.echo(describe(request))
            return
        try:
            tuned = tune_profile(request)
        except KeyboardInterrupt:
            click.echo(f"tune: interrupted; the same command goes on with what is in {folder}", err=True)
            raise
        write = {"text": tune_report.report_text, "markdown": tune_report.report_markdown}
        click.echo(write.get(output, tune_report.report_json)(goal, tuned.found, tuned.left_out))
        if tuned.best:
            click.echo(f"tune: servekit serve --config {tuned.best}", err=True)


def _words(flags: Mapping[str, Any], candidate: "Candidate", state: Path) -> list[str]:
    """Return the operator's own flags of `serve` for the start of a candidate, with this search's state folder."""
    own = {name: value for name, value in flags.items() if name not in ("config", *candidate.settings)}
    words: list[str] = []
    for name, value in (own | {"state_dir": state}).items():
        for each in value if isinstance(value, tuple) else (value,):
            if each is not None and each is not False:
                words += [flag_of(name)] if each is True else [flag_of(name), str(each)]
    return words


def _interrupt(number: int, _: object) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)
