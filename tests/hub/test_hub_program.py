"""The download of a model by the real client of the hub, against a hub with faults."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from servekit.preflight.hub import hub_answer, hub_program
from tests.hub.conftest import COMMIT, MODEL, SIZE, Program
from tests.hub.rig import Hub

pytestmark = pytest.mark.engine
TOKEN = "hf_" + "x" * 30


def same_files(snapshot: Path, model: Path) -> bool:
    """Whether the cache holds the model's files, without the one of another format."""
    wanted = {path.name: path.read_bytes() for path in model.iterdir() if path.suffix != ".bin"}
    return {path.name: path.read_bytes() for path in snapshot.iterdir()} == wanted


def test_list(program: Program) -> None:
    """The listing counts the files that vLLM reads and those that are here, names the commit, and changes nothing."""
    assert program.run("list", MODEL, "main") == (0, [{"bytes": 0, "total": 900_024}, {"commit": COMMIT}])
    assert not program.snapshot.parents[2].exists()
    assert program.fetch()[0] == 0
    blob = (program.snapshot / "model-1.safetensors").resolve()
    blob.rename(f"{blob}.incomplete")
    os.truncate(f"{blob}.incomplete", 1000)
    assert program.run("list", MODEL, COMMIT)[1][0] == {"bytes": 900_024 - SIZE + 1000, "total": 900_024}


def test_list_asks_once(program: Program, server: Hub) -> None:
    """The listing is for preflight: a hub that fails is reported, and the start tries again."""
    server.faults.statuses = [503] * 9
    code, [problem] = program.run("list", MODEL, "main")
    assert (code, problem["problem"], server.requests["hub GET"]) == (1, "server", 1)


def test_fetch_then_engine(program: Program, model: Path, server: Hub) -> None:
    """A download reports bytes and total, shows the store no token, and becomes the engine, pinned and offline."""
    engine = "import json, os, sys; print(json.dumps({'argv': sys.argv[1:], 'off': os.environ['HF_HUB_OFFLINE']}))"
    code, lines = program.run("fetch", MODEL, "main", "--", sys.executable, "-c", engine, "serve")
    assert code == 0
    assert lines[-3] == {"bytes": 900_024, "total": 900_024, "verified": 900_000}
    assert lines[-2:] == [{"commit": COMMIT}, {"argv": ["serve", "--revision", COMMIT], "off": "1"}]
    assert (program.snapshot.parents[1] / "refs" / "main").read_text() == COMMIT
    assert same_files(program.snapshot, model)
    assert not server.tokens_at_store


def test_broken_link_is_resumed(program: Program, model: Path, server: Hub) -> None:
    """A link that breaks again and again is continued where it broke, up to what was not yet written."""
    server.faults.break_after = [100_000, 200_000, 150_000]
    code, lines = program.fetch()
    assert code == 0, lines
    assert same_files(program.snapshot, model)
    assert 900_000 < server.sent <= 900_000 + 3 * hub_program.WRITE_BYTES


def test_killed_download_is_resumed(program: Program, model: Path, server: Hub) -> None:
    """A download that was killed is continued by the next one."""
    server.faults.stall_after = 300_000
    with subprocess.Popen(
        [*program.command, "fetch", MODEL, "main"], env=program.environ, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        for line in first.stdout:
            if json.loads(line.removeprefix(hub_program.MARK))["bytes"] > 500_000:
                break
        first.kill()
    assert list(program.snapshot.parents[1].glob("blobs/*.incomplete"))
    server.faults.released.set()
    server.faults.stall_after = None
    code, lines = program.fetch()
    assert code == 0
    assert lines[0]["bytes"] > 500_000, "what was there counts from the beginning"
    assert server.sent < 900_000 + 2 * hub_program.WRITE_BYTES
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
        ({"gated": True}, {}, "gated"),
        ({"gated": True}, {"HF_TOKEN": TOKEN}, "gated"),
        ({"token": TOKEN, "gated": True}, {"HF_TOKEN": TOKEN}, "gated"),
        ({"commit": "f" * 40}, {"REVISION": COMMIT}, "revision"),
        ({}, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "network"),
        ({}, {"HTTP_PROXY": "http://127.0.0.1:9"}, "network"),
        ({}, {"HTTP_PROXY": "PROXY/407"}, "proxy"),
        ({}, {"HF_ENDPOINT": "STORE"}, "answer"),
    ],
)
def test_problems_are_named(
    python: Path, tmp_path: Path, server: Hub, change: dict[str, Any], variables: dict[str, str], kind: str
) -> None:
    """What keeps a model from being downloaded has a kind, words, a remedy, and no token is in them."""
    for name, value in change.items():
        setattr(server.repositories[MODEL], name, value)
    if variables.get("HTTP_PROXY") == "PROXY/407":
        variables, server.faults.proxy_status = {"HTTP_PROXY": server.proxy_url}, 407
    if variables.get("HF_ENDPOINT") == "STORE":
        variables = {"HF_ENDPOINT": f"{server.url}/some/page"}
    program = Program(python, tmp_path / "cache", server, **variables)
    code, lines = program.run("fetch", MODEL, variables.get("REVISION", "main"))
    assert (code, lines[-1].get("problem")) == (1, kind), lines
    assert lines[-1]["remedy"] == hub_program.PROBLEMS[kind][1]
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


