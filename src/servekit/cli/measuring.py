"""The commands that measure a running endpoint and report: `serve` needs nothing of what they import."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from servekit.cli.options import OBSERVE_FIELDS, Finite, chosen_loads, observe_url, pair, settings_options
from servekit.errors import ConfigurationError
from servekit.settings import read_settings, variable_of

if TYPE_CHECKING:
    from servekit.measure.record import Record
    from servekit.measure.recording.session import Job


@click.command(
    short_help="Record energy and work while a command runs.",
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
    type=Finite(min=0),
    default=60,
    show_default=True,
    help="Seconds of idle power before the command starts.",
)
@click.option("--observe", metavar="URL", help="servekit's own server. Default: from serve's settings.")
@click.option("--endpoint", metavar="URL", help="A vLLM without servekit: its own metrics, and no contract.")
@click.option("--fact", "facts", multiple=True, metavar="KEY=VALUE", help="What the record should also say.")
@click.option(
    "--codecarbon",
    is_flag=True,
    help="Let CodeCarbon read the energy counter too; needs the extra codecarbon (docs/measure.md).",
)
@click.option("--quiet", is_flag=True, help="No progress line.")
@settings_options(OBSERVE_FIELDS)
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
    codecarbon: bool,
    quiet: bool,
    **flags: Any,
) -> None:
    """Run COMMAND, any load or evaluation, against a running endpoint, and record energy and work meanwhile."""
    from servekit.measure.recording.second_reader import DEFAULT_INTERVAL_S
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
        url=(endpoint or observe or observe_url(read_settings(flags, os.environ))).rstrip("/"),
        bare=endpoint is not None,
        facts=dict(pair("--fact", each) for each in facts),
        quiet=quiet,
        codecarbon_s=DEFAULT_INTERVAL_S if codecarbon else None,
    )
    record, code = measure_job(job)
    report_measured(job, record)
    sys.exit(code)


def report_measured(job: "Job", record: "Record | None") -> None:
    """Tell where the record is, and what a reader of its figures must know."""
    if record is None:
        click.echo("measure: interrupted before the command began; nothing is recorded", err=True)
        return
    click.echo(f"measure: {job.out}, raw trace {job.trace_file}", err=True)
    if record.run.energy.why:
        click.echo(f"measure: energy: {record.run.energy.why}", err=True)
    for each in record.disturbances:
        click.echo(f"measure: {each.kind}: {each.what}", err=True)


class _TakesLists(click.Command):
    """Lets `--baseline` take every word up to the next option, as a shell's `*` gives them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words: list[str] = []
        option = ""
        for word in args:
            if option == "--baseline" and not word.startswith("-") and words[-1] != option:
                words.append(option)
            option = word if word.startswith("-") else option
            words.append(word)
        return super().parse_args(ctx, words)


@click.command(
    short_help="Write a table of records, beside a baseline.",
    cls=_TakesLists,
    epilog="\b\nExamples:\n"
    "  servekit report w4a16-*.json --baseline fp16-*.json\n"
    "  servekit report w4a16/*.json --baseline fp16/*.json     records of `bench`: compared by name\n"
    "  servekit report w4a16-*.json --format html > report.html\n"
    "  servekit report w4a16-1.json --verify          compute every field again from the raw trace\n"
    "\b\nExit codes: 0 written, 2 a file is no record, or with --verify differs from its trace.",
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--baseline",
    "base",
    multiple=True,
    metavar="RUN...",
    type=click.Path(path_type=Path),
    help="Records to compare with: of one name, or of the same names as RUNS.",
)
@click.option(
    "--format",
    "output",
    type=click.Choice(["text", "markdown", "json", "html"]),
    default="text",
    show_default=True,
    help="html: one file with plots over time; needs the extra html (docs/measure.md).",
)
@click.option("--verify", is_flag=True, help="First compute every record again from its raw trace.")
@click.option(
    "--publish",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also copy records and traces here, without GPU ids, folders, kernel and address of the endpoint.",
)
def report(runs: tuple[Path, ...], base: tuple[Path, ...], *, output: str, verify: bool, publish: Path | None) -> None:
    """Write the table of RUNS, records of `servekit measure`; those with one name are repetitions."""
    from servekit.measure.report.publish import publish as publish_runs
    from servekit.measure.report.runs import group_runs, load_run, verify_run
    from servekit.measure.report.tables import Report, report_json, report_markdown, report_text
    from servekit.measure.report.web_report import report_html

    groups, baseline = ([load_run(path) for path in paths] for paths in (runs, base))
    if verify:
        results = {run.path: verify_run(run) for run in (*groups, *baseline)}
        if wrong := [finding for _, findings in results.values() for finding in findings]:
            raise ConfigurationError(wrong)
        for path, (count, _) in results.items():
            click.echo(f"{path}: all {count} fields follow from the raw trace", err=True)
    if publish:
        for path in publish_runs([*groups, *baseline], publish):
            click.echo(f"report: {path}", err=True)
    write = {"text": report_text, "markdown": report_markdown, "json": report_json, "html": report_html}[output]
    click.echo(write(Report(group_runs(groups), group_runs(baseline))))


