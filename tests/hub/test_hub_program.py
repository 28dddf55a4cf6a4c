"""The download of a model by the real client of the hub, against a hub with faults."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from servekit.serve.engine import hub_program
from tests.hub.conftest import COMMIT, MODEL, SIZE, Program
from tests.hub.rig import Hub

pytestmark = pytest.mark.engine
TOKEN = "hf_" + "x" * 30


def same_files(snapshot: Path, model: Path) -> bool:
    """Whether the cache holds the model's files, without the one of another format."""
    wanted = {path.name: path.read_bytes() for path in model.iterdir() if path.suffix != ".bin"}
    return {path.name: path.read_bytes() for path in snapshot.iterdir()} == wanted


def test_list(program: Program) -> None:
    """The listing names the commit and every file that vLLM reads, weights with their hashes."""
    code, [listing] = program.run("list", MODEL, "main")
    assert (code, listing["commit"]) == (0, COMMIT)
    files = {path: (size, bool(digest)) for path, size, digest in listing["files"]}
    assert files["model-1.safetensors"] == (SIZE, True)
    assert files["config.json"][1] is False
    assert "pytorch_model.bin" not in files


def test_fetch_then_engine(program: Program, model: Path, server: Hub) -> None:
    """A download reports bytes and total, shows the store no token, and becomes the engine, pinned and offline."""
    engine = "import json, os, sys; print(json.dumps({'argv': sys.argv[1:], 'off': os.environ['HF_HUB_OFFLINE']}))"
    code, lines = program.run("fetch", MODEL, "main", "--", sys.executable, "-c", engine, "serve")
    assert code == 0
    assert lines[-2] == {"bytes": 900_024, "total": 900_024}
    assert lines[-1] == {"argv": ["serve", "--revision", COMMIT], "off": "1"}
    assert same_files(program.snapshot, model)
    assert not server.tokens_at_store


def test_broken_link_is_resumed(program: Program, model: Path, server: Hub) -> None:
    """A link that breaks again and again costs no byte twice."""
    server.faults.break_after = [100_000, 200_000, 50_000]
    code, lines = program.fetch()
    assert code == 0, lines
    assert same_files(program.snapshot, model)


def test_killed_download_is_resumed(program: Program, model: Path, server: Hub) -> None:
    """A download that was killed is continued by the next one."""
    server.faults.stall_after = 300_000
    with subprocess.Popen(
        [*program.command, "fetch", MODEL, "main"], env=program.environ, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        for line in first.stdout:
            if json.loads(line)["bytes"] > 300_000:
                break
        first.kill()
    assert list(program.snapshot.parents[1].glob("blobs/*.incomplete"))
    server.faults.released.set()
    server.faults.stall_after = None
    code, lines = program.fetch()
    assert code == 0
    assert lines[0]["bytes"] > 300_000, "what was there counts from the beginning"
    assert same_files(program.snapshot, model)


@pytest.mark.parametrize("statuses", [[503, 503], [429], [500]])
def test_a_hub_that_fails_for_a_while(program: Program, server: Hub, model: Path, statuses: list[int]) -> None:
    """Errors of the hub and its rate limit are waited out."""
    server.faults.statuses = statuses
    code, lines = program.fetch()
    assert code == 0, lines
    assert same_files(program.snapshot, model)


@pytest.mark.parametrize(
    ("change", "variables", "kind"),
    [
        ({"token": TOKEN}, {}, "absent"),
        ({"token": TOKEN}, {"HF_TOKEN": "hf_wrong"}, "token"),
        ({"token": TOKEN, "gated": True}, {"HF_TOKEN": TOKEN}, "gated"),
        ({"commit": "f" * 40}, {"REVISION": COMMIT}, "revision"),
        ({}, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "network"),
        ({}, {"HTTP_PROXY": "http://127.0.0.1:9"}, "network"),
    ],
)
def test_problems_are_named(
    python: Path, tmp_path: Path, server: Hub, change: dict[str, Any], variables: dict[str, str], kind: str
) -> None:
    """What keeps a model from being downloaded has a kind, and no token is in what is said."""
    for name, value in change.items():
        setattr(server.repositories[MODEL], name, value)
    program = Program(python, tmp_path / "cache", server, **variables)
    code, lines = program.run("fetch", MODEL, variables.get("REVISION", "main"))
    assert (code, lines[-1].get("problem")) == (1, kind), lines
    assert TOKEN not in json.dumps(lines)


def test_token_opens_a_private_model(python: Path, tmp_path: Path, server: Hub, model: Path) -> None:
    """HF_TOKEN is shown to the hub and to nobody else."""
    server.repositories[MODEL].token = TOKEN
    program = Program(python, tmp_path / "cache", server, HF_TOKEN=TOKEN)
    assert program.fetch()[0] == 0
    assert same_files(program.snapshot, model)
    assert not server.tokens_at_store


def test_proxy(python: Path, tmp_path: Path, server: Hub, model: Path) -> None:
    """A proxy of the environment is used for the hub and its store; NO_PROXY is not."""
    program = Program(python, tmp_path / "cache", server, HTTP_PROXY=server.proxy_url)
    assert program.fetch()[0] == 0
    assert same_files(program.snapshot, model)
    assert server.requests["proxy GET"] >= 3
    direct = Program(python, tmp_path / "other", server, HTTP_PROXY="http://127.0.0.1:9", NO_PROXY="127.0.0.1")
    assert direct.fetch()[0] == 0


def test_cache_that_cannot_be_written(python: Path, tmp_path: Path, server: Hub) -> None:
    """A cache folder below a file is a problem of the disk."""
    (tmp_path / "file").touch()
    code, lines = Program(python, tmp_path / "file" / "cache", server).fetch()
    assert (code, lines[-1]["problem"]) == (1, "disk")


def test_every_kind_has_a_sentence() -> None:
    """Each kind the program reports is explained."""
    source = Path(hub_program.__file__).read_text()
    named = set(re.findall(r'"(\w+)"\)', source)) | set(re.findall(r'\d+: "(\w+)"', source))
    assert named & hub_program.PROBLEMS.keys() >= {"gated", "absent", "network", "token", "busy"}
