"""The commands that make the checkpoint that is served, and judge one: `serve` needs nothing of what they import."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from servekit.cli.checks import loaded
from servekit.cli.options import Finite, settings_options
from servekit.errors import ExitCode, render
from servekit.settings import read_settings

_PATH = click.Path(path_type=Path)
_DEVICE = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
_PYTHON = click.option(
    "--python",
    type=_PATH,
    default=".venv-recipe/bin/python",
    show_default=True,
    help="Of the environment with llm-compressor, which `scripts/install.sh recipe` makes.",
)


@click.command(
    short_help="Make a W4A16 checkpoint from its BF16 base.",
    epilog="\b\nExamples:\n"
    "  servekit quantize google/gemma-4-E4B-it ./gemma4-E4B-opt --calibration HuggingFaceH4/ultrachat_200k\n"
    "  servekit quantize ./base ./out --calibration rows.jsonl --samples 64 --device cpu\n"
    "\b\nThe same command continues an interrupted job at the layer it was at.\n"
    "Exit codes: 0 written, 2 an argument or a file is wrong, 3 disk or memory will not be enough.",
)
@click.argument("base")
@click.argument("out", type=_PATH)
@click.option("--calibration", required=True, help="JSONL file with `messages`, or id of a data set (ID or ID@SPLIT).")
@click.option("--samples", type=click.IntRange(min=1), default=128, show_default=True, help="Rows to calibrate on.")
@click.option("--max-seq-len", type=click.IntRange(min=8), default=256, show_default=True, help="Tokens of a row.")
@click.option("--skip-pruning", is_flag=True, help="Quantize only: the card's ablation.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Which rows; the same seed gives the same weights."
)
@click.option("--recipe", type=_PATH, default="recipes/gemma4-e4b-opt", show_default=True, help="Folder of the recipe.")
@_DEVICE
@_PYTHON
def quantize(base: str, out: Path, **options: Any) -> None:
    """Prune and quantize BASE, a Gemma 4 in BF16 (folder or hub id), into the new folder OUT."""
    from servekit.recipe.quantize import Job
    from servekit.recipe.quantize import quantize as run

    run(Job(base=base, out=out, **options), lambda line: click.echo(f"quantize: {line}", err=True))


@click.command(
    short_help="Compare a W4A16 checkpoint with its base.",
    epilog="\b\nExamples:\n"
    "  servekit verify ./gemma4-E4B-opt --base ./base                       its tensors beside the base's\n"
    "  servekit verify ./gemma4-E4B-opt --base ./base --texts held-out.jsonl    the outputs of its layers too\n"
    "  servekit verify ./quant-only --base ./base --sparsity 0 --format json\n"
    "\b\nExit codes: 0 as intended, 2 an argument or a file is wrong, 3 something was left out or done wrongly.",
)
@click.argument("out", type=_PATH)
@click.option("--base", type=_PATH, required=True, help="Folder of the checkpoint that OUT was made from.")
@click.option("--sparsity", type=Finite(0, 1), default=0.1, show_default=True, help="That the MLP should have.")
@click.option(
    "--texts", type=_PATH, help="JSONL with `messages` that OUT was not calibrated on: its last rows are read."
)
@click.option("--samples", type=click.IntRange(min=1), default=32, show_default=True, help="Rows of --texts.")
@_DEVICE
@_PYTHON
@click.option("--format", "output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@settings_options(("config",))
def verify(out: Path, base: Path, *, output: str, config: Path | None, **options: Any) -> None:
    """Compare OUT, a W4A16 Gemma 4, with its base: pruning, scales, errors, what should be untouched, `check`."""
    from servekit.profile.engine_arguments import resolve
    from servekit.recipe.verify import verify as measure

    with loaded({"config": config}) as (_, profile):
        arguments = resolve(profile.arguments, target="cuda")
    found = measure(out, base, arguments=arguments, **options)
    if output == "json":
        click.echo(json.dumps(found.as_dict(), indent=2))
    else:
        click.echo(f"{found.table()}\n{render(found.findings, sys.stdout) or 'as intended, and vLLM can serve it'}")
    if found.failed:
        sys.exit(ExitCode.PREFLIGHT)


@click.command(
    short_help="Compare the next words of two models.",
    epilog="\b\nExamples:\n"
    "  servekit eval agreement --endpoint http://127.0.0.1:8000 --record base.json      while the base is served\n"
    "  servekit eval agreement --endpoint http://127.0.0.1:8000 --base base.json        while the result is served\n"
    "\b\nExit codes: 0 recorded, or within the bound; 1 beyond the bound; 2 a file or the endpoint is not usable.",
)
@click.option("--endpoint", default="http://127.0.0.1:8000", show_default=True, metavar="URL", help="What is served.")
@click.option("--record", "target", type=_PATH, help="Write the answers and next words of the base that is served.")
@click.option("--base", type=_PATH, help="A file of --record: compare with it what is served.")
@click.option("--prompts", type=_PATH, help="JSONL with `messages`, text or images. Default: ten of servekit's own.")
@click.option("--positions", type=click.IntRange(min=1), default=32, show_default=True, help="Of each answer.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Of each answer.")
@click.option("--bound", type=Finite(min=0), default=0.05, show_default=True, help="Of the mean, in nats.")
@click.option("--format", "output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@settings_options(("api_keys_file", "state_dir", "no_auth"))
def agreement(
    *,
    endpoint: str,
    target: Path | None,
    base: Path | None,
    prompts: Path | None,
    positions: int,
    max_tokens: int,
    bound: float,
    output: str,
    **flags: Any,
) -> None:
    """Measure how far the next words of a compressed model are from its base's: KL divergence and top-1 agreement."""
    from servekit.recipe.agreement import Endpoint, compare, read_base, read_prompts, record
    from servekit.serve.guard.keys import client_key, own_key_file

    if (target is None) == (base is None):
        raise click.UsageError("give --record or --base")
    if target and not target.parent.is_dir():
        raise click.UsageError(f"--record: no folder {target.parent}")
    settings = read_settings(flags, os.environ)
    key = "" if settings.no_auth else client_key(settings.api_keys_file or own_key_file(settings.state_dir))
    served = Endpoint(endpoint.rstrip("/"), key)
    if target:
        made = record(served, read_prompts(prompts), positions=positions, max_tokens=max_tokens)
        target.write_text(json.dumps(made), encoding="utf-8")
        return
    assert base is not None
    found = compare(served, read_base(base))
    click.echo(json.dumps(vars(found)) if output == "json" else found.text(bound))
    if found.divergence_nats > bound:
        sys.exit(1)


@click.command(
    short_help="Write the model card of a quantized checkpoint.",
    epilog="\b\nExample:\n  servekit card ./gemma4-E4B-opt w4a16-*.json --baseline fp16-1.json\n"
    "\b\nExit codes: 0 written, 2 OUT or a file has no record.",
)
@click.argument("out", type=_PATH)
@click.argument("runs", nargs=-1, type=_PATH)
@click.option("--baseline", "base", multiple=True, type=_PATH, help="A record to compare with; repeatable.")
def card(out: Path, runs: tuple[Path, ...], base: tuple[Path, ...]) -> None:
    """Write the model card of OUT again, with the table of RUNS, records of `servekit measure`."""
    from servekit.measure.report.runs import group_runs, load_run
    from servekit.measure.report.tables import Report, report_markdown
    from servekit.recipe.card import write_card

    groups, baseline = (group_runs([load_run(path) for path in paths]) for paths in (runs, base))
    write_card(out, report_markdown(Report(groups, baseline)) if groups else "")
