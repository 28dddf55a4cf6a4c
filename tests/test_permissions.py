"""Files of other people: whatever a start reads or writes is taken away, and the real command says what to do.

As root the command runs without capabilities, and what is taken away belongs to another user; otherwise it loses all of
its mode. Both deny it to the command, as a volume of the host denies it to a container's user.
"""

import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from servekit.demo.build import build_demo_model
from servekit.file_trouble import AS_OWNER
from tests.conftest import KEY, ROOT, write_key_file
from tests.harness.endpoint import clean_environment
from tests.serve.test_tls import make_certificate

PROGRAM = Path(sys.executable).with_name("servekit")
STRANGER = 10001
AS_ROOT = os.geteuid() == 0
DENIED = f"permission denied for user {os.geteuid()}"
SKIPPED = "cpu-memory,cpu-features,cpu-library,shared-memory,cache-space"
"""Findings about the machine that runs the tests."""

MODEL = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "servekit-demo.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
RUN = "state/run-PORT"
CODES = {
    ".": 2,
    "profile.yaml": 2,
    "server.pem": 2,
    "server.key": 2,
    "keys": 2,
    "state": 2,
    RUN: 2,
    f"{RUN}/lock": 2,
    "cache": 3,
    "engine": 3,
    "patches": 3,
    "model": 3,
    **{f"model/{name}": 3 for name in MODEL},
}
"""The exit code of `serve` without this file or folder. In `patches` it reads only the names."""
BOOKS = {"state/audit.jsonl", "state/usage.db"}
"""What is kept about usage: without it the endpoint serves all the same."""
CHECKED = [".", "profile.yaml", "server.key", "cache", "model", "model/config.json"]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint; read-only."""
    folder = tmp_path_factory.mktemp("permissions") / "demo"
    build_demo_model(folder)
    return folder


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate and its key; read-only."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def world(tmp_path: Path, demo: Path, certificate: tuple[Path, Path]) -> Iterator[Path]:
    """A folder with all that a start reads and writes, after an earlier run; what is taken away is given back."""
    world = tmp_path / "srv"
    for folder in (RUN, "cache", "patches/pillow-13.0.0.dist-info"):
        (world / folder).mkdir(parents=True)
    (world / RUN / "lock").touch()
    shutil.copytree(demo, world / "model")
    shutil.copy(ROOT / "vllm_config.yaml", world / "profile.yaml")
    write_key_file(world, KEY)
    for file in certificate:
        shutil.copy(file, world)
    (world / "engine").write_text("#!/bin/sh\nexit 9\n")
    (world / "engine").chmod(0o755)
    yield world
    subprocess.run(["chmod", "-R", "u+rwX", tmp_path], check=True)  # noqa: S607


@pytest.fixture
def run(world: Path, free_port: int) -> Run:
    """Run `servekit` with the files of the world, without the rights that root has everywhere."""
    environ = {
        "SERVEKIT_CONFIG": "profile.yaml",
        "SERVEKIT_MODEL": "model",
        "SERVEKIT_API_KEYS_FILE": "keys",
        "SERVEKIT_TLS_CERT": "server.pem",
        "SERVEKIT_TLS_KEY": "server.key",
        "SERVEKIT_STATE_DIR": "state",
        "SERVEKIT_CACHE_DIR": "cache",
        "SERVEKIT_ENGINE": "engine",
        "SERVEKIT_ENGINE_PATCHES": "patches",
    }
    environ = {name: str(world / file) for name, file in environ.items()}
    own = {
        "SERVEKIT_TARGET": "cpu",
        "SERVEKIT_PORT": str(free_port),
        "SERVEKIT_OBSERVE_PORT": "0",
        "SERVEKIT_SKIP": SKIPPED,
    }
    (world / RUN).rename(world / RUN.replace("PORT", str(free_port)))

    def start(*words: str, **others: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*unprivileged(), PROGRAM, *words],
            env=clean_environment() | environ | own | others,
            capture_output=True,
            text=True,
            check=False,
        )

    return start


def unprivileged() -> list[str]:
    """Return the words that run a command without root's capabilities."""
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if AS_ROOT else []


def take_away(path: Path, mode: int = 0o700) -> None:
    """Leave the file or folder to another user."""
    if AS_ROOT:
        os.chown(path, STRANGER, STRANGER)
    path.chmod(mode if AS_ROOT else mode & 0o007)


