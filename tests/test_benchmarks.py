"""The benchmarks' logic apart from measuring; `make bench` measures."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from servekit.serve.guard import guard_arguments
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT))  # the benchmarks are not part of the installed package

from benchmarks import check, cold, deaths, images, measuring, memory, throughput
from benchmarks.__main__ import find_benchmarks
from benchmarks.endpoint import unguarded
from benchmarks.gpu_embeddings.judge import judge
from benchmarks.load import run_round
from benchmarks.machine import describe_machine
from benchmarks.scale.events import OTHERS, OUT
from benchmarks.scale.events import judge as judge_replicas

from tests.harness.processes import busy_seconds, command_line, cpu_seconds, descendants, memory_of

SIDE = {"tokens_per_s": [99.0, 101.0], "engine_cpu_ms_per_token": 1.0, "servekit_cpu_share": 0.002}


def test_the_embeddings_targets_can_be_missed() -> None:
    """A record that meets every target passes; each figure that falls short is a missed one."""
    answers = {side: {"blocks": 5, "tokens": ["1 2"], "logits": ["a"]} for side in ("host", "gpu", "again")}
    good = {
        "gathers": 0,
        "answers": answers,
        "engines": {"host": {"pool_tokens": 181}, "gpu": {"pool_tokens": 100}},
        "plan_over_engine": {"host": {"pool_tokens": -0.02}, "gpu": {"pool_tokens": 0.01}},
        "places": {"host": "host", "gpu": "gpu"},
        "long_requests": {"host": 47.0, "gpu": 26.0},
        "turns": [
            {"side": "host", "tokens_per_s": 111, "tokens_per_wh": 222},
            {"side": "gpu", "tokens_per_s": 100, "tokens_per_wh": 200},
        ],
    }
    assert len(list(judge(good))) == 12
    assert all(met for _, met, _ in judge(good))
    other = {"host": answers["host"] | {"tokens": ["1 3"]}}
    assert not all(met for _, met, _ in judge({"answers": answers | other}))
    other["again"] = answers["again"] | {"tokens": ["1 4"]}
    assert all(met for _, met, _ in judge({"answers": answers | other}))
    bad: dict[str, Any] = good | {
        "gathers": {"failure": "rows from 0 differ"},
        "answers": answers | {"host": {"tokens": ["1 3"], "logits": ["b"], "blocks": 6}},
        "engines": {"host": {"pool_tokens": 179}, "gpu": {"pool_tokens": 100}},
        "plan_over_engine": {"host": {"pool_tokens": -0.021}, "gpu": {"pool_tokens": 0.03}},
        "places": {"host": "gpu", "gpu": "host"},
        "long_requests": {"host": 46.0, "gpu": 26.0},
        "turns": [{"side": side, "tokens_per_s": 100, "tokens_per_wh": 200} for side in ("host", "gpu")],
    }
    bad["turns"][0]["tokens_per_wh"] = None
    assert not any(met for _, met, _ in judge(bad))


def test_every_benchmark_is_found() -> None:
    """Each module with the protocol is listed under its name, and describes in one line what it measures."""
    found = find_benchmarks()
    assert {"check", "cold", "memory", "throughput"} <= set(found)
    assert all((benchmark.__doc__ or "").splitlines()[0].endswith(".") for benchmark in found.values())


def test_unknown_name_is_refused() -> None:
    """An unknown name ends the program with the list of names."""
    program = [sys.executable, "-m", "benchmarks", "speed"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no benchmark speed; there are check, " in done.stderr


def test_machine_facts_are_values() -> None:
    """The facts about the machine can be encoded as JSON and include cores and memory."""
    facts = json.loads(json.dumps(describe_machine()))
    assert facts["cores"] >= 1
    assert facts["memory_gib"] > 0


def test_broken_file_has_eight_mistakes() -> None:
    """The file for the comparison has eight mistakes, and only the end of vLLM's output is searched for their keys."""
    assert len(check.KEYS) == 8
    said = "usage: vllm serve [--max-model-len N]\nvllm serve: error: argument --dtype: invalid choice: 'bf16'"
    assert [key for key in check.KEYS if key in check.vllm_error(said)] == ["dtype"]
    traceback = "\n".join(["  File x"] * 9 + ["ValidationError: gpu-memory-utilization"])
    assert "gpu-memory-utilization" in check.vllm_error(traceback)


def test_images_are_told_by_connector() -> None:
    """The table has the median of the rounds per connector: time on the event loop, and in total."""
    rounds = {"vllm": [[1.0, 2.0], [1.2, 2.2], [9.0, 9.0]], "servekit": [[0.1, 1.0]]}
    _, vllm, servekit = images.table({"JPEG": {"bytes": 160_000, **rounds}})
    assert vllm.split()[2:] == ["vllm", "1.20", "2.20"]
    assert servekit.split()[2:] == ["servekit", "0.10", "1.00"]


def test_tables() -> None:
    """Each table shows the target beside the measured figure."""
    found: dict[str, list[str]] = {
        "15": check.table(
            {
                "mistakes": 8,
                "wall_s": {"servekit": [0.4], "vllm": [8.0]},
                "ratio": 20.0,
                "cpu_ratio": 21.0,
                "names": {"servekit": ["dtype"], "vllm": []},
            }
        ),
        "0.6 s": cold.table(
            {"wall_s": {"check": {"warm files": [0.3]}}, "cpu_s": {"check": {"warm files": [0.2]}}, "limit_s": 0.6}
        ),
        "80 MiB": memory.table(
            {
                "mib": {"ready": {"servekit": {"rss": 42.0, "pss": 33.0}}},
                "rss_mib": 42.0,
                "pss_mib": 33.0,
                "requests": 320,
                "scrapes": 500,
                "limit_mib": 80,
            }
        ),
        "0.98": throughput.table(
            {
                "sides": {"servekit": SIDE, "by hand": SIDE},
                "rounds": 2,
                "ratio": 1.01,
                "median_ratio": 1.0,
                "quartiles": [0.98, 1.02],
                "quiet_rounds": 0,
                "quiet_ratio": None,
                "cpu_ratio": 1.0,
                "wanted": 0.98,
            }
        ),
    }
    assert all(f"wanted: {wanted}" in "\n".join(lines) for wanted, lines in found.items())


