"""`servekit check` against `servekit serve`: what the one refuses, the other refuses, in the same words."""

import fcntl
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import find_free_port

PROGRAM = Path(sys.executable).with_name("servekit")
Place = dict[str, str]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Variables with which the demo checkpoint would start, and a few files to make mistakes with."""
    engine = tmp_path / "engine"
    engine.write_text("#!/bin/sh\nexit 1\n")
    engine.chmod(0o755)
    (tmp_path / "readable").write_text("sk-0123456789abcdef0123456789abcdef\n")
    (tmp_path / "readable").chmod(0o644)
    (tmp_path / "short").touch(mode=0o600)
    (tmp_path / "short").write_text("sk-short\n")
    (tmp_path / "file").touch()
    return {
        "SERVEKIT_TARGET": "cpu",
        "SERVEKIT_SKIP": "cpu-memory",  # other tests run beside this one
        "SERVEKIT_ENGINE": str(engine),
        "SERVEKIT_PORT": str(find_free_port()),
        "SERVEKIT_OBSERVE_PORT": str(find_free_port()),
        "SERVEKIT_STATE_DIR": str(tmp_path / "state"),
        "SERVEKIT_CACHE_DIR": str(tmp_path / "cache"),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
    }


def errors(command: str, words: list[str], root: Path, place: Place) -> tuple[int, list[str]]:
    """Return the exit code of a command and its errors, without what the log puts before and after them."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SERVEKIT_")}
    done = subprocess.run(
        [PROGRAM, command, *words],
        cwd=root,
        env=clean | place,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert "Traceback" not in done.stderr
    lines = (line.removeprefix("servekit | ") for line in (done.stdout + done.stderr).splitlines())
    return done.returncode, [line for line in lines if re.search(r"(^|: )error: ", line)]


@pytest.mark.parametrize(
    ("words", "variables", "code", "told"),
    [
        ("--api-keys-file /nowhere/keys", {}, 2, "/nowhere/keys: error: No such file"),
        ("--api-keys-file {tmp}/readable", {}, 2, "readable: error: its mode 0644 lets others read"),
        ("--api-keys-file {tmp}/short", {}, 2, "short:1: error: a key must have"),
        ("--host 0.0.0.0 --no-auth", {}, 2, "error: --no-auth: gives access to everyone"),
        ("", {"SERVEKIT_HOST": "::", "SERVEKIT_NO_AUTH": "1"}, 2, "error: SERVEKIT_NO_AUTH: gives access to"),
        ("--no-auth --api-keys-file {tmp}/short", {}, 2, "error: --no-auth: contradicts the file of API keys"),
        ("--media-domains a.example,https://example.org/", {}, 2, "error: --media-domains: is not a host name"),
        ("", {"SERVEKIT_MEDIA_DOMAINS": "*.example"}, 2, "error: SERVEKIT_MEDIA_DOMAINS: is not a host name"),
        ("--structured-outputs rexeg", {}, 2, "error: --structured-outputs: is not a kind"),
        ("--model pyproject.toml", {}, 2, "error: --model: is a file, not a folder (got pyproject.toml)"),
        ("--model https://example.org/a/b", {}, 2, "error: --model: is a URL"),
        ("", {"SERVEKIT_MODEL": "pyproject.toml"}, 2, "error: SERVEKIT_MODEL: is a file"),
        ("--observe-port {port}", {}, 2, "error: --observe-port: is the endpoint's port too"),
        ("--state-dir {tmp}/file/state", {}, 2, "state: error: "),
        ("--state-dir ~nosuchuser/x", {}, 2, "error: --state-dir: this user has no such home"),
        ("--skip cpu-memori", {}, 2, "error: --skip: is not the name of a finding (got cpu-memori); did you mean cpu-"),
        ("", {"SERVEKIT_SKIP": "x"}, 2, "error: SERVEKIT_SKIP: is not the name of a finding (got x); give the name in"),
        ("--deviate seed,zeal", {}, 2, "error: --deviate: is not a key of the contract (got seed)"),
        ("", {"SERVEKIT_DEVIATE": "seed"}, 2, "error: SERVEKIT_DEVIATE: is not a key of the contract"),
        ("--tls-cert {tmp}/file", {}, 2, "error: --tls-key: is missing"),
        ("--engine nosuch", {}, 3, "error: --engine: no such program: nosuch"),
        ("", {"SERVEKIT_ENGINE": "/"}, 3, "error: SERVEKIT_ENGINE: is a folder, not a program: /"),
        ("--model ~nosuchuser/x", {}, 3, "error: ~nosuchuser/x: no such folder"),
    ],
)
def test_check_refuses_what_serve_refuses(
    root: Path, tmp_path: Path, place: Place, words: str, variables: Place, code: int, told: str
) -> None:
    """Same exit code, same errors; a setting has the name by which it was given, and nothing is created."""
    flags = words.format(tmp=tmp_path, port=place["SERVEKIT_PORT"]).split()
    checked = errors("check", flags, root, place | variables)
    assert checked == errors("serve", flags, root, place | variables)
    assert checked[0] == code
    assert any(told in line for line in checked[1]), checked
    assert code == 3 or not {"state", "cache"} & {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("name", ["SERVEKIT_PORT", "SERVEKIT_OBSERVE_PORT"])
def test_check_sees_a_taken_port(root: Path, place: Place, name: str) -> None:
    """A port that another program holds is exit code 3 for both, in the same words."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(place[name])))
        other.listen()
        checked, served = (errors(command, [], root, place) for command in ("check", "serve"))
    assert checked[0] == served[0] == 3
    assert [line for line in checked[1] if f"127.0.0.1:{place[name]}" in line] == served[1]


def test_check_sees_a_second_start(root: Path, tmp_path: Path, place: Place) -> None:
    """While another servekit holds the run's folder, neither would start; `check` leaves its lock alone."""
    run_dir = tmp_path / "state" / f"run-{place['SERVEKIT_PORT']}"
    run_dir.mkdir(parents=True)
    with (run_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        checked, served = (errors(command, [], root, place) for command in ("check", "serve"))
    assert checked == served
    assert (checked[0], len(checked[1])) == (3, 1)
    assert "another servekit runs with this state folder and this port" in checked[1][0]


def test_check_says_that_it_would_start(root: Path, tmp_path: Path, place: Place) -> None:
    """Where nothing is wrong, `check` ends with 0 and has created no state: no key, no folder of a run."""
    assert errors("check", [], root, place) == (0, [])
    assert not (tmp_path / "state").exists()
