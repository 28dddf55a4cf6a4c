"""How the proof on a GPU reads logs and computes figures; needs no GPU."""

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benchmarks.endpoint import unguarded
from benchmarks.gpu import full_cache
from benchmarks.gpu.bench import BURST, QUICK_RATIO, Bench, Load
from benchmarks.gpu.compare import burst_later, compared_row, pooled, tokens_between
from benchmarks.gpu.engine_log import compare, read_figures
from benchmarks.gpu.load import BIN_S, flow
from benchmarks.gpu.memory import killing_volleys, volleys
from benchmarks.gpu.stages import measured
from benchmarks.gpu.volleys import message_of, prompt

from servekit.measure.report.runs import load_run
from servekit.serve.guard import guard_arguments
from tests.conftest import ROOT
from tests.measure.site import TOKENS, running_site
from tests.measure.test_bench import GENERATOR as MEASURED_GENERATOR

LINES = [
    "engine   | (EngineCore pid=7) INFO [gpu_model_runner.py:4879] Model loading took 9.18 GiB memory and 3.4 seconds",
    "engine   | (EngineCore pid=7) INFO [gpu_worker.py:440] Available KV cache memory: 6.48 GiB",
    "engine   | (EngineCore pid=7) INFO [kv_cache_utils.py:1708] GPU KV cache size: 537,508 tokens",
    "engine   | (EngineCore pid=7) init engine (profile, create kv cache, warmup model) took 138.04 s (9 s)",
    "servekit | ERROR:   GPU KV cache size: 1 tokens",
]


def test_figures_are_read_from_the_engines_lines() -> None:
    """Each figure comes from its first line, without separators."""
    found = read_figures(LINES)
    assert found["weights_gib"] == 9.18
    assert found["pool_tokens"] == 537508
    assert found["engine_init_s"] == 138.04
    assert "compile_s" not in found


def test_plan_is_compared_with_what_the_engine_says() -> None:
    """A plan that is 1 % too high gives 0.01, and figures that either side lacks are left out."""
    assert compare({"pool_tokens": 101}, {"pool_tokens": 100.0}) == {"pool_tokens": 0.01}


def test_bare_arguments_lack_the_guards() -> None:
    """The guard's arguments are removed from the command line, and nothing else."""
    argv = ["vllm", "serve", "m", *guard_arguments(()), "--max-num-seqs", "8"]
    assert unguarded(argv) == ["vllm", "serve", "m", "--max-num-seqs", "8"]


def test_image_loads_go_to_the_chat_route() -> None:
    """Images are sent as chat requests, three in each."""
    words = Load("image-1", 1, 8, 64, 32, images=3).arguments("http://h", ROOT, seed=5)
    assert words[words.index("--endpoint") + 1] == "/v1/chat/completions"
    assert words[words.index("--random-mm-base-items-per-request") + 1] == "3"


def result(sent_s: list[float], ttfts_ms: list[float], tokens_per_bin: float = 1) -> dict[str, Any]:
    """The result of one load: tokens from the first bin on, for two seconds."""
    same = {"median_itl_ms": 5.0, "failed": 0, "completed": 10, "server_cpu_s": 0.02, "core_cpu_s": 0.1}
    times = {"sent_s": sent_s, "ttfts_s": [ms / 1000 for ms in ttfts_ms]}
    return same | {"flow": times | {"first_bin": round(sent_s[0] / BIN_S), "tokens": [tokens_per_bin] * 200}}


ONE_STREAM = Load("text-1", 1, 4, 1, 1)


def test_throughput_is_counted_while_both_are_fully_loaded() -> None:
    """The time in which one of them is alone, has not begun or has no more requests to begin, counts for neither."""
    servekit, bare = result([1, 1.5, 2, 2.5], [250] * 4), result([1.5, 1.6, 1.8, 2], [250] * 4, 2)
    row = compared_row(ONE_STREAM, {"servekit": servekit, "bare": bare})
    assert row["seconds_counted"] == 0.5
    assert (row["servekit"]["output_tokens_per_s"], row["bare"]["output_tokens_per_s"]) == (100, 200)
    assert row["over"]["throughput"] == 0.5