def test_every_file_of_a_start_is_in_the_table(world: Path, run: Run) -> None:
    """With all rights the engine is started; it reads and writes nothing that these tests do not take away."""
    assert run("serve").returncode == 4, "the engine here ends at once"
    found = {re.sub(r"run-\d+", "run-PORT", str(each.relative_to(world))) for each in world.rglob("*")}
    replaced_each_time = {f"{RUN}/{name}" for name in ("guard.json", "in_flight", "usage")}
    assert found | {"."} == {*CODES} | BOOKS | replaced_each_time | {"patches/pillow-13.0.0.dist-info"}


@pytest.mark.parametrize("name", CODES)
def test_serve_names_what_denies(world: Path, run: Run, free_port: int, name: str) -> None:
    """`serve` ends with 2 or 3 before it starts anything, names the file or folder, and the command that mends it."""
    path = world / name.replace("PORT", str(free_port))
    take_away(path)
    assert_explained(run("serve"), path, CODES[name])


@pytest.mark.parametrize("name", sorted(BOOKS))
def test_books_that_cannot_be_written_end_nothing(world: Path, run: Run, name: str) -> None:
    """Without the right to write the books or the audit log the engine is started as always."""
    path = world / name
    path.touch()
    take_away(path)
    done = run("serve")
    assert done.returncode == 4, done.stderr
    assert ("usage is not written" in done.stderr) == (name == "state/usage.db")


@pytest.mark.parametrize("name", CHECKED)
def test_check_says_what_serve_would(world: Path, run: Run, name: str) -> None:
    """`check` ends as `serve` does, with the same words."""
    take_away(world / name)
    assert_explained(run("check"), world / name, CODES[name])


@pytest.mark.parametrize("name", ["model", "cache", "state"])
def test_folder_without_x(world: Path, run: Run, name: str) -> None:
    """A folder whose names can be read and whose files cannot is denied as itself, not file by file."""
    take_away(world / name, 0o744)
    done = run("serve")
    assert_explained(done, world / name, CODES[name])
    assert done.stderr.count(DENIED) == 1


def test_several_files_are_one_finding(world: Path, run: Run) -> None:
    """A checkpoint that was copied with mode 0600 has one finding, and one command for all of it."""
    for name in MODEL:
        take_away(world / "model" / name, 0o600)
    done = run("check")
    assert done.returncode == 3
    assert done.stdout.count(DENIED) == 1
    assert "and 7 other files" in done.stdout
    assert f"run: sudo chmod -R a+rX {world}/model" in done.stdout or not AS_ROOT


@pytest.mark.parametrize("inner", ["", "hub", "hub/models--o--n", "hub/models--o--n/snapshots/c", "blob"])
def test_cache_of_the_hub(world: Path, run: Run, inner: str, demo: Path) -> None:
    """A hub's cache of another user is not an absent model: nothing advises another download."""
    repository = world / "hf/hub/models--o--n"
    shutil.copytree(demo, repository / "snapshots/c")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("c")
    (repository / "snapshots/c/config.json").rename(repository / "blob")
    (repository / "snapshots/c/config.json").symlink_to("../../blob")
    denied = repository / inner if inner == "blob" else world / "hf" / inner
    take_away(denied)
    environ = {"HF_HOME": str(world / "hf"), "HF_HUB_OFFLINE": "1", "SERVEKIT_MODEL": "o/n"}
    for command in ("check", "serve"):
        assert_explained(run(command, **environ), denied, 3)


def test_plan_of_a_model_that_cannot_be_read(world: Path, run: Run) -> None:
    """`plan` shows the plan, and why it has no memory in it."""
    take_away(world / "model")
    done = run("plan")
    assert done.returncode == 0
    assert f"not planned: {DENIED}" in done.stdout
    take_away(world)
    assert_explained(run("plan"), world, 2)


def test_other_commands(world: Path, run: Run) -> None:
    """`key` and `demo-model` name the folder that denies too."""
    take_away(world / "state", 0o755)
    take_away(world / "keys", 0o600)
    assert_explained(run("key", "--show"), world / "keys", 2, AS_OWNER)
    assert_explained(run("key", "--new", SERVEKIT_API_KEYS_FILE=""), world / "state", 2, AS_OWNER)
    assert_explained(run("key", "--list"), world / "keys", 2, AS_OWNER)
    assert_explained(run("demo-model", str(world / "state/demo")), world / "state", 2)
    assert_explained(run("check", SERVEKIT_MODEL="", SERVEKIT_CACHE_DIR=str(world / "state/c")), world / "state", 2)


