"""The command line as a user meets it: the real program, its output and its exit codes."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from servekit import ENGINE_VERSION, __version__
from servekit.cli import main as cli
from servekit.demo.build import build_demo_model
from servekit.errors import ServekitError
from tests.conftest import find_free_port

PROGRAM = Path(sys.executable).with_name("servekit")
COMMANDS = sorted(cli.command.commands)

BROKEN = """\
max-num-seqs: 512
max-num-batched-tokes: 4096
quantization: compressed-tensors
port: 8000
kv-cache-dtype: fp8_e4m3
max-model-len: long
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(root: Path) -> Run:
    """Run `servekit` to its end with this process's variables, without servekit's own and with `environ`."""

    def start(*words: str, cwd: Path = root, environ: dict[str, str] | None = None, **others: Any) -> Any:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SERVEKIT_")}
        return subprocess.run(
            [PROGRAM, *words],
            cwd=cwd,
            env=clean | (environ or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **others,
        )

    return start


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A profile with five mistakes: four with a line and one without."""
    path = tmp_path / "broken.yaml"
    path.write_text(BROKEN)
    return path


# check


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--config", "vllm_config.yaml"),
        ("--config", "profiles/fp16-baseline.yaml", "--deviate", "quantization", "--deviate", "kv-cache-dtype"),
    ],
)
def test_check_accepts_what_is_shipped(run: Run, flags: tuple[str, ...]) -> None:
    """The shipped profiles are valid, and the one line of output names the file and the version of vLLM."""
    done = run("check", "--profile-only", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"settings, all valid for vLLM {ENGINE_VERSION}\n")


def test_check_tells_deviations(run: Run) -> None:
    """Allowed deviations from the contract are printed before the verdict."""
    flags = ("--deviate", "quantization", "--deviate", "kv-cache-dtype")
    done = run("check", "--profile-only", "--config", "profiles/fp16-baseline.yaml", *flags)
    assert "deviation: kv-cache-dtype: auto instead of fp8_e4m3" in done.stdout


@pytest.fixture
def here(tmp_path: Path, free_port: int) -> dict[str, str]:
    """Settings with which the demo checkpoint would start here: an engine, and ports and folders of this test."""
    engine = write_program(tmp_path / "engine", "exit 1")
    return {
        "SERVEKIT_TARGET": "cpu",
        "SERVEKIT_SKIP": "cpu-memory",  # other tests run beside this one
        "SERVEKIT_ENGINE": str(engine),
        "SERVEKIT_PORT": str(free_port),
        "SERVEKIT_OBSERVE_PORT": str(find_free_port()),
        "SERVEKIT_STATE_DIR": str(tmp_path / "state"),
        "SERVEKIT_CACHE_DIR": str(tmp_path / "cache"),
    }


def test_check_examines_what_would_be_served(run: Run, here: dict[str, str], tmp_path: Path) -> None:
    """`check` starts nothing, creates nothing but the demo checkpoint, and its JSON holds the findings."""
    done = run("check", environ=here)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all valid for vLLM" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "engine"]
    examined = json.loads(run("check", "--format", "json", environ=here).stdout)
    assert all(finding["severity"] != "error" for finding in examined["findings"])
    assert examined["checkpoint"]["tensors"] > 100


def test_check_refuses_a_checkpoint_that_is_none(run: Run, tmp_path: Path, free_port: int) -> None:
    """A valid profile with a checkpoint that cannot be served ends with 3 and a finding."""
    done = run("check", "--target", "cpu", "--model", str(tmp_path), "--port", str(free_port))
    assert done.returncode == 3
    assert f"{tmp_path}/config.json: error: " in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["check", "plan", "serve"])
def test_broken_profile_tells_every_mistake(run: Run, broken: Path, command: str) -> None:
    """All mistakes are printed to standard error with file and line, and the exit code is 2."""
    done = run(command, "--config", str(broken))
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    places = [line.split(" ")[0] for line in lines]
    assert places == [*(f"{broken}:{line}:" for line in (1, 2, 4, 6)), f"{broken}:"]
    assert "did you mean max-num-batched-tokens?" in lines[1]
    assert "SERVEKIT_PORT or --port" in lines[2]
    assert "limit-mm-per-prompt: is missing" in lines[4]


def test_check_as_json_is_json_for_every_mistake(run: Run, broken: Path) -> None:
    """With `--format json` mistakes in the profile, the settings and the files are JSON on standard output too."""
    for words, subjects in (
        (("--config", str(broken)), ["broken.yaml"] * 5),
        (("--config", str(broken), "--skip", "gpu-memori", "--profile-only"), ["broken.yaml"] * 5 + ["--skip"]),
        (("--port", "x", "--drain-s", "y"), ["--port", "--drain-s"]),
        (("--model", "pyproject.toml", "--api-keys-file", "/nowhere"), ["nowhere", "--model"]),
    ):
        done = run("check", "--format", "json", *words)
        assert (done.returncode, done.stderr) == (2, "")
        assert [finding["subject"] for finding in json.loads(done.stdout)["findings"]] == subjects


def test_notes_of_a_profile(run: Run, tmp_path: Path, root: Path) -> None:
    """A setting without effect is a note in `check`, also as JSON and with `--profile-only`, and in `plan`."""
    profile = tmp_path / "profile.yaml"
    profile.write_text((root / "vllm_config.yaml").read_text() + "\nenable-sleep-mode: true\n")
    flags = ("--config", str(profile))
    text = run("check", "--profile-only", *flags).stdout
    assert "note: enable-sleep-mode: has no effect: the guard answers 404 on /sleep" in text
    (note,) = json.loads(run("check", "--profile-only", "--format", "json", *flags).stdout)["findings"]
    assert (note["key"], note["severity"]) == ("enable-sleep-mode", "note")
    assert "note       enable-sleep-mode has no effect" in run("plan", "--target", "cpu", *flags).stdout


def test_missing_profile(run: Run, tmp_path: Path) -> None:
    """A missing file is an error with a remedy, not a traceback."""
    done = run("check", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("vllm_config.yaml: error: ")
    assert "Traceback" not in done.stderr


def test_broken_serve_starts_nothing(run: Run, broken: Path, tmp_path: Path) -> None:
    """A broken profile leaves no trace: no engine, no folder."""
    started = tmp_path / "started"
    engine = write_program(tmp_path / "engine", f"touch {started}")
    environ = {"SERVEKIT_ENGINE": str(engine), "SERVEKIT_STATE_DIR": str(tmp_path / "state")}
    done = run("serve", "--config", str(broken), environ=environ | {"SERVEKIT_CACHE_DIR": str(tmp_path / "cache")})
    assert done.returncode == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.yaml", "engine"]


# plan


def test_plan_is_json(run: Run) -> None:
    """The plan as JSON holds argv, environment, addresses, deadlines, contract and deviations."""
    done = run("plan", "--target", "cuda", "--port", "8001", "--drain-s", "20", "--format", "json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["argv"][:2] == ["vllm", "serve"]
    assert plan["argv"][plan["argv"].index("--port") + 1] == "8001"
    assert plan["addresses"]["endpoint"] == "127.0.0.1:8001"
    assert plan["deadlines_s"]["drain"] == 20
    assert plan["deadlines_s"]["stop"] > plan["deadlines_s"]["drain"]
    assert plan["contract"]["kv-cache-dtype"] == "fp8_e4m3"
    assert plan["deviations"] == []
    assert plan["environment"]["VLLM_NO_USAGE_STATS"] == "1"


def test_plan_on_the_cpu_names_its_deviation(run: Run) -> None:
    """For the CPU target, the plan lists the deviation and each adjustment."""
    text = run("plan", "--target", "cpu").stdout
    assert "deviation  kv-cache-dtype: auto instead of fp8_e4m3: the CPU engine has no FP8 KV cache" in text
    assert "adjusted   enforce-eager: True" in text
    assert "(embedded, built on first use)" in text


@pytest.mark.parametrize("output", ["text", "json"])
def test_plan_masks_secrets(run: Run, output: str) -> None:
    """Tokens and keys are never shown, whether they are passed on to the engine or withheld."""
    environ = {"HF_TOKEN": "hf_geheim", "VLLM_API_KEY": "sk-geheim", "HF_HOME": "/models"}
    done = run("plan", "--target", "cpu", "--format", output, environ=environ)
    assert done.returncode == 0
    assert "geheim" not in done.stdout + done.stderr
    assert "/models" in done.stdout


@pytest.mark.parametrize(
    "command", [("check", "--profile-only"), ("plan", "--target", "cpu"), ("plan", "--target", "cuda"), ("schema",)]
)
def test_no_engine_is_needed(run: Run, command: tuple[str, ...]) -> None:
    """Commands that are not about this host work without an engine, on an empty PATH."""
    done = run(*command, environ={"PATH": "", "SERVEKIT_ENGINE": "/nowhere/vllm"})
    assert done.returncode == 0, done.stderr


BASELINE = (
    "--config",
    "profiles/fp16-baseline.yaml",
    "--deviate",
    "quantization,kv-cache-dtype",
    "--embeddings",
    "gpu",
)


@pytest.mark.parametrize(
    ("flags", "shapes", "weights"), [((), "in W4A16", "3.88 GiB"), (BASELINE, "in BF16, as the profile", "14.59 GiB")]
)
def test_plan_says_what_its_shapes_are(
    run: Run, tmp_path: Path, flags: tuple[str, ...], shapes: str, weights: str
) -> None:
    """Without the model's files, `plan` uses known shapes that fit the profile, and says so."""
    environ = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    text = run("plan", "--gpu", "l4", *flags, environ=environ).stdout
    assert f"  weights{weights:>41}\n" in text
    assert f"note: planned from the known shapes of gemma-4-E4B {shapes}" in text
    planned = json.loads(run("plan", "--gpu", "l4", "--format", "json", *flags, environ=environ).stdout)
    assert "memory-known-shapes" in [finding["name"] for finding in planned["findings"]]


@pytest.mark.parametrize("files", [(), ("--model", "demo")])
def test_plan_of_a_context_longer_than_the_model(run: Run, root: Path, tmp_path: Path, files: tuple[str, ...]) -> None:
    """A context length beyond the model's positions is an error of the plan, with the model's files and without."""
    build_demo_model(tmp_path / "demo")
    profile = (root / "vllm_config.yaml").read_text()
    (tmp_path / "long.yaml").write_text(re.sub(r"(?m)^max-model-len:.*", "max-model-len: 300000", profile))
    words = (str(tmp_path / word) if word == "demo" else word for word in files)
    environ = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    told = run("plan", "--gpu", "l4", "--config", str(tmp_path / "long.yaml"), *words, environ=environ).stdout
    assert "error: max-model-len: must be at most the model's max_position_embeddings 131,072 (got 300,000)" in told


def test_plan_of_a_model_that_is_not_here(run: Run, tmp_path: Path) -> None:
    """The reason why the memory is not planned for a named GPU is the model, never this host's driver."""
    done = run("plan", "--gpu", "l4", "--model", "o/n", environ={"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"})
    assert re.search(r"\nmemory     not planned: .*(cache|hub)", done.stdout)
    assert "driver" not in done.stdout


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (("--gpu", "l4"), []),
        (("--gpu", "a100-40"), ["gpu-capability"]),
        (("--gpu", "a100-40", "--fp8-activations"), ["fp8-activations", "gpu-capability"]),
    ],
)
def test_plan_for_a_gpu_that_cannot_run_the_profile(
    run: Run, tmp_path: Path, flags: tuple[str, ...], names: list[str]
) -> None:
    """The plan for a named GPU has the errors that a start on it would end with."""
    environ = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    told = re.findall(r"^error: .*\[(.*)\]$", run("plan", *flags, environ=environ).stdout, re.MULTILINE)
    assert sorted(told) == names