@click.command(
    short_help="Measure standard loads on a running endpoint.",
    epilog="\b\nExamples:\n"
    "  servekit bench --streams 8,32                          text and images, three repetitions of ten minutes\n"
    "  servekit bench --loads text --streams 32 --sampling sampled,greedy --dir w4a16\n"
    "  servekit bench --serve 'w4a16=--model MODEL' --serve 'fp16=--config profiles/fp16-baseline.yaml ...'\n"
    "  servekit report w4a16/*.json\n"
    "\b\nExit codes: 0 every run ended well, 2 nothing could be measured; otherwise that of the first run that failed.",
)
@click.option("--loads", default="text,images-1,images-3", show_default=True, help="Kinds of requests.")
@click.option("--streams", default="1,8,32,128,512", show_default=True, help="Requests at once.")
@click.option(
    "--sampling", default="sampled", show_default=True, help="sampled, as Gemma asks for, or greedy; or both."
)
@click.option("--repetitions", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of each load.")
@click.option("--seconds", type=Finite(min=0.1), default=600, show_default=True, help="Of each run, at least.")
@click.option("--idle-s", type=Finite(min=0), default=60, show_default=True, help="Idle power before each run.")
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), default="bench", show_default=True, help="For records."
)
@click.option(
    "--serve",
    "served",
    multiple=True,
    metavar="NAME=FLAGS",
    help="Start `servekit serve FLAGS`, measure it into DIR/NAME, stop it; repeatable, the last one is the baseline.",
)
@click.option("--tokenizer", metavar="MODEL", help="Checkpoint for the load generator. Default: the endpoint's.")
@click.option("--endpoint", metavar="URL", help="Where to send requests. Default: the address that servekit reports.")
@click.option("--observe", metavar="URL", help="servekit's own server. Default: from serve's settings.")
@settings_options(("engine", *OBSERVE_FIELDS, "api_keys_file", "state_dir"))
def bench(
    *,
    loads: str,
    streams: str,
    sampling: str,
    repetitions: int,
    seconds: float,
    idle_s: float,
    folder: Path,
    served: tuple[str, ...],
    tokenizer: str | None,
    endpoint: str | None,
    observe: str | None,
    **flags: Any,
) -> None:
    """Measure the standard loads with the engine's own `vllm bench serve`: a record for each run."""
    from servekit.measure.bench.serving import read_configurations, serving
    from servekit.measure.bench.standard import Bench, find_generator, run_bench
    from servekit.serve.guard.keys import client_key, own_key_file

    if served and (observe or endpoint):
        raise click.UsageError("--serve starts the endpoint itself: it excludes --observe and --endpoint")
    settings = read_settings(flags, os.environ)
    chosen = chosen_loads(loads, streams, sampling)
    environ = {**os.environ, **{variable_of(name): str(value) for name, value in flags.items() if value is not None}}
    configurations = read_configurations([pair("--serve", each) for each in served], folder, environ)
    url = (observe or observe_url(settings)).rstrip("/")

    def run_loads(place: Path) -> tuple[list[int], bool]:
        """Return the exit code of each run, and whether the last one was interrupted."""
        generator, authenticated = find_generator(url, settings.engine, endpoint=endpoint, tokenizer=tokenizer)
        key = client_key(settings.api_keys_file or own_key_file(settings.state_dir)) if authenticated else "none"
        plan = Bench(
            loads=chosen,
            repetitions=repetitions,
            seconds=seconds,
            idle_s=idle_s,
            folder=place,
            observe_url=url,
            generator=generator,
            variables={"OPENAI_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"},
            report=lambda line: click.echo(line, err=True),
        )
        hours = plan.about_s / 3600
        click.echo(f"bench: {place}: {len(chosen) * repetitions} runs, at least {hours:.1f} h", err=True)
        runs = list(run_bench(plan))
        return [code for _, _, code in runs], any(record is None or record.interrupted for _, record, _ in runs)

    codes, over = ([], False) if served else run_loads(folder)
    for name, words in configurations.items():
        if not over:
            click.echo(f"bench: starts {name}, which logs to {folder / name}.log", err=True)
            with serving(words, environ, url, folder / f"{name}.log"):
                more, over = run_loads(folder / name)
            codes += more
    _tell_report(folder, list(configurations), over=over)
    sys.exit(next(filter(None, codes), 0))


def _tell_report(folder: Path, names: list[str], *, over: bool) -> None:
    """Write DIR/report.md for two configurations, the second as the baseline; name the command for any."""
    from servekit.measure.report.runs import group_runs, load_run
    from servekit.measure.report.tables import Report, report_markdown

    places = [folder / name for name in names]
    if len(places) != 2 or over:  # noqa: PLR2004 - one beside the other
        click.echo(
            "".join(f"bench: servekit report {place}/*.json\n" for place in places or [folder]), err=True, nl=False
        )
        return
    groups, base = (group_runs([load_run(path) for path in sorted(place.glob("*.json"))]) for place in places)
    path = folder / "report.md"
    path.write_text(report_markdown(Report(groups, base)) + "\n", encoding="utf-8")
    click.echo(f"bench: {path}: servekit report {places[0]}/*.json --baseline {places[1]}/*.json", err=True)
