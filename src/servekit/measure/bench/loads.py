"""The standard loads as arguments of `vllm bench serve` of vLLM 0.20.2 (vllm/benchmarks/serve.py)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

IMAGE_PIXELS: Final = 448
SAMPLINGS: Final[Mapping[str, Mapping[str, object]]] = {
    "sampled": {"--temperature": 1.0, "--top-p": 0.95, "--top-k": 64},
    "greedy": {"--temperature": 0},
}
"""`sampled` is what Gemma's own generation_config asks for."""


@dataclass(frozen=True)
class Shape:
    """The requests of a load: tokens of the prompt without its images, tokens of the answer, images."""

    tokens_in: int
    tokens_out: int
    images: int = 0


SHAPES: Final[Mapping[str, Shape]] = {
    "text": Shape(512, 256),
    "images-1": Shape(128, 128, 1),
    "images-3": Shape(128, 128, 3),
}
STREAMS: Final = (1, 8, 32, 128, 512)
SPREAD: Final = 0.5
"""Share by which the tokens of single answers differ from `tokens_out`, so that streams do not end in step."""


@dataclass(frozen=True)
class Load:
    """Requests of one shape: so many streams at once, and how the tokens are drawn."""

    kind: str
    streams: int
    sampling: str

    @property
    def name(self) -> str:
        """What records of this load are named."""
        return f"{self.kind}-{self.streams}-{self.sampling}"


@dataclass(frozen=True)
class Generator:
    """The engine's load generator and the endpoint that it asks."""

    engine: str
    """The program `vllm`."""
    url: str
    """The endpoint, without /v1."""
    model: str
    tokenizer: str
    """The folder or hub id of the checkpoint."""

    def command(self, load: Load, requests: int, seed: int, *extra: str) -> list[str]:
        """Return the command line for so many requests. Equal seeds give equal prompts, different seeds share none."""
        words = self.arguments(SHAPES[load.kind], load.streams, requests, seed, load.sampling)
        return [self.engine, "bench", "serve", *words, *extra]

    def arguments(
        self, shape: Shape, streams: int, requests: int, seed: int, sampling: str, spread: float = SPREAD
    ) -> list[str]:
        """Return the arguments of `vllm bench serve`; `spread` is that of the answers' lengths."""
        words: dict[str, object] = {
            "--base-url": self.url,
            "--model": self.model,
            "--tokenizer": self.tokenizer,
            "--max-concurrency": streams,
            "--num-prompts": requests,
            "--random-input-len": shape.tokens_in,
            "--random-output-len": shape.tokens_out,
            "--random-range-ratio": json.dumps({"input": 0.0, "output": spread}),
            "--seed": seed,
            "--num-warmups": 0,
            "--ready-check-timeout-sec": 0,
            **SAMPLINGS[sampling],
        }
        if shape.images:
            words |= {
                "--backend": "openai-chat",
                "--endpoint": "/v1/chat/completions",
                "--dataset-name": "random-mm",
                "--random-mm-base-items-per-request": shape.images,
                "--random-mm-num-mm-items-range-ratio": 0,
                "--random-mm-limit-mm-per-prompt": json.dumps({"image": shape.images, "video": 0}),
                "--random-mm-bucket-config": f"{{({IMAGE_PIXELS}, {IMAGE_PIXELS}, 1): 1.0}}",
            }
        else:
            words |= {"--backend": "openai", "--endpoint": "/v1/completions", "--dataset-name": "random"}
        return [*(str(part) for pair in words.items() for part in pair), "--ignore-eos", "--disable-tqdm"]
