"""Loads for `vllm bench serve`, and the one long-lived process that runs them."""

import json
import math
import os
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.load import READY, RESULT, WARM
from servekit.measure.bench.loads import Generator, Shape

QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
WARM_UPS = 4
"""Most requests before those that count: the first after a pause takes twice as long, on any server."""
ARRIVALS_PER_S = 200.0
"""How fast the streams of a load begin, at random moments. Were it all at once, requests would go on coming in the
clumps that the beginning has made, and a round would tell how those happened to fall."""


@dataclass(frozen=True)
class Load:
    """Requests of one kind: how many in parallel, how many in total, and their tokens."""

    name: str
    streams: int
    requests: int
    tokens_in: int
    tokens_out: int
    images: int = 0
    spread: float = 0.0
    """Share by which the tokens of single answers differ from `tokens_out`, so that streams do not end in step."""
    arrivals_per_s: float = ARRIVALS_PER_S
    """inf: all streams begin at once."""
    about_s: float = 0.0
    """What it takes; a load that the time left does not hold is left out."""

    def arguments(self, url: str, tokenizer: Path, seed: int) -> list[str]:
        """Return the arguments of `vllm bench serve`. Equal seeds give equal prompts, different seeds share none."""
        generator = Generator("", url, "model", str(tokenizer))
        shape = Shape(self.tokens_in, self.tokens_out, self.images)
        words = generator.arguments(shape, self.streams, self.requests, seed, "greedy", self.spread)
        warm_ups = str(min(self.streams, WARM_UPS))
        return [*words, "--request-rate", str(self.arrivals_per_s), "--num-warmups", warm_ups, "--save-detailed"]


LOADS = (
    Load("text-1", 1, 80, 256, 16, about_s=19),
    Load("text-32", 32, 256, 256, 64, spread=0.5, about_s=16),
    Load("text-256", 256, 768, 256, 64, spread=0.5, about_s=20),
    Load("text-512", 512, 1536, 256, 64, spread=0.5, about_s=30),
    Load("images-1", 1, 16, 64, 16, images=3, about_s=12),
    Load("images-32", 32, 96, 64, 32, images=3, spread=0.5, about_s=26),
    Load("images-256", 256, 320, 64, 32, images=3, spread=0.5, about_s=68),
    Load("images-512", 512, 576, 64, 32, images=3, spread=0.5, about_s=125),
)
"""What each of both servers gets in the same seconds."""
IMAGES = (
    Load("images-32", 32, 192, 64, 32, images=3, spread=0.5, about_s=45),
    Load("images-1", 1, 12, 64, 16, images=3, about_s=20),
    Load("images-128", 128, 256, 64, 32, images=3, spread=0.5, about_s=60),
)
"""What each of both servers gets in turns."""
WARM_UP = (Load("warm-up", 64, 128, 256, 32), Load("warm-up-images", 4, 8, 64, 16, images=3))
BURST = Load("burst-256", 256, 256, 256, 16, arrivals_per_s=math.inf)
"""What each of both servers gets in turns: requests that all come at once, and wait for one another."""
RATIO = Load("ratio", 512, 768, 600, 200, arrivals_per_s=math.inf)
"""What the quantized and the unquantized model are compared with: more than the latter's cache holds at once."""

QUICK = (Load("text-1", 1, 6, 32, 8), Load("text-4", 4, 24, 32, 8, spread=0.5), Load("images-1", 1, 3, 8, 4, images=3))
QUICK_BURST = Load("burst-4", 4, 4, 32, 4, arrivals_per_s=math.inf)
QUICK_RATIO = Load("ratio", 4, 4, 64, 16, arrivals_per_s=math.inf)


class Bench:
    """The process that measures. It imports vLLM once; `vllm bench serve` would spend most of its time on that."""

    def __init__(self, python: str, log: Path) -> None:
        environ = os.environ | QUIET
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [python, str(Path(__file__).parent / "load.py")],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    def ready(self) -> None:
        """Wait until the process has imported vLLM."""
        self._until(READY)

    def run(
        self, load: Load, url: str, tokenizer: Path, *, seed: int, key: str, together: threading.Barrier | None = None
    ) -> dict[str, Any]:
        """Measure one load; return its figures, or the `failure`.

        `together`: barrier for loads that must begin at the same time, after their warm-ups. A failing one aborts it.
        """
        together = together or threading.Barrier(1)
        try:
            self._tell(json.dumps({"arguments": load.arguments(url, tokenizer, seed), "key": key}))
            line = self._until(WARM, RESULT)
            if line.startswith(WARM):
                with suppress(threading.BrokenBarrierError):
                    together.wait()
                self._tell("")
                line = self._until(RESULT)
        finally:
            together.abort()
        answer: dict[str, Any] = json.loads(line.removeprefix(RESULT))
        return answer

    def close(self) -> None:
        """Kill the process."""
        with self._log, self._process:
            self._process.kill()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _until(self, *marks: str) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._log.write(line)
            self._log.flush()
            if line.startswith(marks):
                return line
        raise RuntimeError(f"the load generator ended with {self._process.wait()}; see {self._log.name}")
