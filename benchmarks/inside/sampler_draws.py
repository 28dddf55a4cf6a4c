"""Whether FlashInfer's and vLLM's samplers draw from the same distribution, and what one seed in the batch costs.

Run it with the engine's Python on a GPU: `python benchmarks/inside/sampler_draws.py`. Each sampler draws 100,000 tokens
from one row of logits with Gemma's recommended top_k and top_p; a chi-square test compares them with the exact
probabilities. `--device cpu --words 2000 --draws 20000` rehearses it with vLLM's sampler alone.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

TOP_K, TOP_P = 64, 0.95
MOST_Z = 3.09
"""Standard deviations: a right sampler is beyond that once in 1,000 runs."""
LEAST_EXPECTED = 5
TIMED_ROWS, TIMED_STEPS = 512, 50


def main() -> None:
    """Print one line of JSON; exit with 1 if a sampler draws from another distribution."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--words", type=int, default=262_144)
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=1_000)
    options = parser.parse_args()
    torch.manual_seed(5)
    logits = torch.randn(options.words, device=options.device) * 3
    sampler = TopKTopPSampler()
    kinds = {"vllm": sampler.forward_native} | (
        {"flashinfer": sampler.forward_cuda} if "cuda" in options.device else {}
    )
    report = {name: tested(draws(forward, logits, options), exact(logits)) for name, forward in kinds.items()}
    if "flashinfer" in kinds:
        report["ms_by_seeded_rows"] = {
            name: {seeded: round(step_ms(forward, logits, seeded), 2) for seeded in (0, 1)}
            for name, forward in kinds.items()
        }
    print(json.dumps(report))
    raise SystemExit(any(not report[name]["same"] for name in kinds))


def exact(logits: torch.Tensor) -> torch.Tensor:
    """Return the probabilities of all words: top-k first, then the smallest set of at least top-p."""
    kept, words = logits.double().topk(TOP_K)
    shares = kept.softmax(-1)
    before = shares.cumsum(-1) - shares
    shares = torch.where(before < TOP_P, shares, 0)
    return torch.zeros_like(logits, dtype=torch.float64).scatter(0, words, shares / shares.sum())


def draws(forward: Callable[..., Any], logits: torch.Tensor, options: argparse.Namespace) -> torch.Tensor:
    """Return how often each word was drawn."""
    counts = torch.zeros_like(logits, dtype=torch.int64)
    k, p = parameters(options.rows, logits.device)
    for _ in range(options.draws // options.rows):
        drawn, _ = forward(logits.expand(options.rows, -1).clone(), {}, k, p)
        counts += torch.bincount(drawn.long().view(-1), minlength=logits.shape[0])
    return counts


def parameters(rows: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return top-k and top-p of each row, in vLLM's types."""
    return torch.full((rows,), TOP_K, dtype=torch.int32, device=device), torch.full((rows,), TOP_P, device=device)


def tested(counts: torch.Tensor, shares: torch.Tensor) -> dict[str, Any]:
    """Return Pearson's chi-square with its distance from the mean, by Wilson and Hilferty's approximation."""
    expected = shares * counts.sum()
    often, seldom = expected >= LEAST_EXPECTED, (expected > 0) & (expected < LEAST_EXPECTED)
    pairs = [(counts[often].double(), expected[often])]
    if seldom.any():
        pairs.append((counts[seldom].sum().double().view(1), expected[seldom].sum().view(1)))
    square = sum(float(((got - wanted) ** 2 / wanted).sum()) for got, wanted in pairs)
    freedom = sum(len(got) for got, _ in pairs) - 1
    z = ((square / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    outside = int(counts[expected == 0].sum())
    found = {"draws": int(counts.sum()), "chi_square": round(square, 2), "freedom": freedom, "z": round(z, 2)}
    return found | {"outside": outside, "same": outside == 0 and z < MOST_Z}


def step_ms(forward: Callable[..., Any], logits: torch.Tensor, seeded: int) -> float:
    """Return the milliseconds of a step of 512 rows, the first ones with a seed of their own."""
    k, p = parameters(TIMED_ROWS, logits.device)
    generators = {row: torch.Generator(logits.device).manual_seed(row) for row in range(seeded)}
    batch = logits.expand(TIMED_ROWS, -1).clone()
    began_s = 0.0
    for step in range(2 * TIMED_STEPS):
        if step == TIMED_STEPS:  # the first half warms up
            torch.cuda.synchronize()
            began_s = time.monotonic()
        forward(batch.clone(), generators, k, p)
    torch.cuda.synchronize()
    return (time.monotonic() - began_s) / TIMED_STEPS * 1_000


if __name__ == "__main__":
    main()