def test_unguarded_takes_only_the_guard_away() -> None:
    """An engine started by hand gets the same arguments, except the guard's."""
    argv = ["vllm", "serve", "m", *guard_arguments(()), "--max-num-seqs", "1024"]
    assert unguarded(argv) == ["vllm", "serve", "m", "--max-num-seqs", "1024"]


def test_own_process_is_seen() -> None:
    """The harness reads memory, processor time, arguments and children of a process from /proc."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in descendants(os.getpid())
        assert "input()" in command_line(child.pid)
        child.communicate(b"\n")
    own = memory_of(os.getpid())
    assert own.rss_bytes >= own.pss_bytes > 0
    assert busy_seconds() > cpu_seconds([os.getpid()]) > 0
    assert cpu_seconds([child.pid]) == 0


class Answers(BaseHTTPRequestHandler):
    """An OpenAI-compatible stream of as many tokens as requested, or one less."""

    short = False
    keys: list[str | None]

    def do_POST(self) -> None:
        """Stream two events and the end."""
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.keys.append(self.headers["authorization"])
        usage = {"completion_tokens": asked["max_tokens"] - self.short}
        events = [{"id": "1", "choices": []}, {"id": "1", "choices": [], "usage": usage}]
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def answers() -> Iterator[tuple[type[Answers], str]]:
    """Run a server that streams; return its handler and its address."""
    handler = type("Handler", (Answers,), {"keys": [], "protocol_version": "HTTP/1.1"})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield handler, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_load_counts_tokens(answers: tuple[type[Answers], str]) -> None:
    """A round counts the tokens that the engine reports, and sends the key in every request."""
    handler, url = answers
    done = run_round(SimpleNamespace(url=url, model="m", key="sk-x"), streams=3, tokens=7)
    assert done.tokens == 21
    assert done.tokens_per_s == pytest.approx(21 / done.seconds)
    assert handler.keys == ["Bearer sk-x"] * 3


def test_load_refuses_short_answers(answers: tuple[type[Answers], str]) -> None:
    """A stream that ends early is an error, not a higher speed."""
    handler, url = answers
    handler.short = True
    with pytest.raises(ValueError, match="asked for 7 tokens"):
        run_round(SimpleNamespace(url=url, model="m", key=""), streams=2, tokens=7)


def test_the_cost_of_measuring_is_a_share_of_a_core() -> None:
    """The table has the median share of one core beside its target, and the size of the raw trace."""
    lines = measuring.table({"cpu_share": [0.004, 0.009, 0.005], "trace_bytes_per_s": [2000.0]})
    assert lines == ["of one core      0.50% (0.40% to 0.90%; target 1%)", "raw trace        7.2 MB an hour"]


@pytest.mark.parametrize(
    ("event", "figures", "failed", "wrong"),
    [
        ("rolling", {}, {}, 0),
        ("rolling", {}, {"whole: 503": 1, "stream: cut": 2}, 2),
        ("sigterm", {OUT: 1.9}, {}, 0),
        ("sigterm", {OUT: 2.1}, {"stream: error event": 1}, 2),
        ("engine-killed", {OTHERS: 0}, {"stream: error event": 3}, 0),
        ("engine-killed", {OTHERS: 1}, {"stream: cut": 1, "whole: 502": 1}, 3),
        ("replica-killed", {OTHERS: 0}, {"stream: cut": 3}, 0),
        ("replica-killed", {OTHERS: 0}, {}, 1),
        ("steady", {}, {"whole: TimeoutError": 1}, 1),
    ],
)
def test_what_replicas_may_not_show(event: str, figures: dict[str, float], failed: dict[str, int], wrong: int) -> None:
    """Each kind of failed request counts once, unless the event explains it; so does a time that is too long."""
    assert len(judge_replicas(event, figures, failed)) == wrong


@pytest.mark.parametrize(
    ("part", "books", "short", "said", "wrong"),
    [
        ("core", 100, 0, [], 0),
        ("core", 100, 5, ["may be missing: team-a 1"], 1),
        ("server", 99, 5, ["may be missing: team-a 1"], 0),
        ("server", 99, 5, ["with all their tokens: team-a 1"], 1),
        ("server", 98, 0, [], 1),
        ("servekit", 100, 0, ["with all their tokens: team-a 1"], 0),
        ("servekit", 99, 0, [], 1),
        ("servekit", 100, 0, ["may be missing: team-a 1"], 1),
    ],
)
def test_what_books_may_lack(part: str, books: int, short: int, said: list[str], wrong: int) -> None:
    """Nothing that was scraped; the last second only where vLLM's server was killed, and servekit says so."""
    figures = {
        "tokens at the last scrape before, by name": 99,
        "tokens at the last scrape before, by the engine": 100,
        "tokens in the books": books,
        "tokens that a client had and the books have not": short,
        "servekit said": said,
    }
    assert len(deaths.judge(part, figures)) == wrong
