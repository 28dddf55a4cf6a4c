"""The clients' keys and servekit's token appear only where they belong."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from servekit.serve.guard.keys import rotate_key
from tests.guard.conftest import GuardedEngine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


def test_no_secret_leaks(engine: GuardedEngine, requests: SimpleNamespace) -> None:
    """A known key and the token are in no log, argument, environment, cache, metric or other file of the run."""
    engine.request("POST", "/v1/chat/completions", requests.chat())
    engine.request("POST", "/v1/chat/completions", requests.chat(n="x"))
    engine.request("GET", "/nowhere")
    engine.request("GET", "/v1/models", key=False, headers={"authorization": f"Basic {engine.key}"})
    secrets = [engine.key.encode(), engine.guard.headers["x-servekit-token"].encode()]
    for process in engine.family():
        for name in ("cmdline", "environ"):
            content = Path(f"/proc/{process.pid}/{name}").read_bytes()
            assert not any(secret in content for secret in secrets), (process, name)
    holders = set()
    for root, _, names in os.walk(engine.folder):
        for name in names:
            content = (Path(root) / name).read_bytes()
            holders |= {(Path(root) / name, secret) for secret in secrets if secret in content}
    assert holders == {(engine.key_file, secrets[0])}
    for path in ("/metrics", "/_servekit/counters", "/_servekit/effective"):
        page = engine.request("GET", path, key=False, headers=engine.guard.headers).data
        assert not any(secret in page for secret in secrets), path


def test_the_files_are_private(engine: GuardedEngine) -> None:
    """The key file and the guard's configuration can be read by their owner only."""
    for path in (engine.key_file, engine.guard.config_path):
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_rotated_key_works_without_a_restart(engine: GuardedEngine) -> None:
    """A new key works within two seconds and the old one stops working; a broken file changes nothing."""
    old, before = engine.key, engine.counters()["key_reloads"]
    try:
        engine.key = rotate_key(engine.key_file)
        time.sleep(1.1)
        assert engine.request("GET", "/v1/models").status == 200
        old_header = {"authorization": f"Bearer {old}"}
        assert engine.request("GET", "/v1/models", key=False, headers=old_header).status == 401
        assert engine.counters()["key_reloads"] == before + 1

        text = engine.key_file.read_text()
        for broken in ("", "# nothing\n", "short\n", "two words that are no key at all\n"):
            engine.key_file.write_text(broken)
            time.sleep(1.1)
            assert engine.request("GET", "/v1/models").status == 200
        assert engine.counters()["key_file_problem"]
        assert "the old keys stay valid" in engine.log.read_text()
        engine.key_file.write_text(text)
    finally:
        time.sleep(1.1)
        assert engine.request("GET", "/v1/models").status == 200
