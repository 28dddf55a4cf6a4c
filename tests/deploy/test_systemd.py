"""The systemd unit: systemd's own verdict on it, and times that fit servekit's."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from servekit.errors import ExitCode
from servekit.serve.plan import STOP_MARGIN_S
from servekit.settings import Settings

EXPOSURE = 2.0
"""Highest exposure level of `systemd-analyze security`, from 0 to 10; systemd rates values below 2.5 as "OK"."""


@pytest.fixture
def unit(root: Path) -> Path:
    """The shipped unit."""
    return root / "deploy/systemd/servekit.service"


@pytest.fixture
def service(unit: Path) -> dict[str, str]:
    """The settings of the unit's [Service] section; a repeated setting has its last value."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(unit.read_text())
    return dict(parser["Service"])


@pytest.fixture
def analyze(tmp_path: Path, unit: Path) -> list[str]:
    """`systemd-analyze`, and the unit with a program that exists here."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("needs systemd-analyze (Debian's systemd)")
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/servekit/bin/servekit", "/bin/true"))
    return [program, str(copy)]


def test_systemd_takes_it(analyze: list[str]) -> None:
    """systemd reports no problem."""
    program, unit = analyze
    done = subprocess.run([program, "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_exposure(analyze: list[str]) -> None:
    """systemd's own exposure score confirms how little the service may do."""
    program, unit = analyze
    done = subprocess.run(
        [program, "security", "--offline=true", f"--threshold={EXPOSURE * 10:.0f}", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-300:]


def test_times_fit(service: dict[str, str]) -> None:
    """systemd waits longer than servekit takes to start, and longer than it takes to drain and kill."""
    settings = Settings()
    assert int(service["TimeoutStartSec"]) > settings.start_s
    assert int(service["TimeoutStopSec"]) > settings.drain_s + STOP_MARGIN_S
    assert service["KillMode"] == "mixed", "a SIGTERM to the engine would end it before the drain"


def test_exit_codes(service: dict[str, str]) -> None:
    """systemd does not restart after errors that a restart cannot fix, and does not count cut requests as a failure."""
    lasting = {ExitCode.CONFIGURATION, ExitCode.PREFLIGHT, ExitCode.CONTRACT_BROKEN}
    assert {int(code) for code in service["RestartPreventExitStatus"].split()} == lasting
    assert int(service["SuccessExitStatus"]) == ExitCode.DRAIN_RAN_OUT


def test_folders_and_flags_exist(unit: Path) -> None:
    """The unit sets only variables that are servekit's settings."""
    names = re.findall(r"\bSERVEKIT_([A-Z_]+)=", unit.read_text())
    assert names
    assert {name.lower() for name in names} <= Settings.model_fields.keys()
