"""Two replicas on two GPUs behind the router: `python -m benchmarks.two_gpus --out OUT --w4a16 W4A16 --cache CACHE`.

Each replica is `servekit serve` on a GPU of its own, held to an L4's memory; the router has the flags of
compose.scale.yaml. In turns, one replica alone, both directly and both behind the router get the same streams for each
replica: at least 1.9 of the tokens per second. Then requests at a steady rate, compared with what `servekit plan
--rate` says from records of one replica. At last the engine of a replica is killed under load: only its own streams may
end, each with an error event. Writes OUT/two-gpus.json; exits with 1 if a target is missed. `--target cpu --quick` with
a tiny checkpoint rehearses it.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack, suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.gpu.bench import Bench, Load
from benchmarks.gpu.compare import tokens_between
from benchmarks.gpu.load import BIN_S
from benchmarks.gpu.memory import L4_BUDGET_GIB, cap
from benchmarks.gpu.setting import Setting, machine
from benchmarks.gpu.streams import Streams
from benchmarks.gpu_embeddings.__main__ import measured
from servekit.measure.bench.loads import Generator
from servekit.measure.bench.loads import Load as Records
from tests.conftest import find_free_port, wait_until
from tests.deploy.test_proxies import running
from tests.deploy.test_scale import shipped_flags

THROUGHPUT = 1.9
STEADY = (0.25, 0.75)
"""The part of a load in which all streams run and none of them began with the others."""
TURNS, REQUESTS_A_STREAM = 2, 4
SHARE = 0.6
"""Of the highest rate, in the comparison with the plan."""


class Pair:
    """Both replicas and the router."""

    def __init__(self, run: Setting, router: str, things: ExitStack) -> None:
        self.run, self.port = run, find_free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.servers = []
        for number in range(2):
            os.environ["CUDA_VISIBLE_DEVICES"] = str(number)
            server = run.serve(f"replica-{number}", run.profile(), run.options.w4a16)
            self.servers.append(server)
            if run.gpu:  # the second one finds the first one's compiled code
                server.until(partial(server.is_past, "compile"), "compiled code", 400)
            else:
                server.until_ready(400)
        for server in self.servers:
            server.until_ready(500)
        urls = [server.url for server in self.servers]
        ports = ["--host=127.0.0.1", f"--port={self.port}", f"--prometheus-port={find_free_port()}"]
        things.enter_context(
            running([router, *ports, "--worker-urls", *urls, *shipped_flags()], run.out / "router.log")
        )
        wait_until(lambda: self.healthy() == len(urls), what="the router")

    def healthy(self) -> int:
        """Return how many replicas the router sends requests to."""
        with suppress(OSError), urllib.request.urlopen(f"{self.url}/readiness", timeout=5) as answer:
            return int(json.load(answer).get("healthy_workers", 0))
        return 0


def main() -> None:
    """Run everything, print the record as it grows, and judge it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for records and logs")
    parser.add_argument("--w4a16", type=Path, required=True, help="the quantized checkpoint")
    parser.add_argument("--cache", type=Path, required=True, help="SERVEKIT_CACHE_DIR")
    parser.add_argument("--engine", default="vllm", help="the program")
    parser.add_argument("--engine-python", default=sys.executable, help="a Python that can import vllm")
    parser.add_argument("--router", default=".venv-scale/bin/vllm-router", help="the program")
    parser.add_argument("--target", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--streams", type=int, nargs="+", default=[256, 64], help="for each replica, one after the other"
    )
    parser.add_argument("--within-s", type=float, default=560, help="time limit in seconds")
    parser.add_argument("--quick", action="store_true", help="a rehearsal: everything once, as short as possible")
    fixed = argparse.Namespace(stage="two-gpus", budget_gib=L4_BUDGET_GIB, flag=[])
    options = parser.parse_args(namespace=fixed)
    options.state = options.out / "state"
    options.out.mkdir(parents=True, exist_ok=True)
    run = Setting(options, options.out)
    run.note("machine", machine())
    cap(run)
    with ExitStack() as things:
        things.callback(run.close)
        pair = Pair(run, str(Path(options.router).absolute()), things)
        benches = [Bench(options.engine_python, run.out / f"bench-{number}.log") for number in range(2)]
        for bench in benches:
            things.callback(bench.close)
            bench.ready()
        throughput(pair, benches)
        run.step("rate", lambda: at_a_rate(pair))
        killed(pair)
    targets = list(judge(run.record))
    run.note("targets", targets)
    sys.exit(not all(each["met"] for each in targets))


def throughput(pair: Pair, benches: list[Bench]) -> None:
    """Load one replica alone, then both directly, then both behind the router, in turns.

    Both directly show what the replicas take from one another, as parts of one host, and so what the router takes.
    Fewer streams ask less of the host for each step of a GPU.
    """
    run = pair.run
    size = (32, 8) if run.quick else (512, 256)
    turns: list[dict[str, float]] = []
    for streams, turn in product([4, 2] if run.quick else run.options.streams, range(1 if run.quick else TURNS)):
        load = Load("pair", streams, REQUESTS_A_STREAM * streams, *size, spread=0.5)
        turns.append(
            {
                "streams": streams,
                "one": together(pair, [pair.servers[0].url], benches, load, turn),
                "direct": together(pair, [server.url for server in pair.servers], benches, load, turn),
                "two": together(pair, [pair.url] * 2, benches, load, turn),
            }
        )
        run.note("turns", turns)


