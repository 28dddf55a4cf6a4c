"""What preflight makes of the hub's answer; a script stands in for the engine's Python and the hub's client."""

import json
from pathlib import Path
from typing import Any

import pytest

from servekit.preflight.examine import examine
from servekit.preflight.hub.hub_answer import HubAnswer, ask_hub
from servekit.preflight.hub.hub_model import HubModel
from servekit.preflight.hub.hub_program import MARK
from servekit.preflight.start import Start
from servekit.profile import resolve
from servekit.settings import Target


@pytest.fixture
def model(tmp_path: Path) -> HubModel:
    """A model of which the cache has nothing, asked for by a script."""
    return HubModel(
        name="owner/name",
        revision="main",
        repository=tmp_path / "hub" / "models--owner--name",
        commit="",
        whole=False,
        offline=False,
        python=str(tmp_path / "python3"),
    )


def ask(model: HubModel, script: str) -> HubAnswer:
    """Ask; the client is a shell script."""
    path = Path(model.python)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return ask_hub(model, {"PATH": "/usr/bin:/bin"})


def listing(**reports: Any) -> str:
    """Return a script that prints these reports, after a warning of the client's own."""
    return "echo a warning\n" + "".join(f"echo '{MARK}{json.dumps({name: each})}'\n" for name, each in reports.items())


def test_the_disk_must_hold_what_is_missing(model: HubModel, tmp_path: Path) -> None:
    """Preflight wants room for exactly the bytes that are not there, in the folder of the cache."""
    total = 1 << 60
    answer = ask(model, listing(bytes=1 << 59, total=total, commit="a" * 40))
    assert answer.missing_bytes == total - (1 << 59)
    start = Start(
        target=Target.CPU,
        profile=tmp_path / "profile.yaml",
        model=model.name,
        hub=model,
        values={},
        arguments=resolve({}, target=Target.CPU),
        addresses={},
        cache_dir=tmp_path,
    )
    found = [each for each in examine(start).findings if each.name == "cache-space"]
    assert [each.subject for each in found] == [str(model.repository)]
    assert f"{((1 << 59) + (2 << 30)) / (1 << 30):,.1f} GiB" in found[0].message


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 0", "no output"),
        ("echo Traceback >&2; echo 'SystemError: gone' >&2; exit 1", "SystemError: gone"),
        ("sleep 60", "no answer within 1 s"),
    ],
)
def test_a_client_that_fails_is_a_warning(
    model: HubModel, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    """A client that answers nothing ends no start: the download itself tries again."""
    monkeypatch.setattr("servekit.preflight.hub.hub_answer.ASK_S", 1.0)
    (found,) = ask(model, script).findings
    assert (found.name, str(found.severity)) == ("hub-unreachable", "warning")
    assert words in found.message


def test_python_that_cannot_run(model: HubModel) -> None:
    """A Python that has vanished is a warning too."""
    (found,) = ask_hub(model, {}).findings
    assert "No such file" in found.message


def test_without_the_engines_python(model: HubModel) -> None:
    """Where the engine's Python is unknown, preflight says that it could not ask."""
    found = ask_hub(model.unasked, {}).findings
    assert [(each.name, str(each.severity)) for each in found] == [("hub-download", "note"), ("hub-unasked", "note")]
