"""The commands that measure a running endpoint and report: `serve` needs nothing of what they import."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from servekit.cli.options import settings_options
from servekit.errors import ConfigurationError, Finding
from servekit.settings import read_settings

if TYPE_CHECKING:
    from servekit.settings import Settings

_OBSERVE_FIELDS = ("observe_host", "observe_port")


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog="\b\nExamples:\n"
    "  servekit measure --name w4a16 -- vllm bench serve --model gemma4-E4B-opt ...\n"
    "  servekit measure --observe http://10.0.0.7:9400 --idle-s 0 -- python my_load.py\n"
    "  servekit measure --endpoint http://127.0.0.1:8000 -- ./load.sh       vLLM without servekit\n"
    "\b\nThe exit code is the command's; 2 if nothing could be measured.",
)
@click.option("--name", default="run", show_default=True, help="Of this configuration: `report` groups runs by it.")
@click.option("--out", type=click.Path(path_type=Path), help="The record. Default: NAME-TIME.json in this folder.")
@click.option(
    "--idle-s",
    type=click.FloatRange(min=0),
    default=60,
    show_default=True,
    help="Seconds of idle power before the command starts.",
)
@click.option("--observe", metavar="URL", help="servekit's own server. Default: from serve's settings.")
@click.option("--endpoint", metavar="URL", help="A vLLM without servekit: its own metrics, and no contract.")
@click.option("--fact", "facts", multiple=True, metavar="KEY=VALUE", help="What the record should also say.")
@click.option("--quiet", is_flag=True, help="No progress line.")
@settings_options(_OBSERVE_FIELDS)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def measure(
    command: tuple[str, ...],
    *,
    name: str,
    out: Path | None,
    idle_s: float,
    observe: str | None,
    endpoint: str | None,
    facts: tuple[str, ...],
    quiet: bool,
    **flags: Any,
) -> None:
    """Run COMMAND, any load or evaluation, against a running endpoint, and record energy and work meanwhile."""
    from servekit.measure.recording.session import Job
    from servekit.measure.recording.session import measure as measure_job

    if observe and endpoint:
        raise click.UsageError("--observe and --endpoint exclude each other")
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    job = Job(
        name=name,
        out=out or Path(f"{name}-{stamp}.json"),
        command=command,
        idle_s=idle_s,
        url=(endpoint or observe or _observe_url(read_settings(flags, os.environ))).rstrip("/"),
        bare=endpoint is not None,
        facts=dict(_fact(each) for each in facts),
        quiet=quiet,
    )
    record, code = measure_job(job)
    if record is None:
        click.echo("measure: interrupted before the command began; nothing is recorded", err=True)
    else:
        click.echo(f"measure: {job.out}, raw trace {job.trace_file}", err=True)
        if record.run.energy.why:
            click.echo(f"measure: energy: {record.run.energy.why}", err=True)
        for each in record.disturbances:
            click.echo(f"measure: {each.kind}: {each.what}", err=True)
    sys.exit(code)


def _observe_url(settings: "Settings") -> str:
    from servekit.serve.plan import connectable

    if not settings.observe_port:
        raise ConfigurationError(
            [Finding("any port: unknown here", "--observe-port", got="0", remedy="name it by --observe URL")]
        )
    return f"http://{connectable(settings.observe_host)}:{settings.observe_port}"


def _fact(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not (key and sign):
        raise click.BadParameter(f"must be KEY=VALUE (got {text})", param_hint="--fact")
    return key, value


@click.command(
    epilog="\b\nExamples:\n"
    "  servekit report w4a16-*.json --baseline fp16-1.json --baseline fp16-2.json\n"
    "  servekit report w4a16-*.json --format markdown > table.md\n"
    "  servekit report w4a16-1.json --verify          compute every field again from the raw trace\n"
    "\b\nExit codes: 0 written, 2 a file is no record, or with --verify differs from its trace."
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--baseline", "base", multiple=True, type=click.Path(path_type=Path), help="A record to compare with; repeatable."
)
@click.option("--format", "output", type=click.Choice(["text", "markdown", "json"]), default="text", show_default=True)
@click.option("--verify", is_flag=True, help="First compute every record again from its raw trace.")
def report(runs: tuple[Path, ...], base: tuple[Path, ...], *, output: str, verify: bool) -> None:
    """Write the table of RUNS, records of `servekit measure`; those with one name are repetitions."""
    from servekit.measure.report.runs import Group, group_runs, load_run, verify_run
    from servekit.measure.report.tables import Report, report_json, report_markdown, report_text

    groups, baseline = ([load_run(path) for path in paths] for paths in (runs, base))
    if verify:
        results = {run.path: verify_run(run) for run in (*groups, *baseline)}
        if wrong := [finding for _, findings in results.values() for finding in findings]:
            raise ConfigurationError(wrong)
        for path, (count, _) in results.items():
            click.echo(f"{path}: all {count} fields follow from the raw trace", err=True)
    names = dict.fromkeys(run.record.name for run in baseline)
    compared = Report(group_runs(groups), Group(" and ".join(names), tuple(baseline)) if baseline else None)
    click.echo({"text": report_text, "markdown": report_markdown, "json": report_json}[output](compared))