def together(pair: Pair, urls: list[str], benches: list[Bench], load: Load, seed: int) -> float:
    """Return the tokens per second that load generators get, one for each of `urls`, which begin `load` together."""
    barrier = threading.Barrier(len(urls))
    found: dict[int, dict[str, Any]] = {}

    def one(number: int) -> None:
        found[number] = benches[number].run(
            load, urls[number], pair.run.options.w4a16, seed=10 * seed + number, key=pair.run.key(), together=barrier
        )

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(urls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    flows = [each["flow"] for each in found.values()]
    begin_s = max(flow["first_bin"] for flow in flows) * BIN_S
    length_s = min(flow["first_bin"] + len(flow["tokens"]) for flow in flows) * BIN_S - begin_s
    window = [begin_s + share * length_s for share in ((0, 1) if pair.run.quick else STEADY)]
    tokens = sum(tokens_between(flow, window[0], window[1]) for flow in flows)
    return float(tokens / (window[1] - window[0]))


def at_a_rate(pair: Pair) -> dict[str, Any]:
    """Compare requests at a steady rate with the plan that records of one replica give."""
    run, records = pair.run, []
    generator = Generator(run.options.engine, pair.servers[0].url, "model", str(run.options.w4a16))
    short = ("--random-input-len", "32", "--random-output-len", "250") if run.quick else ()
    for streams in (2, 8) if run.quick else (32, 256):
        command = generator.command(
            Records("text", streams, "greedy"), (8 if run.quick else 3) * streams, 50 + streams, *short
        )
        measured(run, f"one-{streams}", pair.servers[0], command)
        records += ["--run", str(run.out / f"one-{streams}.json")]
    sizes = ["--prompt", "32", "--output", "250"] if run.quick else ["--prompt", "512", "--output", "256"]
    flags = run.flags(run.profile(), run.options.w4a16)
    highest = run.ask("plan", *flags, *records, *sizes, "--replicas", "2", "--rate", "1")["replicas"]["plan"]
    rate = SHARE * 2 * highest["highest_rate"]
    plan = run.ask("plan", *flags, *records, *sizes, "--replicas", "2", "--rate", f"{rate:g}")["replicas"]
    behind = Generator(run.options.engine, pair.url, "model", str(run.options.w4a16))
    count = 8 if run.quick else max(200, int(rate * 25))
    result = run.out / "at-a-rate.json"
    command = behind.command(Records("text", 4096, "greedy"), count, 99, *short, "--request-rate", f"{rate:g}")
    command += ["--random-range-ratio", "0", "--percentile-metrics", "ttft,tpot,e2el", "--save-result"]
    command += ["--result-dir", str(result.parent), "--result-filename", result.name]
    env = run.environ() | {"OPENAI_API_KEY": run.key()}
    with (run.out / "at-a-rate.log").open("wb") as log:
        subprocess.run(command, check=True, env=env, stdout=log, stderr=log)
    seen = json.loads(result.read_text())
    return {
        "rate": rate,
        "planned_request_s": plan["plan"]["request_s"],
        "simulated_request_s": plan["simulated"]["mean_request_s"],
        "measured_request_s": seen["mean_e2el_ms"] / 1000,
        "failed": seen["failed"],
    }


def killed(pair: Pair) -> None:
    """Kill the engine of one replica under load, then send requests to the router at once."""
    count, tokens = (4, 400) if pair.run.quick else (128, 600)
    streams = Streams(pair.url, pair.run.key(), count=count, tokens=tokens)
    assert streams.all_begun.wait(60), "the streams did not begin"
    os.kill(pair.servers[1].core(), signal.SIGKILL)
    began_s = time.monotonic()
    wait_until(lambda: pair.healthy() == 1, what="the router to leave the replica")
    left_s = time.monotonic() - began_s
    after = Streams(pair.url, pair.run.key(), count=count, tokens=8).wait(120)
    pair.run.note("killed", {"outcomes": streams.wait(120), "out_of_rotation_s": round(left_s, 2), "after": after})


def factor(streams: float, turns: list[dict[str, float]]) -> dict[str, Any]:
    """Return the target of throughput with so many streams for each replica."""
    those = [each for each in turns if each["streams"] == streams]
    one, direct, two = (sum(each[how] for each in those) for how in ("one", "direct", "two"))
    return {
        "target": f"{streams} streams a replica: tokens/s of two over one >= {THROUGHPUT}",
        "met": two / one >= THROUGHPUT,
        "figure": {"behind the router": round(two / one, 3), "directly": round(direct / one, 3)},
    }


def judge(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each target, whether it is met, and its figure."""
    kill = record["killed"]
    kinds = set(kill["outcomes"])
    return [
        *(factor(streams, record["turns"]) for streams in sorted({each["streams"] for each in record["turns"]})),
        {"target": "a killed engine ends its own streams", "met": kinds == {"whole", "error event"}, "figure": kill},
        {"target": "no request fails afterwards", "met": set(kill["after"]) == {"whole"}, "figure": kill["after"]},
    ]


if __name__ == "__main__":
    main()
