"""`servekit key`: where the keys are, what the key is, a new one."""

from pathlib import Path

import click.testing
import pytest

from servekit.cli.main import command
from servekit.errors import ConfigurationError
from servekit.serve.guard.keys import ensure_key_file, load_keys


def run(*words: str, state: Path) -> click.testing.Result:
    """Run `servekit key` with this state folder."""
    return click.testing.CliRunner().invoke(command, ["key", "--state-dir", str(state), *words])


def test_path_and_key(tmp_path: Path) -> None:
    """Without a flag the path is told and never the key; --show prints the key alone."""
    ensure_key_file(tmp_path / "api_keys")
    (key,) = load_keys(tmp_path / "api_keys")
    told = run(state=tmp_path)
    assert told.output.strip() == str(tmp_path / "api_keys")
    assert key not in told.output
    assert run("--show", state=tmp_path).output.strip() == key


def test_rotation(tmp_path: Path) -> None:
    """--new replaces the key; with --keep-old the old one stays valid behind it."""
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
    """A key file of the operator's is read and named, and none is made beside it."""
    own = tmp_path / "keys"
    ensure_key_file(own)
    told = run("--api-keys-file", str(own), state=tmp_path / "state")
    assert told.output.strip() == str(own)
    assert not (tmp_path / "state").exists()


def test_mistakes(tmp_path: Path) -> None:
    """--keep-old alone is a usage error; showing a key that is not there says what to do."""
    assert run("--keep-old", state=tmp_path).exit_code == 2
    made = run("--show", state=tmp_path)
    assert isinstance(made.exception, ConfigurationError)
    with pytest.raises(ConfigurationError, match="servekit key --new"):
        raise made.exception
