"""`servekit key`: where the keys are, which key is in use, and how to replace it."""

import os
import subprocess
from pathlib import Path

import click.testing
import pytest

from servekit.cli.main import command
from servekit.errors import ConfigurationError
from servekit.file_trouble import AS_OWNER
from servekit.serve.guard.keys import ensure_key_file, load_key_lines, load_keys


def run(*words: str, state: Path) -> click.testing.Result:
    """Run `servekit key` with this state folder."""
    return click.testing.CliRunner().invoke(command, ["key", "--state-dir", str(state), *words])


def test_path_and_key(tmp_path: Path) -> None:
    """Without a flag it prints the path and never the key; --show prints only the key."""
    ensure_key_file(tmp_path / "api_keys")
    (key,) = load_keys(tmp_path / "api_keys")
    told = run(state=tmp_path)
    assert told.output.strip() == str(tmp_path / "api_keys")
    assert key not in told.output
    assert run("--show", state=tmp_path).output.strip() == key


def test_rotation(tmp_path: Path) -> None:
    """--new replaces the key; with --keep-old the old one stays valid after it."""
    assert run("--new", state=tmp_path).exit_code == 0
    (first,) = load_keys(tmp_path / "api_keys")
    assert run("--new", "--keep-old", state=tmp_path).exit_code == 0
    second, old = load_keys(tmp_path / "api_keys")
    assert old == first
    shown = run("--new", "--show", state=tmp_path)
    (third,) = load_keys(tmp_path / "api_keys")
    assert shown.stdout.strip() == third
    assert third not in {first, second}


def test_own_key_file(tmp_path: Path) -> None:
    """The operator's own key file is read and named, and servekit generates no key beside it."""
    own = tmp_path / "keys"
    ensure_key_file(own)
    told = run("--api-keys-file", str(own), state=tmp_path / "state")
    assert told.output.strip() == str(own)
    assert not (tmp_path / "state").exists()


def test_mistakes(tmp_path: Path) -> None:
    """--keep-old alone is a usage error; --show without a key ends with a remedy."""
    assert run("--keep-old", state=tmp_path).exit_code == 2
    made = run("--show", state=tmp_path)
    assert isinstance(made.exception, ConfigurationError)
    with pytest.raises(ConfigurationError, match="servekit key --new"):
        raise made.exception


@pytest.mark.parametrize(("mode", "owner"), [(0o644, 0), (0o600, 1000), (0o644, 1000)])
def test_key_file_that_the_guard_refuses(tmp_path: Path, mode: int, owner: int) -> None:
    """A key file with another owner or too wide a mode is named with the command that mends it."""
    path = tmp_path / "api_keys"
    ensure_key_file(path)
    path.chmod(mode)
    if owner and os.geteuid() != 0:
        pytest.skip("only root can give files away")
    if owner:
        os.chown(path, owner, owner)
    with pytest.raises(ConfigurationError) as caught:
        load_keys(path)
    (finding,) = caught.value.findings
    chown = f"sudo chown {os.geteuid()} {path} && sudo " if owner else ""
    assert finding.remedy == f"run: {chown}chmod 0600 {path}"
    subprocess.run(finding.remedy.removeprefix("run: ").replace("sudo ", ""), shell=True, check=True)  # noqa: S602
    assert len(load_keys(path)) == 1


def test_a_readable_key_file_of_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another user may read a service's key file, `key` does not advise to take it from the service."""
    path = tmp_path / "api_keys"
    ensure_key_file(path)
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(path, 10001, 10001)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigurationError, match=AS_OWNER):
        load_key_lines(path, manage=True)
    with pytest.raises(ConfigurationError, match="sudo chown 1000"):
        load_keys(path)
