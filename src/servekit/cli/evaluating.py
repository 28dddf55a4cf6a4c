"""The commands that evaluate the model of a running endpoint: `eval mmmu-pro`, `eval score`."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from servekit.cli.measuring import report_measured
from servekit.cli.options import OBSERVE_FIELDS, Finite, observe_url, pair, settings_options
from servekit.errors import ConfigurationError, Finding
from servekit.settings import read_settings


@click.group(
    short_help="Evaluate the model: MMMU-Pro, agreement with its base.",
    name="eval",
    epilog="\b\nExamples:\n"
    "  servekit eval mmmu-pro --limit 20                    a first look\n"
    "  servekit eval mmmu-pro --prompt cot --name w4a16     all 3,460 questions, with reasoning\n"
    "  servekit eval score w4a16-*.answers.jsonl            the scores again, from the answers\n"
    "  servekit eval agreement --base base.json             next words beside those of its base\n",
)
def evaluate() -> None:
    """Evaluate the model of a running endpoint, and record energy and work meanwhile."""


@evaluate.command(
    short_help="Ask MMMU-Pro by lmms-eval, and score it.",
    name="mmmu-pro",
    epilog="\b\nExamples:\n"
    "  scripts/install.sh eval                                        once: lmms-eval into .venv-eval\n"
    "  servekit eval mmmu-pro --prompt cot --streams 256 --name w4a16\n"
    "  servekit eval mmmu-pro --subset vision --data /data/MMMU_Pro   without the hub\n"
    "  servekit report w4a16-*.json --baseline fp16-*.json\n"
    "\b\nWrites NAME-TIME.json (the record), .trace.jsonl.gz (raw readings) and .answers.jsonl (every answer).\n"
    "Ctrl-C keeps and scores the answers so far.\n"
    "\b\nExit codes: 0 every question was asked, 1 none was answered, 2 nothing could be measured, 130 Ctrl-C.",
)
@click.option(
    "--subset",
    type=click.Choice(["standard", "vision", "both"]),
    default="both",
    show_default=True,
    help="standard: text, ten options, 1 to 7 images; vision: the question is in the image. 1,730 questions each.",
)
@click.option(
    "--prompt",
    type=click.Choice(["direct", "cot"]),
    default="direct",
    show_default=True,
    help="direct: the letter alone, at most 256 tokens; cot: reasoning first, at most 16,384.",
)
@click.option(
    "--data", metavar="FOLDER", type=click.Path(exists=True, file_okay=False), help="A local copy of MMMU/MMMU_Pro."
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many questions of each half.")
@click.option("--streams", type=click.IntRange(min=1), default=32, show_default=True, help="Requests at once.")
@click.option("--name", default="mmmu-pro", show_default=True, help="Of this configuration: `report` groups by it.")
@click.option("--out", type=click.Path(path_type=Path), help="The record. Default: NAME-TIME.json in this folder.")
@click.option("--idle-s", type=Finite(min=0), default=60, show_default=True, help="Idle power before the questions.")
@click.option("--fact", "facts", multiple=True, metavar="KEY=VALUE", help="What the record should also say.")
@click.option(
    "--python",
    type=click.Path(path_type=Path),
    default=".venv-eval/bin/python",
    show_default=True,
    help="The Python that has lmms-eval.",
)
@click.option("--endpoint", metavar="URL", help="Where to send requests. Default: the address that servekit reports.")
@click.option("--observe", metavar="URL", help="servekit's own server. Default: from serve's settings.")
@settings_options((*OBSERVE_FIELDS, "api_keys_file", "state_dir"))
def mmmu_pro(
    *,
    subset: str,
    prompt: str,
    data: str | None,
    limit: int | None,
    streams: int,
    name: str,
    out: Path | None,
    idle_s: float,
    facts: tuple[str, ...],
    python: Path,
    endpoint: str | None,
    observe: str | None,
    **flags: Any,
) -> None:
    """Ask MMMU-Pro by lmms-eval 0.7.3, and score it by the benchmark's own rule.

    An answer without an option is wrong, never drawn by chance; so is a question that the endpoint refuses, as for
    more images than it takes, or that gets no answer. Each is counted.
    """
    from servekit.measure.bench.standard import find_generator
    from servekit.measure.eval.lmms_program import Plan
    from servekit.measure.eval.mmmu_pro import answers_of, prepare
    from servekit.measure.recording.session import Job, measure
    from servekit.serve.guard.keys import client_key, own_key_file

    settings = read_settings(flags, os.environ)
    url = (observe or observe_url(settings)).rstrip("/")
    found, authenticated = find_generator(url, "", endpoint=endpoint)
    key = client_key(settings.api_keys_file or own_key_file(settings.state_dir)) if authenticated else "none"
    plan = Plan(
        url=f"{found.url}/v1",
        model=found.model,
        subsets=["standard", "vision"] if subset == "both" else [subset],
        prompt=prompt,
        data=str(Path(data).absolute()) if data else "",
        limit=limit,
        streams=streams,
    )
    out = out or Path(f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json")
    about = dict(pair("--fact", each) for each in facts)
    job = Job(name=name, out=out, command=(), idle_s=idle_s, url=url, facts=about, quiet=True)
    job, questions = prepare(plan, python, key, job)
    asked = ", ".join(f"{min(count, limit or count):,} {half}" for half, count in questions.items())
    click.echo(f"eval: {asked} questions, after {idle_s:g} s of idle power", err=True)
    record, code = measure(job)
    report_measured(job, record)
    if record:
        click.echo(f"eval: answers {answers_of(out)}", err=True)
        _show(record.scores)
    sys.exit(code)


@evaluate.command(
    short_help="Compute scores again from the answers.",
    epilog="\b\nExample:\n  servekit eval score w4a16-20260101T120000Z.answers.jsonl\n",
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
def score(files: tuple[Path, ...]) -> None:
    """Compute the scores again from FILES, answers to the same prompt, without the endpoint."""
    from servekit.measure.eval.mmmu_answers import Answer
    from servekit.measure.eval.mmmu_answers import score as score_answers

    answers: list[Answer] = []
    for path in files:
        try:
            with path.open(encoding="utf-8") as lines:
                answers += Answer.read(lines)
        except (ValueError, TypeError) as error:
            remedy = "give an .answers.jsonl file of `servekit eval`"
            raise ConfigurationError([Finding("has no answers", file=str(path), remedy=remedy)]) from error
    _show(score_answers(answers))


def _show(scores: dict[str, float]) -> None:
    for name, value in scores.items():
        click.echo(f"{name}: {value:g}" if ":" in name else f"{name}: {value:.2f} %")
