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
    from collections.abc import Collection

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


@click.command(
    epilog="\b\nExamples:\n"
    "  servekit bench --streams 8,32                          text and images, three repetitions of ten minutes\n"
    "  servekit bench --loads text --streams 32 --sampling sampled,greedy --dir w4a16\n"
    "  servekit report w4a16/*.json\n"
    "\b\nExit codes: 0 every run ended well, 2 nothing could be measured; otherwise that of the first run that failed."
)
@click.option("--loads", default="text,images-1,images-3", show_default=True, help="Kinds of requests.")
@click.option("--streams", default="1,8,32,128,512", show_default=True, help="Requests at once.")
@click.option(
    "--sampling", default="sampled", show_default=True, help="sampled, as Gemma asks for, or greedy; or both."
)
@click.option("--repetitions", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of each load.")
@click.option("--seconds", type=click.FloatRange(min=1), default=600, show_default=True, help="Of each run, about.")
@click.option(
    "--idle-s", type=click.FloatRange(min=0), default=60, show_default=True, help="Idle power before each run."
)
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), default="bench", show_default=True, help="For records."
)
@click.option("--tokenizer", metavar="MODEL", help="Checkpoint for the load generator. Default: the endpoint's.")
@click.option("--endpoint", metavar="URL", help="Where to send requests. Default: the address that servekit reports.")
@click.option("--observe", metavar="URL", help="servekit's own server. Default: from serve's settings.")
@settings_options(("engine", *_OBSERVE_FIELDS, "api_keys_file", "state_dir"))
def bench(
    *,
    loads: str,
    streams: str,
    sampling: str,
    repetitions: int,
    seconds: float,
    idle_s: float,
    folder: Path,
    tokenizer: str | None,
    endpoint: str | None,
    observe: str | None,
    **flags: Any,
) -> None:
    """Measure the standard loads with the engine's own `vllm bench serve`: a record for each run."""
    from servekit.measure.bench.loads import SAMPLINGS, SHAPES, Load
    from servekit.measure.bench.standard import Bench, find_generator, run_bench
    from servekit.serve.guard.keys import load_keys, own_key_file

    settings = read_settings(flags, os.environ)
    chosen = [
        Load(kind, int(number), how)
        for kind in _listed("--loads", loads, SHAPES)
        for number in _listed("--streams", streams)
        for how in _listed("--sampling", sampling, SAMPLINGS)
    ]
    url = (observe or _observe_url(settings)).rstrip("/")
    generator, authenticated = find_generator(url, settings.engine, endpoint=endpoint, tokenizer=tokenizer)
    keys = load_keys(settings.api_keys_file or own_key_file(settings.state_dir)) if authenticated else ("none",)
    plan = Bench(
        loads=chosen,
        repetitions=repetitions,
        seconds=seconds,
        idle_s=idle_s,
        folder=folder,
        observe_url=url,
        generator=generator,
        variables={"OPENAI_API_KEY": keys[0], "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"},
        report=lambda line: click.echo(line, err=True),
    )
    click.echo(f"bench: {len(chosen) * repetitions} runs, at least {plan.about_s / 3600:.1f} h", err=True)
    codes = [code for _, _, code in run_bench(plan)]
    click.echo(f"bench: servekit report {folder}/*.json", err=True)
    sys.exit(next(filter(None, codes), 0))


def _listed(option: str, text: str, known: "Collection[str]" = ()) -> list[str]:
    """Return the parts of a comma-separated list: names that are known, or numbers above zero."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if part not in known if known else not (part.isdecimal() and int(part)):
            wanted = f"one of {', '.join(known)}" if known else "a whole number above zero"
            raise click.BadParameter(f"must be {wanted} (got {part})", param_hint=option)
    if not parts:
        raise click.BadParameter("names nothing", param_hint=option)
    return parts