@pytest.mark.parametrize("flags", [("--gpu", "16GiB", "--embeddings", "gpu"), ("--gpu", "16GiB", *BASELINE)])
def test_plan_counts_weights_in_the_hosts_memory(run: Run, root: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """`cpu-offload-gb` leaves on the GPU what vLLM does not offload: embeddings, towers and buffers."""
    profile, flags = tmp_path / "profile.yaml", tuple(flags)
    shipped = root / (flags[flags.index("--config") + 1] if "--config" in flags else "vllm_config.yaml")
    profile.write_text(shipped.read_text() + "\ncpu-offload-gb: 8\n")
    environ = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "SERVEKIT_CONFIG": str(profile)}
    rest = [flag for flag in flags if flag not in ("--config", "profiles/fp16-baseline.yaml")]
    planned = json.loads(run("plan", "--format", "json", *rest, environ=environ).stdout)
    assert round(planned["memory"]["weights_bytes"] / 2**30, 2) == 7.14


# schema, demo-model, probe


def test_schema_holds_for_the_shipped_profile(run: Run, root: Path) -> None:
    """The output is a valid schema, accepts the shipped profile and rejects a broken one."""
    schema = json.loads(run("schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(yaml.safe_load((root / "vllm_config.yaml").read_text()))
    assert not validator.is_valid(yaml.safe_load(BROKEN))


def test_demo_model(run: Run, tmp_path: Path) -> None:
    """The demo checkpoint is written to a new folder; a folder that is not empty is rejected with 2."""
    directory = tmp_path / "deep" / "demo"
    done = run("demo-model", str(directory))
    assert done.returncode == 0, done.stderr
    assert json.loads((directory / "config.json").read_text())["quantization_config"]
    assert list(directory.glob("*.safetensors"))
    again = run("demo-model", str(directory))
    assert again.returncode == 2
    assert str(directory) in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize("question", ["live", "ready"])
def test_probe_with_nobody_there(run: Run, free_port: int, question: str) -> None:
    """If no servekit answers, the exit code is 1, and the message names the address."""
    done = run("probe", question, "--observe-port", str(free_port))
    assert done.returncode == 1
    assert done.stdout.startswith(f"no servekit answers on http://127.0.0.1:{free_port}")
    assert "Traceback" not in done.stderr


# the command line itself


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--nonsense",), "No such option"),
        (("chekc",), "No such command"),
        (("check", "--nonsense"), "No such option"),
        (("plan", "--format", "xml"), "'xml' is not one of"),
        (("probe", "whether"), "'whether' is not one of"),
        (("demo-model",), "Missing argument"),
        (("serve", "--port", "70000"), "error: --port: input should be less than or equal to 65535 (got '70000')"),
        (("check", "--deviate", "seed"), "is not a key of the contract"),
        ((), "Usage: servekit"),
    ],
)
def test_wrong_command_lines(run: Run, words: tuple[str, ...], told: str) -> None:
    """An invalid command line ends with 2 and the reason."""
    done = run(*words)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_variable(run: Run) -> None:
    """A mistyped variable is an error that suggests the right name."""
    done = run("check", environ={"SERVEKIT_CONFGI": "x.yaml"})
    assert done.returncode == 2
    assert done.stderr == "error: SERVEKIT_CONFGI: no such setting; did you mean SERVEKIT_CONFIG?\n"


