"""A `vllm` whose requests take as long as the profile says, by its own counters: `serve` and `bench serve` alone.

A request takes 4096 / max-num-batched-tokens seconds in the histogram of latencies, whatever the clock says, so that
the order of two profiles is certain. With 16384 tokens a step it fails while it loads.
"""

import itertools
import json
import os
import pathlib
import sys
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from tests.serve import fake_engine

TOKENS = 5


class Handler(fake_engine.Handler):
    """The fake engine's routes, with the counters that a measurement reads."""

    answered = 0

    def do_GET(self) -> None:  # noqa: N802 - the base class's names, here and below
        """Add counters to /metrics."""
        if self.path != "/metrics":
            super().do_GET()
            return
        count, each_s = Handler.answered, 4096 / self.server.options.max_num_batched_tokens
        text = (
            f'vllm:generation_tokens_total{{engine="0"}} {self.server.made}.0\n'
            f'vllm:prompt_tokens_total{{engine="0"}} {count}.0\n'
            f'vllm:request_success_total{{engine="0",finished_reason="length"}} {count}.0\n'
            f'vllm:num_requests_running{{engine="0"}} {self.server.running}.0\n'
            'vllm:num_requests_waiting{engine="0"} 0.0\n'
            f'vllm:e2e_request_latency_seconds_bucket{{engine="0",le="+Inf"}} {count}.0\n'
            f'vllm:e2e_request_latency_seconds_count{{engine="0"}} {count}.0\n'
            f'vllm:e2e_request_latency_seconds_sum{{engine="0"}} {count * each_s}\n'
        )
        self.answer(200, text.encode())

    def do_POST(self) -> None:  # noqa: N802
        """Count clients' requests."""
        super().do_POST()
        if self.headers.get("x-load"):
            Handler.answered += 1


def bench(words: list[str]) -> None:
    """Send the requests one after the other, and write the result that a ranging run reads."""
    given = dict(itertools.pairwise(words))
    number = int(given["--num-prompts"])
    body = json.dumps({"model": given["--model"], "prompt": "Once", "max_tokens": TOKENS}).encode()
    headers = {"authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "x-load": "yes"}
    for _ in range(number):
        urllib.request.urlopen(urllib.request.Request(f"{given['--base-url']}/v1/completions", body, headers)).read()


if sys.argv[1] == "bench":
    bench(sys.argv[3:])
else:
    fake_engine.Handler = Handler  # type: ignore[misc]
    if "16384" in sys.argv:
        sys.argv += ["--fail-with", "torch.OutOfMemoryError: CUDA out of memory."]
    fake_engine.main()
