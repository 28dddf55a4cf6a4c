"""The first start from a hub, by the `servekit` command: what preflight says, the download, what ends it."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.endpoint import SERVEKIT, Endpoint
from tests.hub.conftest import COMMIT, DEMO
from tests.hub.rig import Hub

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
TOKEN = "hf_" + "x" * 30
COMMAND = [sys.executable, *SERVEKIT]


@pytest.fixture
def checkpoint(demo_checkpoint: Path) -> Path:
    """The files of the model in the hub."""
    return demo_checkpoint


@pytest.fixture
def server(demo_hub: Hub) -> Hub:
    """A hub with the demo checkpoint."""
    return demo_hub


@pytest.fixture
def check(environ: dict[str, str]) -> Callable[..., tuple[int, dict[str, dict[str, Any]]]]:
    """Run `servekit check`; return its exit code and the findings about the hub by name."""

    def run(*flags: str, **variables: str) -> tuple[int, dict[str, dict[str, Any]]]:
        done = subprocess.run(
            [*COMMAND, "check", "--format", "json", *flags],
            env=environ | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert TOKEN not in done.stdout + done.stderr
        return done.returncode, {each["name"]: each for each in json.loads(done.stdout)["findings"]}

    return run


Check = Callable[..., tuple[int, dict[str, dict[str, Any]]]]
Serve = Callable[..., Endpoint]


def test_absent_model_will_be_downloaded(check: Check, server: Hub, checkpoint: Path) -> None:
    """A model that the hub offers is a note with its size; nothing is downloaded."""
    total = sum(path.stat().st_size for path in checkpoint.iterdir())
    code, found = check()
    assert (code, found["hub-download"]["severity"]) == (0, "note")
    assert f"the start downloads {total / 1e6:.1f} MB" in found["hub-download"]["message"]
    assert server.requests["store GET"] == 0


@pytest.mark.parametrize(
    ("change", "variables", "name", "words"),
    [
        ({"gated": True}, {}, "hub-gated", "accept its terms"),
        ({"gated": True}, {"HF_TOKEN": TOKEN}, "hub-gated", "accept its terms"),
        ({"token": TOKEN}, {}, "hub-absent", "HF_TOKEN"),
        ({"token": TOKEN}, {"HF_TOKEN": "hf_other"}, "hub-token", "HF_TOKEN"),
        ({}, {"SERVEKIT_MODEL": "team/other"}, "hub-absent", "check the id"),
        ({}, {"SERVEKIT_REVISION": "v9"}, "hub-revision", "SERVEKIT_REVISION"),
        ({}, {"HF_HUB_OFFLINE": "1"}, "hub-offline", "download it on a machine with a network"),
    ],
)
def test_what_the_user_must_mend(
    check: Check, server: Hub, change: dict[str, Any], variables: dict[str, str], name: str, words: str
) -> None:
    """What no later try mends is an error that says what to do."""
    vars(server.repositories[DEMO]).update(change)
    code, found = check(**variables)
    assert (code, found[name]["severity"]) == (3, "error")
    assert words in found[name]["remedy"]


@pytest.mark.parametrize("where", ["variable", "file"])
def test_token_of_an_account_that_may_read(check: Check, server: Hub, environ: dict[str, str], where: str) -> None:
    """A gated model is readable with a token in HF_TOKEN, or in the client's own file."""
    vars(server.repositories[DEMO]).update(gated=True, accepted=TOKEN)
    if where == "file":
        home = Path(environ["HF_HOME"])
        home.mkdir()
        (home / "token").write_text(TOKEN)
    code, found = check(**({"HF_TOKEN": TOKEN} if where == "variable" else {}))
    assert (code, "hub-download" in found) == (0, True)


@pytest.mark.parametrize("trouble", ["nobody", 429, 503])
def test_trouble_that_may_pass(check: Check, server: Hub, trouble: str | int) -> None:
    """A hub that cannot be reached, fails or limits requests is a warning: the start tries again."""
    server.faults.statuses = [int(trouble)] * 9 if trouble != "nobody" else []
    code, found = check(**({"HF_ENDPOINT": "http://127.0.0.1:9"} if trouble == "nobody" else {}))
    assert (code, found["hub-unreachable"]["severity"]) == (0, "warning")


def test_proxy_and_mirror_are_the_clients(check: Check, server: Hub) -> None:
    """Preflight asks the mirror of HF_ENDPOINT by way of the proxy; one that wants a password is an error."""
    code, _ = check(HTTP_PROXY=server.proxy_url)
    assert (code, server.requests["proxy GET"] > 0) == (0, True)
    server.faults.proxy_status = 407
    code, found = check(HTTP_PROXY=server.proxy_url)
    assert (code, "user and password" in found["hub-proxy"]["remedy"]) == (3, True)
    assert check(HTTP_PROXY=server.proxy_url, NO_PROXY="127.0.0.1")[0] == 0