@pytest.mark.skipif(not AS_ROOT, reason="only root can leave files to another user")
@pytest.mark.parametrize(
    ("words", "denied", "mode"),
    [
        ("key --list", "state/api_keys", 0o600),
        ("key --list", "state", 0o700),
        ("key --new", "state", 0o700),
        ("key --new", "state", 0o755),
        ("usage", "state/usage.db", 0o600),
        ("usage", "state", 0o700),
    ],
)
def test_a_service_keeps_its_files(world: Path, run: Run, words: str, denied: str, mode: int) -> None:
    """Looking into the files of another user's service never ends with advice to change their owner or mode."""
    (world / "keys").rename(world / "state/api_keys")
    (world / "state/usage.db").touch()
    take_away(world / denied, mode)
    done = run(*words.split(), SERVEKIT_API_KEYS_FILE="")
    assert done.returncode == 2
    assert AS_OWNER in done.stderr
    assert f"got owner {STRANGER}:{STRANGER}, mode {mode:04o}" in done.stderr
    assert not re.search("chown|chmod", done.stderr)


def test_demo_checkpoint_of_another_user(world: Path, run: Run) -> None:
    """The embedded checkpoint that another user has built in this cache is neither damaged nor replaced."""
    built = world / "cache/gemma4-tiny-w4a16-seed0"
    shutil.copytree(world / "model", built)
    take_away(built)
    for command in ("check", "serve"):
        assert_explained(run(command, SERVEKIT_MODEL=""), built, 2)


def test_user_without_a_home(run: Run) -> None:
    """A container's user often has no home: the setting that needs one is named, with the way out."""
    done = run("serve", SERVEKIT_CACHE_DIR="~nosuchuser/cache", SERVEKIT_MODEL="~nosuchuser/model")
    assert done.returncode == 2
    assert "SERVEKIT_CACHE_DIR: this user has no such home: set HOME, or write a whole path (got '~no" in done.stderr
    assert "Traceback" not in done.stderr
    done = run("check", SERVEKIT_MODEL="~nosuchuser/model", HF_HOME="~nosuchuser")
    assert (done.returncode, "Traceback" in done.stderr) == (3, False), done.stderr


@pytest.mark.skipif(not AS_ROOT, reason="only root can mount a file system")
@pytest.mark.parametrize(
    ("options", "fill", "told"),
    [
        ("ro", False, "the file system of {} is read-only"),
        ("size=16k", True, "no space is left on its file system"),
        ("size=64k,nr_inodes=1", False, "no space is left on its file system"),
    ],
)
def test_file_system_of_the_state(world: Path, options: str, told: str, *, fill: bool) -> None:
    """A state folder on a read-only or full file system ends with 2 and the folder's name, in every command."""
    state = world / "state"
    script = f'mount -t tmpfs -o {options} none "{state}" || exit 77\n'
    script += f'head -c 16384 /dev/zero > "{state}/x"\n' if fill else ""
    for command in ("key --new", "serve --no-auth"):
        words = f"{PROGRAM} {command} --state-dir {state}" + (" --target cpu" if "serve" in command else "")
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", f"{script}exec {words}"],  # noqa: S607
            env=clean_environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 77:
            pytest.skip("this machine lets nobody mount")
        assert done.returncode == 2, done.stderr
        assert told.format(state) in done.stderr
        assert done.stderr.startswith(str(state))
        assert "Traceback" not in done.stderr


def assert_explained(done: "subprocess.CompletedProcess[str]", path: Path, code: int, remedy: str = "run: ") -> None:
    """The command has ended with the code, and says who may not use what, with a remedy and nothing misleading."""
    told = done.stdout + done.stderr
    assert done.returncode == code, told
    assert f"{DENIED} ({user()}) on {path}" in told
    assert remedy in told
    assert "Traceback" not in told
    assert "download" not in told


def user() -> str:
    """Return this user's name."""
    return pwd.getpwuid(os.geteuid()).pw_name