def test_version(run: Run) -> None:
    """The output has servekit's version and the engine's."""
    assert run("--version").stdout == f"servekit {__version__}, for vLLM {ENGINE_VERSION}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches(name: str) -> None:
    """Each command's help describes it and shows an example."""
    text = help_of(name)
    assert re.search(r"Examples?\b", text)
    assert f"servekit {name}" in text.partition("Example")[2]


@pytest.mark.parametrize("name", ["check", "doctor", "plan", "probe", "serve"])
def test_help_tells_exit_codes(name: str) -> None:
    """The help of commands whose exit codes scripts rely on lists them."""
    assert "Exit codes: 0" in help_of(name)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_no_inner_words(name: str) -> None:
    """A default is shown in the form a user would write, and is left out if there is nothing to write."""
    text = " ".join(help_of(name).split())
    assert "default: None" not in text
    assert "default: False" not in text


def test_help_of_the_whole_is_short_and_fits(run: Run) -> None:
    """`servekit --help` lists every command and shows examples, in 110 columns."""
    text = run("--help").stdout
    assert "Examples:" in text
    assert all(f"\n  {name} " in text for name in COMMANDS)
    assert max(map(len, text.splitlines())) <= 110


def test_bug_is_told_as_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An unexpected exception ends with 70, its traceback and a request to report it."""

    def fail(**_: object) -> NoReturn:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(cli.command.commands["schema"], "callback", fail)
    monkeypatch.setattr(sys, "argv", ["servekit", "schema"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 70
    told = capsys.readouterr().err
    assert "RuntimeError: unforeseen" in told
    assert "Traceback" in told
    assert "bug in servekit" in told


def test_interrupt_is_told_by_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C during a read-only command ends with 130, as a shell expects."""

    def interrupt(**_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.command.commands["schema"], "callback", interrupt)
    monkeypatch.setattr(sys, "argv", ["servekit", "schema"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130


RUN_CHECK = """
import sys
from servekit.cli import main as cli
sys.argv = ["servekit", "check", "--profile-only"]
try:
    cli.main()
except SystemExit as ended:
    assert ended.code == 0
"""
ENGINES_OWN = "vllm torch transformers numpy"


@pytest.mark.parametrize(
    ("words", "unwanted"),
    [
        ("import servekit.cli.main", f"{ENGINES_OWN} urllib3 prometheus_client"),
        (RUN_CHECK, ENGINES_OWN),
        ("import servekit.cli.main, servekit.run, servekit.demo.build", ENGINES_OWN),
    ],
)
def test_imports(root: Path, words: str, unwanted: str) -> None:
    """servekit never imports the engine or its libraries, and does not import an HTTP library at start-up."""
    program = f"{words}\nimport sys\nprint('left:', [name for name in {unwanted.split()} if name in sys.modules])"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SERVEKIT_")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environ, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["left: []"], done.stdout + done.stderr


def write_program(path: Path, line: str) -> Path:
    """Write an executable that runs one shell command."""
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return path


def help_of(name: str) -> str:
    """Return a command's help on a wide terminal."""
    found = CliRunner().invoke(cli.command, [name, "--help"], terminal_width=200, max_content_width=200)
    assert isinstance(cli.command.commands[name], click.Command)
    assert found.exit_code == 0
    return found.output


def test_trouble_with_files_is_the_users() -> None:
    """A file or device that cannot be used exits with 2 and its reason, never with 70."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([PROGRAM, "schema"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: No space left on device\n")
    done = subprocess.run([PROGRAM, "demo-model", "/proc/x/y"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "/proc/x" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("space", ["abc", "1.5", "-1"])
def test_space_of_the_cpu_engine(space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """VLLM_CPU_KVCACHE_SPACE is a whole number for vLLM 0.20.2, and so for servekit."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", space)
    found = CliRunner().invoke(cli.command, ["plan", "--target", "cpu"])
    assert isinstance(found.exception, ServekitError)
    assert f"VLLM_CPU_KVCACHE_SPACE: must be a whole number of GiB (got {space})" in str(found.exception)
    assert CliRunner().invoke(cli.command, ["plan", "--gpu", "l4"]).exit_code == 0, "a GPU has no use for it"
