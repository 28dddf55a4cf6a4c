"""How the proof on a GPU reads logs and counts; needs no GPU."""

import math
from typing import Any

import pytest
from benchmarks.gpu.bench import Load
from benchmarks.gpu.compare import compared_row, pooled
from benchmarks.gpu.engine_log import compare, read_figures
from benchmarks.gpu.load import ttfts_s
from benchmarks.gpu.setting import without_guard

from servekit.serve.guard import guard_arguments
from tests.conftest import ROOT

LINES = [
    "engine   | (EngineCore pid=7) INFO [gpu_model_runner.py:4879] Model loading took 9.18 GiB memory and 3.4 seconds",
    "engine   | (EngineCore pid=7) INFO [gpu_worker.py:440] Available KV cache memory: 6.48 GiB",
    "engine   | (EngineCore pid=7) INFO [kv_cache_utils.py:1708] GPU KV cache size: 537,508 tokens",
    "engine   | (EngineCore pid=7) init engine (profile, create kv cache, warmup model) took 138.04 s (9 s)",
    "servekit | ERROR:   GPU KV cache size: 1 tokens",
]


def test_figures_are_read_from_the_engines_lines() -> None:
    """Each figure is the one of its first line, without separators."""
    found = read_figures(LINES)
    assert found["weights_gib"] == 9.18
    assert found["pool_tokens"] == 537508
    assert found["engine_init_s"] == 138.04
    assert "compile_s" not in found


def test_plan_is_compared_with_what_the_engine_says() -> None:
    """A plan of a hundredth more is 0.01, and what either side lacks is left out."""
    assert compare({"pool_tokens": 101}, {"pool_tokens": 100.0}) == {"pool_tokens": 0.01}


def test_bare_arguments_lack_the_guards() -> None:
    """What the guard adds to the command line is taken out again, and nothing else."""
    argv = ["vllm", "serve", "m", *guard_arguments(()), "--max-num-seqs", "8"]
    assert without_guard(argv) == ["vllm", "serve", "m", "--max-num-seqs", "8"]


def test_image_loads_go_to_the_chat_route() -> None:
    """Images are sent as chat requests, three in each."""
    words = Load("image-1", 1, 8, 64, 32, images=3).arguments("http://h", ROOT, seed=5)
    assert words[words.index("--endpoint") + 1] == "/v1/chat/completions"
    assert words[words.index("--random-mm-base-items-per-request") + 1] == "3"


def result(tokens_per_s: float, ttfts_ms: list[float]) -> dict[str, Any]:
    """What one load gave."""
    same = {"median_itl_ms": 5.0, "failed": 0, "completed": 10, "server_cpu_s": 0.02, "core_cpu_s": 0.1}
    return same | {"output_throughput": tokens_per_s, "ttfts_s": [ms / 1000 for ms in ttfts_ms]}


ONE_STREAM = Load("text-1", 1, 4, 1, 1)


def test_a_load_is_compared_without_those_that_begin_together() -> None:
    """Latency is the median of all requests but the first of each stream, throughput that of the whole load."""
    row = compared_row(ONE_STREAM, {"servekit": result(50, [900, 30, 31, 90]), "bare": result(100, [28, 29, 29, 29])})
    assert row["servekit"]["requests_counted"] == 3
    assert row["servekit"]["server_cpu_ms_per_request"] == 2
    assert row["over"]["throughput"] == 0.5
    assert row["over"]["ttft_added_ms"] == 2.0


def test_a_burst_is_compared_as_a_whole() -> None:
    """Where all requests begin together, all of them count."""
    burst = Load("images-4", 4, 4, 1, 1, images=3)
    row = compared_row(burst, {"servekit": result(1, [40, 30, 30, 30]), "bare": result(1, [28, 28, 28, 28])})
    assert (row["servekit"]["requests_counted"], row["over"]["ttft_added_ms"]) == (4, 2.0)


def test_a_failed_load_is_told_and_not_averaged() -> None:
    """A load without figures leaves no ratio behind, nor does one in which a server answered no request."""
    row = compared_row(ONE_STREAM, {"servekit": result(1, [30, 30]), "bare": {"failure": "x"}})
    assert row["failure"]["bare"] == {"failure": "x"}
    unanswered = compared_row(ONE_STREAM, {"servekit": result(0, []) | {"failed": 4}, "bare": result(1, [30, 30])})
    assert unanswered["failure"]["servekit"]["failed"] == 4
    assert pooled([row, unanswered]) == {}


def test_rounds_are_summed_up_with_their_errors() -> None:
    """Throughput's spread is that of all loads; a latency that differs from round to round is not trusted more."""
    overs = {"a": [(0.9, 10, 1), (1.1, 20, 1)], "b": [(1.0, 3, 4), (1.0, 3, 4)]}
    names = ("throughput", "ttft_added_ms", "ttft_error_ms")
    rows = [
        {"load": load, "over": dict(zip(names, each, strict=True))} for load, rounds in overs.items() for each in rounds
    ]
    loads = pooled(rows)
    assert loads["a"]["throughput"] == loads["b"]["throughput"] == 1.0
    assert loads["a"]["throughput_error"] == loads["b"]["throughput_error"] == pytest.approx(0.1 / math.sqrt(2))
    assert [each["ttft_added_ms"] for each in loads.values()] == [15, 3]
    assert [each["ttft_error_ms"] for each in loads.values()] == pytest.approx([5, 4 / math.sqrt(2)])


def test_times_to_the_first_token_are_told_in_order() -> None:
    """Answered requests come in the order in which they were sent."""
    told = {"start_times": [3.0, 1.0, 4.0], "ttfts": [0.25, 0.5, 0.0], "errors": ["", "", "refused"]}
    assert ttfts_s(told) == [0.5, 0.25]
