"""Finding a model: folders, the hub's cache, the hub."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servekit.preflight.checkpoint.hub import hub_cache_folder, hub_status, is_offline, locate_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "salve-mundii/gemma4-E4B-opt"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A hub cache with one model, as huggingface_hub lays it out."""
    repository = tmp_path / "hub" / "models--salve-mundii--gemma4-E4B-opt"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    return tmp_path / "hub"


def locate(model: str, cache: Path, **options: Any) -> tuple[Any, str, list[tuple[str, str]]]:
    """Locate a model; return the findings as names and severities."""
    folder, revision, findings = locate_model(model, hub_cache=cache, **{"offline": True, **options})
    return folder, revision, [(finding.name, str(finding.severity)) for finding in findings]


def test_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    """A folder needs no cache."""
    assert locate(str(tmp_path), tmp_path) == (tmp_path, "", [])


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_cached_model_is_found_offline(cache: Path, revision: str) -> None:
    """A model in the cache is found by branch or commit without a request to the hub."""
    folder = cache / "models--salve-mundii--gemma4-E4B-opt" / "snapshots" / COMMIT
    assert locate(MODEL, cache, revision=revision) == (folder, COMMIT, [])


@pytest.mark.parametrize(
    ("model", "finding"),
    [
        ("/no/such/folder", "model-missing"),
        ("./nothing", "model-missing"),
        ("a/b/c", "model-missing"),
        ("a b", "model-name"),
        ("owner/other", "hub-offline"),
    ],
)
def test_absent_models_are_told_apart(model: str, finding: str, tmp_path: Path) -> None:
    """A missing folder, a wrong name and an uncached model offline each have a finding."""
    assert locate(model, tmp_path) == (None, "", [(finding, "error")])


def test_other_revision_is_not_the_cached_one(cache: Path) -> None:
    """A revision that is not in the cache is not replaced by another."""
    assert locate(MODEL, cache, revision="v2") == (None, "", [("hub-offline", "error")])


def test_reachable_model_will_be_downloaded(tmp_path: Path) -> None:
    """An uncached model that the hub offers is a note."""
    found = locate(MODEL, tmp_path, offline=False, ask_hub=lambda _model, _revision: "")
    assert found == (None, "", [("hub-download", "note")])


def test_unreachable_hub_is_an_error(tmp_path: Path) -> None:
    """An uncached model that the hub refuses is an error."""
    found = locate(MODEL, tmp_path, offline=False, ask_hub=lambda _model, _revision: "it is gated")
    assert found == (None, "", [("hub-unreachable", "error")])


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HF_HUB_CACHE": "/a"}, "/a"),
        ({"HF_HOME": "/b"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({"HOME": "/d"}, "/d/.cache/huggingface/hub"),
    ],
)
def test_cache_folder_follows_the_environment(environ: dict[str, str], folder: str) -> None:
    """The cache folder is the one that huggingface_hub uses."""
    assert hub_cache_folder(environ) == Path(folder)


def test_offline_mode_is_read_as_huggingface_does() -> None:
    """Either library's variable enables offline mode."""
    assert is_offline({"HF_HUB_OFFLINE": "1"})
    assert is_offline({"TRANSFORMERS_OFFLINE": "true"})
    assert not is_offline({"HF_HUB_OFFLINE": "0"})


class _Hub(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        """Redirect for `good`, return 401 for `gated` and 404 for anything else."""
        status = {"good": 307, "gated": 401}.get(self.path.split("/")[2], 404)
        self.send_response(status)
        self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    """A small hub on loopback."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("model", "reason"), [("o/good", ""), ("o/gated", "private, gated"), ("o/x", "HTTP 404")])
def test_hub_is_asked_once(hub: str, model: str, reason: str) -> None:
    """A redirect to the file counts as the file; refusals are explained."""
    answer = hub_status(model, "main", hub)
    assert answer == "" if not reason else reason in answer


def test_dead_hub_is_no_exception(free_port: int) -> None:
    """A hub that does not answer gives a reason, not a traceback."""
    assert "does not answer" in hub_status("o/good", "main", f"http://127.0.0.1:{free_port}")
