"""How the proof on a GPU reads logs and counts; needs no GPU."""

import sys
from typing import Any

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT))  # the benchmarks are no part of the installed package

from benchmarks.gpu.bench import Load
from benchmarks.gpu.compare import BYPASS, summarise
from benchmarks.gpu.engine_log import compare, read_figures
from benchmarks.gpu.load import settled_ttfts_ms
from benchmarks.gpu.setting import without_guard

from servekit.serve.guard import guard_arguments

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


def round_of(name: str, **sides: tuple[float, list[float]]) -> dict[str, Any]:
    """One round of one load: seconds and times to the first token of each side, 100 tokens on each."""
    same = {"median_itl_ms": 5.0, "failed": 0, "total_output_tokens": 100, "output_throughput": 1}
    return {name: {side: same | {"duration": took, "ttfts_ms": times} for side, (took, times) in sides.items()}}


def test_rounds_are_summed_up_as_ratio_and_difference() -> None:
    """Throughput is all tokens over all seconds, latency the median of all requests, both beside vLLM alone."""
    rounds = [
        round_of("text-1", servekit=(1.0, [30, 31, 90]), bare=(1.0, [28, 28, 28])),
        round_of("text-1", servekit=(3.0, [30, 30, 30]), bare=(1.0, [28, 28, 28])),
    ]
    row = summarise(Load("text-1", 1, 3, 1, 1), ("servekit", "bare"), rounds)
    assert row["servekit"]["output_tokens_per_s"] == 50
    assert row["servekit_over_bare"]["throughput"] == 0.5
    assert row["servekit_over_bare"]["ttft_added_ms"] == 2.0
    assert [each["ttft_added_ms"] for each in row["servekit_over_bare"]["by_round"]] == [3.0, 2.0]


def test_a_failed_load_is_told_and_not_averaged() -> None:
    """A round without figures leaves no ratio behind, and neither does a load that was left out."""
    load = Load("text-1", 1, 1, 1, 1)
    row = summarise(load, ("servekit", "bare"), [{"text-1": {"servekit": {"failure": "x"}, "bare": {}}}])
    assert "servekit_over_bare" not in row
    assert row["failure"]
    assert summarise(load, ("servekit", "bare"), [{}])["failure"] == "no time was left for it"


def test_requests_that_begin_together_are_left_out() -> None:
    """Of the answered requests the first to begin are not counted, in whatever order they are reported."""
    result = {"start_times": [3.0, 1.0, 2.0, 4.0], "ttfts": [0.3, 0.1, 0.2, 0.0], "errors": ["", "", "", "refused"]}
    assert settled_ttfts_ms(result, 1) == [200.0, 300.0]
    assert Load("all-at-once", 4, 4, 1, 1).burst == 0
    assert Load("more-to-come", 4, 8, 1, 1).burst == 4


def test_gate_can_be_bypassed_by_a_header() -> None:
    """The header goes with each request of the load."""
    words = Load("text-1", 1, 8, 64, 32).arguments("http://h", ROOT, seed=5, headers=[BYPASS])
    assert words[words.index("--header") + 1] == "x-bare=1"
