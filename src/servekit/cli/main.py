"""The command line: the only module that imports every room, and the only one that turns errors into exit codes."""

import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from servekit import ENGINE_VERSION, __version__
from servekit.cli.checks import check_here, loaded, plan_memory, verdict
from servekit.cli.evaluating import evaluate
from servekit.cli.fleet import fleet_options, plan_replicas, replicas_text
from servekit.cli.measuring import bench, measure, report
from servekit.cli.options import OBSERVE_FIELDS, settings_options
from servekit.cli.recipes import agreement, card, quantize, verify
from servekit.cli.tenants import key, usage
from servekit.cli.tuning import tune
from servekit.errors import ExitCode, ServekitError, render
from servekit.file_trouble import finding_of
from servekit.logs import configure_logging
from servekit.settings import Settings, read_settings

if TYPE_CHECKING:
    from servekit.demo.sizes import Size
    from servekit.preflight.memory.gpu_models import GpuModel

_PLAN_FIELDS = tuple(Settings.model_fields)
_FORMAT = click.option("--format", "output", type=click.Choice(["text", "json"]), default="text", show_default=True)


def main() -> NoReturn:
    """Run the command line, and exit with the code of its result."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a path or a name may hold bytes that are not text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        command.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.CONFIGURATION)
    except click.exceptions.Abort:
        sys.exit(128 + signal.SIGINT)
    except ServekitError as error:
        click.echo(render(error.findings, sys.stderr), err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # a file, a folder or a device: for the user to mend
        click.echo(render([finding_of(error)], sys.stderr), err=True)
        sys.exit(ExitCode.CONFIGURATION)
    except Exception:  # noqa: BLE001 - servekit raises no other error on purpose
        traceback.print_exc()
        click.echo("this is a bug in servekit: please report the lines above", err=True)
        sys.exit(ExitCode.BUG)
    sys.exit(ExitCode.STOPPED)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="\b\nExamples:\n"
    "  servekit check                            would it start, here and now?\n"
    "  servekit plan --gpu l4                    how much fits into an L4?\n"
    "  servekit serve                            start the endpoint and supervise it\n"
    "  servekit key --new --name team-a --show   a key for a team; `servekit usage` says what it used\n"
    "  servekit bench --dir runs                 measure it; `servekit report runs/*.json` is the table\n"
    "  servekit tune --dry-run                   what a search for a faster profile would try\n"
    "\b\nEach command's --help has its options and examples.\n",
)
@click.version_option(__version__, message=f"servekit %(version)s, for vLLM {ENGINE_VERSION}")
def command() -> None:
    """One validated file, one command, one dedicated OpenAI-compatible vLLM endpoint."""


@command.command(
    short_help="Check whether `serve` would start, here and now.",
    epilog="\b\nExamples:\n"
    "  servekit check                                       would `servekit serve` start, here and now?\n"
    "  servekit check --profile-only                        the file alone\n"
    "  servekit check --model /models/m --format json | jq .findings\n"
    "  servekit check --model owner/name --hashes           is the download in the cache undamaged?\n"
    "  servekit check --config profiles/fp16-baseline.yaml --deviate quantization,kv-cache-dtype --embeddings gpu\n"
    "\b\nExit codes: 0 no errors, 2 the profile, a flag or a variable is wrong, 3 the start would fail here.",
)
@click.option("--profile-only", is_flag=True, help="Check the profile, not the checkpoint and the host.")
@click.option(
    "--hashes", is_flag=True, help="Read all of a hub model in the cache, and compare it with the hub's hashes."
)
@_FORMAT
@settings_options(_PLAN_FIELDS)
def check(output: str, *, profile_only: bool, hashes: bool, **flags: Any) -> None:
    """Check what `serve` would check before it starts the engine, and report all mistakes and findings.

    Would this start, here, now? Starts nothing, and creates no file but the demo checkpoint.
    """
    try:
        with loaded(flags) as (settings, profile):
            if profile_only:
                click.echo(verdict(output, profile))
            elif check_here(output, settings, profile, hashes=hashes):
                sys.exit(ExitCode.PREFLIGHT)
    except (ServekitError, OSError) as error:
        if output != "json":
            raise
        findings = error.findings if isinstance(error, ServekitError) else [finding_of(error)]
        click.echo(json.dumps({"findings": [finding.as_dict() for finding in findings]}, indent=2))
        sys.exit(error.exit_code if isinstance(error, ServekitError) else ExitCode.CONFIGURATION)


@command.command(
    short_help="Show what would start, and how much fits into the GPU.",
    epilog="\b\nExamples:\n"
    "  servekit plan --target cuda\n"
    "  servekit plan --format json | jq .argv\n"
    "  servekit plan --model /models/gemma4-E4B-opt --gpu l4      will it fit, and how much?\n"
    "  servekit plan --gpu l4 --rate 20 --prompt 600 --output 300 --run text-8.json --run text-128.json\n"
    "\b\nExit codes: 0 planned, 2 the profile, a flag or a variable is wrong.",
)
@click.option(
    "--gpu", metavar="MODEL", help="Plan the memory for this GPU: l4, a10, h100, ... or an amount such as 24GiB."
)
@_FORMAT
@fleet_options
@settings_options(_PLAN_FIELDS)
def plan(output: str, gpu: str | None, rate: float | None, **flags: Any) -> None:
    """Show what `serve` would start: arguments, environment, addresses, deadlines, memory. Needs no engine.

    With --rate also how many replicas a rate of requests needs, from records of `servekit bench`.
    """
    from servekit.cli.output import memory_text, plan_text
    from servekit.preflight.memory.memory_report import plan_as_dict
    from servekit.serve.plan import build_plan

    asked: dict[str, Any] = {name: flags.pop(name) for name in ("prompt_tokens", "output_tokens", "replicas", "runs")}
    with loaded(flags if gpu is None else {**flags, "target": "cuda"}) as (settings, profile):
        planned = build_plan(profile, settings, os.environ, gpu=_gpu(gpu) if gpu else None)
        memory, findings = plan_memory(planned)
    asked |= {"max_running": planned.arguments.max_num_seqs, "pool_tokens": memory and memory.pool_tokens}
    replicas = plan_replicas(rate=rate, **asked) if rate else None
    if output == "json":
        described = planned.describe() | {"memory": memory and plan_as_dict(memory), "replicas": replicas}
        click.echo(json.dumps(described | {"findings": [each.as_dict() for each in findings]}, indent=2))
    else:
        why = "; ".join(filter(None, (findings[0].message, findings[0].remedy))) if findings else ""
        click.echo(f"{plan_text(planned)}\n{memory_text(memory, why)}")
        if memory and findings:
            click.echo(f"\n{render(findings, sys.stdout)}")
        if replicas and rate:
            click.echo(f"\n{replicas_text(replicas, rate)}")


@command.command(
    short_help="Check Docker, driver and Compose files.",
    epilog="\b\nExamples:\n"
    "  servekit doctor                                          the project of this folder, compose.yaml\n"
    "  servekit doctor -f compose.yaml -f compose.cpu.yaml      without a GPU\n"
    "  servekit doctor --env-file tenant-b.env\n"
    "\b\nExit codes: 0 no errors, 3 `docker compose up` would fail, or lose requests when it stops.",
)
@click.option(
    "-f", "--file", "files", multiple=True, type=click.Path(path_type=Path), help="Compose file, as for docker compose."
)
@click.option(
    "--env-file",
    type=click.Path(path_type=Path),
    help="Variables for the Compose files, as for docker compose.",
)
@_FORMAT
def doctor(output: str, files: tuple[Path, ...], env_file: Path | None) -> None:
    """Check Docker, the driver and the Compose project before the first `docker compose up`. Changes nothing."""
    from servekit.cli.output import diagnosis_text
    from servekit.preflight.docker.doctor import diagnose
    from servekit.serve.plan import STOP_MARGIN_S

    found = diagnose(files, env_file, drain_s=Settings.model_fields["drain_s"].default, margin_s=STOP_MARGIN_S)
    click.echo(json.dumps(found.as_dict(), indent=2) if output == "json" else diagnosis_text(found))
    if found.failed:
        sys.exit(ExitCode.PREFLIGHT)


@command.command(
    epilog="\b\nExamples:\n"
    "  servekit serve --target cpu                          the embedded demo checkpoint, no GPU needed\n"
    "  servekit serve --model /models/gemma4-E4B-opt        a checkpoint folder on the GPU\n"
    "\b\nExit codes: 0 stopped and drained, 2 configuration, 3 preflight, 4 not started, 5 engine died,\n"
    "6 engine hung, 7 contract broken, 8 drain ran out, 70 a bug in servekit."
)
@settings_options(_PLAN_FIELDS)
def serve(**flags: Any) -> None:
    """Start the engine, watch it, and serve until SIGTERM or SIGINT."""
    with loaded(flags) as (settings, profile):
        configure_logging(settings.log_format)
        from servekit.run import serve_plan
        from servekit.serve.plan import build_plan

        plan = build_plan(profile, settings, os.environ)
        sys.exit(serve_plan(plan, on_stop_signal=_on_stop_signals))


@command.command(
    short_help="Check whether servekit is live or ready.",
    epilog="\b\nExamples:\n"
    "  servekit probe ready                                  in a container's HEALTHCHECK\n"
    "  servekit probe live --observe-port 9401\n"
    "\b\nExit codes: 0 yes, 1 no.",
)
@click.argument("question", type=click.Choice(["live", "ready"]))
@settings_options(OBSERVE_FIELDS)
def probe(question: str, **flags: Any) -> None:
    """Check whether a running servekit on this host is live or ready."""
    from servekit.serve.plan import connectable
    from servekit.serve.watch.probe import query_server

    settings = read_settings(flags, os.environ)
    url = f"http://{connectable(settings.observe_host)}:{settings.observe_port}"
    answer, reason = query_server(url, question)
    click.echo(reason)
    sys.exit(0 if answer else 1)


@command.command(
    epilog="\b\nExample, for editors with a YAML language server:\n"
    "  servekit schema > vllm_config.schema.json\n"
    "  # yaml-language-server: $schema=vllm_config.schema.json      as the first line of the profile\n"
)
@click.option("--record", is_flag=True, help="Of the record that `servekit measure` writes.")
def schema(*, record: bool) -> None:
    """Print the JSON Schema of the profile."""
    from servekit.measure.record import record_schema
    from servekit.profile.json_schema import profile_schema

    click.echo(json.dumps(record_schema() if record else profile_schema(), indent=2))


@command.command(
    "demo-model",
    epilog="\b\nExample:\n  servekit demo-model ./demo && servekit serve --target cpu --model ./demo\n",
)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same bytes.")
@click.option(
    "--size",
    type=click.Choice(["tiny", "tiny-262k", "e4b"]),
    default="tiny",
    show_default=True,
    help="tiny: a few MB; tiny-262k: the same with the real vocabulary, 0.1 GB; e4b: the real shapes, about 10 GB.",
)
@click.option("--bf16", is_flag=True, help="Unquantized weights instead of W4A16.")
def demo_model(directory: Path, seed: int, size: "Size", *, bf16: bool) -> None:
    """Write a Gemma 4 checkpoint with random weights into DIRECTORY."""
    from servekit.demo.build import build_demo_model

    build_demo_model(
        directory, size=size, quantized=not bf16, seed=seed, progress=lambda line: click.echo(line, err=True)
    )


command.add_command(key)
command.add_command(usage)
command.add_command(bench)
command.add_command(evaluate)
command.add_command(measure)
command.add_command(report)
command.add_command(tune)
evaluate.add_command(agreement)
command.add_command(card)
command.add_command(quantize)
command.add_command(verify)


def _gpu(name: str) -> "GpuModel":
    from servekit.preflight.memory.gpu_models import parse_gpu_model

    try:
        return parse_gpu_model(name)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--gpu") from error


def _on_stop_signals(stop: Callable[[str], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _: stop(signal.Signals(received).name))


if __name__ == "__main__":
    main()