def test_loads_that_do_not_meet_are_no_comparison() -> None:
    """A load that ends before the other has begun, or has no token while both run, gives no ratio."""
    row = compared_row(ONE_STREAM, {"servekit": result([1, 2], [10, 10]), "bare": result([2, 4], [20, 10])})
    assert row["failure"] == "both were fully loaded for -0.01 s"
    silent = result([1, 1.5, 2, 2.5], [250] * 4, 0)
    unheard = compared_row(ONE_STREAM, {"servekit": result([1, 1.5, 2, 2.5], [250] * 4), "bare": silent})
    assert "'bare': 0.0" in unheard["failure"]
    assert pooled([row, unheard]) == {}


def test_latency_is_that_of_all_but_those_that_begin_together() -> None:
    """The time to the first token is the median of all requests but the first of each stream."""
    sent_s = [1.0, 1.5, 2.0, 2.5]
    row = compared_row(
        ONE_STREAM, {"servekit": result(sent_s, [900, 30, 31, 90]), "bare": result(sent_s, [28, 29, 29, 29])}
    )
    assert row["servekit"]["requests_counted"] == 3
    assert row["servekit"]["server_cpu_ms_per_request"] == 2
    assert row["over"]["ttft_added_ms"] == 2.0


def test_a_failed_load_is_told_and_not_averaged() -> None:
    """A load without figures, or one in which a server answered no request, gives no ratio."""
    good = result([1, 2], [30, 30])
    row = compared_row(ONE_STREAM, {"servekit": good, "bare": {"failure": "x"}})
    assert row["failure"]["bare"] == {"failure": "x"}
    assert set(row["failure"]["servekit"]).isdisjoint({"flow", "sent_s", "ttfts_s", "tokens"})
    none = {"flow": {"sent_s": [], "ttfts_s": [], "tokens": [], "first_bin": 0}, "failed": 4}
    unanswered = compared_row(ONE_STREAM, {"servekit": none, "bare": good})
    assert unanswered["failure"]["servekit"]["failed"] == 4
    assert pooled([row, unanswered]) == {}


def test_rounds_are_summed_up_with_their_errors() -> None:
    """Throughput's error comes from all loads together; a latency's error covers the spread between rounds."""
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


def test_a_burst_is_summed_up_against_vllm_alone() -> None:
    """The delay of the median first token is in milliseconds and as a share, with errors from the rounds' spread."""
    rows = [
        {"bare": {"median_ttft_ms": alone_ms}, "over": {"ttft_added_ms": added_ms, "ttft_error_ms": 99}}
        for alone_ms, added_ms in ((1000, 10), (500, 20))
    ]
    later = burst_later([*rows, {"failure": {}}])
    told = {"rounds": 2, "ttft_added_ms": 15, "ttft_error_ms": 5, "share": 0.025, "share_error": 0.015}
    assert later == pytest.approx(told)


def test_streams_begin_one_after_another_or_at_once() -> None:
    """A load's streams begin at 200 per second, those of a burst together."""
    for load, rate in ((ONE_STREAM, "200.0"), (BURST, "inf")):
        words = load.arguments("http://h", ROOT, seed=5)
        assert words[words.index("--request-rate") + 1] == rate


def test_tokens_are_told_by_the_time_they_came() -> None:
    """The flow has answered requests only, in the order of sending; chunks of several tokens count alike."""
    told = {
        "start_times": [3.0, 1.0, 4.0],
        "ttfts": [0.25, 0.5, 0.0],
        "itls": [[0.02, 0.02], [1.0], []],
        "output_lens": [6, 2, 0],
        "errors": ["", "", "refused"],
    }
    figures = flow(told)
    assert (figures["sent_s"], figures["ttfts_s"]) == ([1.0, 3.0], [0.5, 0.25])
    assert (figures["first_bin"], len(figures["tokens"])) == (150, 180)
    assert tokens_between(figures, 1.5, 2.5) == 1
    assert tokens_between(figures, 0, 9) == 8
    assert tokens_between(figures, 3.25, 3.28) == 4


GENERATOR = """#!/bin/sh
echo READY
while read -r order; do
    case "$order" in
        *broken*) echo 'RESULT {"failure": "x"}'; continue ;;
        *slow*) sleep 0.3 ;;
    esac
    warm_ns=$(date +%s%N)
    echo WARM
    read -r go
    echo "RESULT {\\"warm_ns\\": $warm_ns, \\"began_ns\\": $(date +%s%N)}"
done
"""
"""Speaks as load.py does; the key says how long the warm-up takes."""


