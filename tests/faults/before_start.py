"""Faults that servekit finds before it starts an engine."""

import fcntl
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from servekit.demo.build import demo_directory
from tests.conftest import ROOT
from tests.faults.fault import NEVER_UP, NOT_STARTED, Check, Fault, Prepare
from tests.faults.launch import Launch
from tests.faults.provoke import send


def with_profile(change: Callable[[str], str]) -> Prepare:
    """Start with the project's profile after a change."""

    def prepare(launch: Launch) -> None:
        path = launch.folder / "profile.yaml"
        path.write_text(change((ROOT / "vllm_config.yaml").read_text()))
        launch.flags += ["--config", str(path)]

    return prepare


def folder_is_a_file(variable: str) -> Prepare:
    """Start with a folder that cannot be created, because a file has its parent's name."""

    def prepare(launch: Launch) -> None:
        (launch.folder / "file").touch()
        launch.environ[variable] = str(launch.folder / "file" / "folder")

    return prepare


def with_keys(content: str | None) -> Prepare:
    """Start with a key file of this content; None: without the file."""

    def prepare(launch: Launch) -> None:
        path = launch.folder / "keys"
        if content is not None:
            path.write_text(content)
            path.chmod(0o600)
        launch.flags += ["--api-keys-file", str(path)]

    return prepare


def with_checkpoint(damage: Callable[[Launch], None]) -> Prepare:
    """Start with a damaged copy of the demo checkpoint."""

    def prepare(launch: Launch) -> None:
        shutil.copytree(next(launch.cache.glob("gemma4-*")), launch.folder / "model")
        damage(launch)
        launch.flags += ["--model", str(launch.folder / "model"), "--served-name", "gemma4-demo"]

    return prepare


