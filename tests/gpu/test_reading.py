"""How the proof on a GPU reads logs and counts; needs no GPU."""

from typing import Any

import pytest
from benchmarks.gpu.bench import Load
from benchmarks.gpu.compare import at_once_row, in_turns_row
from benchmarks.gpu.engine_log import compare, read_figures
from benchmarks.gpu.load import single_requests
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


def result(seconds: float, ttfts_ms: list[float], **more: Any) -> dict[str, Any]:
    """What one load gave: 100 tokens, and requests that begin a second apart."""
    starts_s = [float(number) for number in range(len(ttfts_ms))]
    single = {"starts_s": starts_s, "ttfts_s": [ms / 1000 for ms in ttfts_ms], "tokens": []} | more
    same = {"median_itl_ms": 5.0, "failed": 0, "completed": 10, "total_output_tokens": 100}
    rate = {"duration": seconds, "output_throughput": 100 / seconds}
    return same | rate | {"single": single, "server_cpu_s": 0.02, "core_cpu_s": 0.1}


ONE_STREAM = Load("text-1", 1, 4, 1, 1)


def test_rounds_in_turns_are_summed_up() -> None:
    """Throughput is all tokens over all seconds, latency the median of all requests but the first of each round."""
    rounds = [
        {"servekit": result(1.0, [900, 30, 31, 90]), "bare": result(1.0, [900, 28, 28, 28])},
        {"servekit": result(3.0, [900, 30, 30, 30]), "bare": result(1.0, [900, 28, 28, 28])},
    ]
    row = in_turns_row(ONE_STREAM, rounds)
    assert row["servekit"]["output_tokens_per_s"] == 50
    assert row["servekit"]["server_cpu_ms_per_request"] == 2
    assert row["over"]["throughput"] == 0.5
    assert row["over"]["throughput_by_round"] == [1.0, 0.3333]
    assert row["over"]["throughput_error"] == pytest.approx(1 / 3, abs=1e-3)
    assert row["over"]["ttft_added_ms"] == 2.0


def test_halves_at_once_are_compared_in_the_seconds_they_share() -> None:
    """What one side does before the other has all its streams, or after its last request, is not counted."""
    ticks = range(20 * 9)
    one = result(8.0, [500, 30, 30, 30, 30, 30, 30, 30, 30], tokens=[(tick, 1.0) for tick in ticks])
    other = result(4.0, [500, 28, 28, 28, 28], tokens=[(tick, 2.0) for tick in ticks])
    row = at_once_row(ONE_STREAM, {"servekit": one, "bare": other})
    assert row["seconds"] == 3
    assert (row["servekit"]["requests_counted"], row["bare"]["requests_counted"]) == (4, 4)
    assert row["servekit"]["output_tokens_per_s"] == 20
    assert row["over"]["throughput"] == row["over"]["whole_throughput"] == 0.5
    assert row["over"]["throughput_error"] == 0.0
    assert row["over"]["ttft_added_ms"] == 2.0


def test_a_burst_is_compared_as_a_whole() -> None:
    """Where all requests begin together there are no steady seconds, and all of them count."""
    burst = Load("images-4", 4, 4, 1, 1, images=3)
    one, other = result(2.0, [40, 30, 30, 30]), result(1.0, [28, 28, 28, 28])
    row = at_once_row(burst, {"servekit": one, "bare": other})
    assert row["seconds"] is None
    assert (row["servekit"]["requests_counted"], row["over"]["ttft_added_ms"]) == (4, 2.0)
    assert row["over"]["throughput"] == 0.5


def test_a_failed_load_is_told_and_not_averaged() -> None:
    """A load without figures leaves no ratio behind, and neither does one that was left out."""
    half = {"servekit": result(1.0, [30, 30]), "bare": {"failure": "x"}}
    for row in (in_turns_row(ONE_STREAM, [half]), in_turns_row(ONE_STREAM, []), at_once_row(ONE_STREAM, half)):
        assert row["failure"]
        assert "over" not in row


def test_single_requests_are_told_in_order() -> None:
    """Answered requests come in the order of their start; tokens that came in one event are shared out."""
    told = single_requests(
        {
            "start_times": [3.0, 1.0, 4.0],
            "ttfts": [0.25, 0.5, 0.0],
            "itls": [[], [0.1], []],
            "output_lens": [1, 4, 0],
            "errors": ["", "", "refused"],
        }
    )
    assert told["starts_s"] == [1.0, 3.0]
    assert told["ttfts_s"] == [0.5, 0.25]
    assert told["tokens"] == [(30, 2.0), (32, 2.0), (65, 1.0)]