@pytest.mark.parametrize(("status", "kind"), [(407, "proxy"), (502, "network")])
def test_proxy_that_refuses_a_tunnel(python: Path, tmp_path: Path, server: Hub, status: int, kind: str) -> None:
    """For https the client asks the proxy of HTTPS_PROXY for a tunnel: only a missing password is final."""
    server.faults.proxy_status = status
    variables = {"HF_ENDPOINT": "https://hub.example", "HTTPS_PROXY": server.proxy_url}
    code, lines = Program(python, tmp_path / "cache", server, **variables).run("list", MODEL, "main")
    assert (code, lines[-1]["problem"]) == (1, kind), lines
    assert server.requests["proxy CONNECT"] > 0


def test_cache_that_cannot_be_written(python: Path, tmp_path: Path, server: Hub) -> None:
    """A cache folder below a file is a problem of the disk."""
    (tmp_path / "file").touch()
    code, lines = Program(python, tmp_path / "file" / "cache", server).fetch()
    assert (code, lines[-1]["problem"]) == (1, "disk")


def test_mirror_that_lists_no_sizes(program: Program, server: Hub) -> None:
    """Sizes and hashes come from the files' own answers where the listing has only names."""
    server.repositories[MODEL].bare = True
    code, lines = program.fetch()
    assert (code, lines[0]["total"]) == (0, 900_024)
    assert lines[-2] == {"bytes": 900_024, "total": 900_024, "verified": 900_000}


def test_full_disk(program: Program) -> None:
    """A disk that takes no more is a problem of the disk, not of the network."""
    program.command = ["/bin/sh", "-c", 'ulimit -f 400; exec "$@"', "sh", *program.command]
    code, lines = program.fetch()
    assert (code, lines[-1]["problem"]) == (1, "disk")


def test_damaged_file_is_deleted(program: Program, server: Hub, model: Path) -> None:
    """A store that flips a bit is found before the engine starts; the next start downloads what was damaged."""
    server.faults.corrupt = True
    code, lines = program.run("fetch", MODEL, "main", "--", "/bin/echo", "started")
    assert (code, lines[-1]["problem"]) == (1, "damaged")
    assert "(model-2.safetensors, model-1.safetensors)" in lines[-1]["message"]
    assert {path.name for path in program.snapshot.iterdir()} == {"empty.json"}
    server.faults.corrupt = False
    assert program.fetch()[0] == 0
    assert same_files(program.snapshot, model)


def test_signatures_stay_out_of_words() -> None:
    """The address of a redirect may hold a signature: its query is left out."""
    error = OSError("403 Client Error: Forbidden for url: https://store.example/a/b?Signature=abc&x=1 (id 7)\nadvice")
    assert hub_program.first_line(error) == (
        "OSError: 403 Client Error: Forbidden for url: https://store.example/a/b (id 7)"
    )


def test_kinds_have_findings() -> None:
    """Preflight has a finding for each kind of problem that another try does not mend."""
    only_fetch = {"damaged"}
    assert hub_answer._PERMANENT.keys() == hub_program.PROBLEMS.keys() - hub_program.RETRIED - only_fetch


def test_replicas_share_a_folder(program: Program, model: Path, server: Hub) -> None:
    """Replicas that start together wait for one another: each large file is sent once, and all of them go on."""
    server.faults.bytes_per_s = 1_000_000
    with ThreadPoolExecutor(3) as pool:
        ended = [each.result()[0] for each in [pool.submit(program.fetch) for _ in range(3)]]
    assert ended == [0, 0, 0]
    assert same_files(program.snapshot, model)
    assert server.sent == 900_000