def test_what_is_there_is_checked(check: Check, snapshot: Path, checkpoint: Path) -> None:
    """Files of an interrupted download are checked, what is absent is not an error, and their bytes are counted."""
    shutil.copytree(checkpoint, snapshot)
    weights = (snapshot / "model.safetensors").read_bytes()
    (snapshot / "model.safetensors").unlink()
    for folder in ("refs", "blobs"):
        (snapshot.parents[1] / folder).mkdir()
    partial = snapshot.parents[1] / "blobs" / f"{hashlib.sha256(weights).hexdigest()}.incomplete"
    partial.write_bytes(weights[:3_000_000])
    held = 3_000_000 + sum(path.stat().st_size for path in snapshot.iterdir())
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    code, found = check()
    assert code == 0, found
    assert found["hub-download"]["message"].startswith(f"{held / 1e6:.1f} MB of ")
    config = json.loads((snapshot / "config.json").read_bytes())
    (snapshot / "config.json").write_text(json.dumps(config | {"architectures": ["Nothing"]}))
    code, found = check()
    assert (code, "architecture-unknown" in found) == (3, True)


def test_slow_broken_killed_resumed_and_offline(serve: Serve, server: Hub) -> None:
    """A slow link that breaks, a servekit that is killed, and the next start continues; later it needs no hub."""
    server.faults.break_after = [100_000, 100_000]
    server.faults.stall_after = 400_000
    first = serve()
    first.until(lambda: (first.status().get("download") or {}).get("bytes", 0) > 500_000, "half of the bytes")
    status = first.status()
    assert (status["phase"], status["commit"]) == ("download", "")
    assert status["download"]["total_bytes"] > 500_000
    assert first.observe("/readyz")[1].startswith("starting (download): downloading the model: ")
    assert "servekit_download_bytes " in first.observe("/metrics")[1]
    assert "downloading the model: " in first.observe("/")[1]
    first.processes()
    first.process.kill()
    first.finish()
    sent, server.faults.stall_after = server.sent, None
    server.faults.released.set()
    second = serve()
    second.until_ready()
    total = second.status()["download"]["total_bytes"]
    assert server.sent <= total + 4 * 65536, f"{sent} bytes before the kill"
    assert second.status()["commit"] == COMMIT
    assert (
        f'servekit_model_info{{commit="{COMMIT}",model="team/demo",revision="main"}} 1.0'
        in second.observe("/metrics")[1]
    )
    assert any("downloaded and verified: team/demo, commit 0123" in line for line in second.lines)
    assert second.stop() == 0
    requests = sum(server.requests.values())
    third = serve(HF_ENDPOINT="http://127.0.0.1:9")
    third.until_ready()
    assert [each["phase"] for each in third.status()["start_phases"]][:2] == ["preflight", "imports"]
    assert third.status()["commit"] == COMMIT
    assert third.stop() == 0
    assert sum(server.requests.values()) == requests


def test_stop_during_the_download(serve: Serve, server: Hub) -> None:
    """SIGTERM ends a download at once, with nothing left."""
    server.faults.stall_after = 100_000
    endpoint = serve()
    endpoint.until(lambda: (endpoint.status().get("download") or {}).get("bytes", 0) > 0, "the first bytes")
    endpoint.processes()
    assert endpoint.stop(signal.SIGTERM, within_s=60) == 0


def test_damaged_download_never_starts(serve: Serve, server: Hub) -> None:
    """A store that flips a bit ends the start with 4 before the engine loads, and says what happens next."""
    server.faults.corrupt = True
    endpoint = serve()
    assert endpoint.end() == 4
    assert "the download failed, exit code 1: a downloaded file does not have the hub's hash" in endpoint.lines[-1]
    assert "start again to download it anew" in endpoint.lines[-1]
    assert not any("starting: imports" in line for line in endpoint.lines)


def test_downloaded_model_is_checked_before_it_loads(serve: Serve, checkpoint: Path) -> None:
    """Preflight looks at the files as soon as they are here: what it refuses ends the start with 3."""
    config = json.loads((checkpoint / "config.json").read_bytes())
    for group in config["quantization_config"]["config_groups"].values():
        group["format"] = "marlin-24"
    (checkpoint / "config.json").write_text(json.dumps(config))
    endpoint = serve()
    assert endpoint.end() == 3
    assert "quantization-format" in endpoint.lines[-1]
    assert not any("starting: imports" in line for line in endpoint.lines)


def test_hashes_at_any_time(check: Check, serve: Serve, snapshot: Path) -> None:
    """`check --hashes` finds a byte that changed on the disk, and says which file to delete."""
    endpoint = serve()
    endpoint.until_ready()
    assert endpoint.stop() == 0
    assert check("--hashes", HF_HUB_OFFLINE="1")[0] == 0
    with (snapshot / "model.safetensors").open("r+b") as file:
        last = file.seek(-1, 2)
        (byte,) = file.read(1)
        file.seek(last)
        file.write(bytes([byte ^ 1]))
    code, found = check("--hashes", HF_HUB_OFFLINE="1")
    assert (code, found["hash-mismatch"]["file"]) == (3, str(snapshot / "model.safetensors"))