@pytest.fixture
def benches(tmp_path: Path) -> Iterator[list[Bench]]:
    """Two load generators that only report when they were warm and when they began."""
    program = tmp_path / "generator"
    program.write_text(GENERATOR)
    program.chmod(0o755)
    pair = [Bench(str(program), tmp_path / f"{number}.log") for number in (1, 2)]
    for bench in pair:
        bench.ready()
    yield pair
    for bench in pair:
        bench.close()


def put_on_both(benches: list[Bench], keys: tuple[str, str]) -> list[dict[str, Any]]:
    """Run one load on each; both must begin together."""
    together = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(bench.run, ONE_STREAM, "http://h", ROOT, seed=1, key=key, together=together)
            for bench, key in zip(benches, keys, strict=True)
        ]
        return [run.result(timeout=60) for run in runs]


def test_two_loads_begin_when_both_are_warm(benches: list[Bench]) -> None:
    """The faster one waits for the slower one, and either can run again."""
    for keys in (("quick", "slow"), ("slow", "quick")):
        results = put_on_both(benches, keys)
        assert min(each["began_ns"] for each in results) >= max(each["warm_ns"] for each in results)


def test_a_load_that_fails_keeps_no_other_waiting(benches: list[Bench]) -> None:
    """One that cannot begin returns its reason, and the other one runs."""
    failed, done = put_on_both(benches, ("broken", "quick"))
    assert failed == {"failure": "x"}
    assert "began_ns" in done


def test_the_ratio_is_measured_by_servekit_itself(tmp_path: Path) -> None:
    """Tokens, time and energy of both models come from the record of `servekit measure`, which stays in OUT."""
    program = tmp_path / "vllm"
    program.write_text(MEASURED_GENERATOR)
    program.chmod(0o755)
    options = SimpleNamespace(engine=str(program), bf16=tmp_path)
    run: Any = SimpleNamespace(options=options, out=tmp_path, key=lambda: "k")
    with running_site() as site:
        server: Any = SimpleNamespace(url=site.url, observe_url=site.url)
        found = measured(run, "ratio-baseline-1", server, QUICK_RATIO, seed=99)
        assert found["total_output_tokens"] == TOKENS * QUICK_RATIO.requests
        assert found["energy_j"] is None
        assert load_run(tmp_path / "ratio-baseline-1.json").record.run.duration_s == found["duration"]
        program.write_text("#!/bin/sh\nexit 3\n")
        assert measured(run, "ratio-baseline-2", server, QUICK_RATIO, seed=99) == {"failure": "exit code 3: "}


def test_volleys_fill_the_batch_and_leave_room_for_the_shots() -> None:
    """No two rows share a prompt, refused requests are not fired again, and all are in flight at the same time."""
    fired = {volley.name: volley for volley in volleys({"prompt_logprobs": 1_000, "echo": 0}, quick=False)}
    rows = fired["scorers-in-rows"].rows
    assert len({tuple(body["prompt"]) for body in rows}) == len(rows) == 1_000
    assert all("echo" not in body for _, body in fired["scorers-in-rows"].shots)
    assert all(len(volley.rows) + len(volley.shots) <= 2_048 for volley in fired.values())
    assert {"echo", "penalty"} <= {volley.name for volley in killing_volleys(quick=False)}


def test_volleys_beside_a_full_cache_overfill_it() -> None:
    """The rows' prompts are longer than the pool, each is another one, and no volley has more rows than the batch."""
    fired = list(full_cache.volleys(1_024, 597, 19_900))
    for volley in fired[:-1]:
        assert sum(len(body["prompt"]) for body in volley.rows) > 508_739
        assert len({tuple(body["prompt"]) for body in volley.rows}) == len(volley.rows)
    assert {len(volley.rows) + len(volley.shots) for volley in fired} == {1_024}


def test_prompts_are_of_ids_that_every_vocabulary_has() -> None:
    """Neither the special tokens at the vocabulary's beginning nor ids that a tiny vocabulary lacks are used."""
    ids = [token for number in range(50) for token in prompt(300, number)]
    assert min(ids) >= 14
    assert max(ids) < 1_024


def test_a_refusal_is_read_in_the_clients_words() -> None:
    """An error's message is extracted from its JSON, and any other answer is truncated."""
    assert message_of(b'{"error": {"message": "too long"}}') == "too long"
    assert message_of(b"[1]") == "[1]"