def cut_shard(launch: Launch) -> None:
    """Cut the weights in half."""
    path = next((launch.folder / "model").glob("*.safetensors"))
    with path.open("r+b") as shard:
        shard.truncate(path.stat().st_size // 2)


def port_taken(which: str, *, listens: bool = True) -> Prepare:
    """Start with a port that another process has bound as vLLM does, which listens on it only once it has loaded."""

    def prepare(launch: Launch) -> None:
        taken = launch.things.enter_context(socket.socket())
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        if listens:
            taken.listen()
        launch.flags += [which, str(taken.getsockname()[1])]

    return prepare


def beside_another(launch: Launch) -> None:
    """Start a second endpoint of the same user on the port of a first one; the first one must go on undisturbed."""
    first = start_first(launch)
    first.until_says("ready")

    def check() -> None:
        assert first.probes.ready[-1] == ("ready", 200)
        assert first.stop() == 0

    launch.check = check


def beside_one_that_loads(launch: Launch) -> None:
    """Start a second endpoint with the state folder of a first one that still loads and must be unaffected."""
    first = start_first(launch, "--load-s", "3")
    launch.environ["SERVEKIT_STATE_DIR"] = first.environ["SERVEKIT_STATE_DIR"]
    first.until_says("starting (weights)")
    files = contents(first.state_dir)

    def check() -> None:
        assert contents(first.state_dir).items() >= files.items(), (
            "the second one has written into the first one's files"
        )
        first.until_says("ready")
        assert first.stop() == 0

    launch.check = check


def start_first(launch: Launch, *faults: str) -> Launch:
    """Start the first endpoint, whose port the second one uses too."""
    folder = launch.folder / "first"
    folder.mkdir()
    first = Launch(Fault("the first", (), 0, "", faults=faults), folder, launch.cache, launch.things)
    launch.things.enter_context(first.start())
    launch.port = first.port
    return first


def contents(folder: Path) -> dict[Path, bytes]:
    """Return the contents of the files below a folder, but for the books, which a running endpoint goes on writing."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(("usage", "audit."))]
    return {path: path.read_bytes() for path in files}


def engine_is(content: str) -> Prepare:
    """Start with this script in place of the engine."""

    def prepare(launch: Launch) -> None:
        path = launch.folder / "program"
        path.write_text(content)
        path.chmod(0o755)
        launch.environ["SERVEKIT_ENGINE"] = str(path)

    return prepare


def another_builds(launch: Launch) -> None:
    """Start with an empty cache whose demo checkpoint another process is building: it holds the lock."""
    cache = launch.folder / "cache"
    cache.mkdir()
    lock = launch.things.enter_context((cache / f".{demo_directory(cache).name}.lock").open("w"))
    fcntl.flock(lock, fcntl.LOCK_EX)
    launch.environ["SERVEKIT_CACHE_DIR"] = str(cache)
    launch.release = lock.close


def stop_while_preparing(launch: Launch) -> Check:
    """Send SIGTERM while servekit waits for the demo checkpoint; no engine may start afterwards."""
    send(signal.SIGTERM, at="starting (preflight)")(launch)
    launch.release()

    def check() -> None:
        assert not any(line.startswith("engine ") for line in launch.lines)

    return check


FAULTS = (
    Fault(
        "profile: a contract value is wrong",
        *(NEVER_UP, 2, "quantization"),
        engine="none",
        prepare=with_profile(lambda text: text.replace("quantization: compressed-tensors", "quantization: awq")),
    ),
    Fault(
        "profile: broken YAML",
        *(NEVER_UP, 2, ": error: not YAML: expected"),
        engine="none",
        prepare=with_profile(lambda text: f"a: [\n{text}"),
    ),
    Fault("profile: missing", NEVER_UP, 2, "nowhere.yaml", engine="none", flags=("--config", "nowhere.yaml")),
    Fault(
        "setting: unknown variable",
        *(NEVER_UP, 2, "did you mean SERVEKIT_PORT?"),
        engine="none",
        environ={"SERVEKIT_PROT": "1"},
    ),
    Fault("key file: missing", NEVER_UP, 2, "keys", engine="none", prepare=with_keys(None)),
    Fault("key file: empty", NEVER_UP, 2, "keys", engine="none", prepare=with_keys("")),
    Fault(
        "state folder: cannot be created",
        *(NEVER_UP, 2, "file is not a folder; correct the path, or choose another folder"),
        engine="none",
        prepare=folder_is_a_file("SERVEKIT_STATE_DIR"),
    ),
    Fault(
        "cache folder: cannot be created",
        *(NOT_STARTED, 2, "file is not a folder; correct the path, or choose another folder"),
        engine="none",
        prepare=folder_is_a_file("SERVEKIT_CACHE_DIR"),
    ),
    Fault(
        "observe port: taken",
        *(NEVER_UP, 3, "servekit's own server cannot listen here"),
        engine="none",
        prepare=port_taken("--observe-port"),
    ),
    Fault(
        "port: taken", NOT_STARTED, 3, "--port: cannot listen on 127.0.0.1", engine="none", prepare=port_taken("--port")
    ),
    Fault(
        "port: taken by a server that does not yet listen",
        *(NOT_STARTED, 3, "--port: cannot listen on 127.0.0.1"),
        engine="none",
        prepare=port_taken("--port", listens=False),
    ),
    Fault(
        "second instance on the port of a first",
        *(NOT_STARTED, 3, "--port: cannot listen on 127.0.0.1"),
        prepare=beside_another,
    ),
    Fault(
        "second instance beside a first that loads, one state folder",
        *(NEVER_UP, 3, "another servekit runs with this state folder and this port"),
        prepare=beside_one_that_loads,
    ),
    Fault(
        "engine program: missing",
        *(NOT_STARTED, 3, "no such program: /nowhere/vllm"),
        engine="none",
        environ={"SERVEKIT_ENGINE": "/nowhere/vllm"},
    ),
    Fault("checkpoint: missing", NOT_STARTED, 3, "/nowhere/m", engine="none", flags=("--model", "/nowhere/m")),
    Fault(
        "checkpoint: half of a shard",
        *(NOT_STARTED, 3, "model.safetensors"),
        engine="none",
        prepare=with_checkpoint(cut_shard),
    ),
    Fault(
        "engine program: no program",
        *(NOT_STARTED, 4, "cannot start"),
        engine="none",
        prepare=engine_is("\x7fELF not really"),
    ),
    Fault(
        "engine program: another one, ends with 0",
        *(NOT_STARTED, 4, "the engine ended before it was ready, exit code 0: no reason found in its output"),
        engine="none",
        prepare=engine_is("#!/bin/sh\nexit 0\n"),
    ),
    Fault(
        "SIGTERM while the demo checkpoint is built",
        *(("starting", "stopped"), 0, "stopped before the engine was started"),
        prepare=another_builds,
        provoke=stop_while_preparing,
        within_s=120,
    ),
)
