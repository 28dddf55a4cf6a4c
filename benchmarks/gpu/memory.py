"""What kills an engine whose memory is capped at an L4's: behind the guard, and without it."""

import json
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.endpoint import Measured
from benchmarks.gpu.engine_log import figures
from benchmarks.gpu.reading import GIB, read_gpu
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.volleys import CHAT, COMPLETIONS, Body, Outcome, Volley, fire, prompt, row

L4_BUDGET_GIB = 19.83
"""0.9 of the 22.03 GiB that CUDA shows of an L4."""
L4_CAP_GIB = 21.53
"""What PyTorch may take there: 22.03 GiB without the 0.5 of the CUDA context."""
LADDER = (512, 1_024, 2_000, 4_000, 16_000)
"""Prompt tokens: 1,000 were fine without the guard and 2,000 ended the engine."""
ROWS, ROW_TOKENS = 1_000, 192
"""As many as the batch holds, with some places left; long enough for all of them to run at once."""
START_S = 400
ONE_START_S = 150
"""What a killer without the guard takes, its start with kept caches included."""
DEATH_S = 10
_CAP_VARIABLE = "PYTORCH_CUDA_ALLOC_CONF"
_TRY_CAP = """
import torch
for gib, wanted in ((float({low}), True), (float({high}), False)):
    try:
        torch.empty(int(gib * 2**30), dtype=torch.uint8, device="cuda")
        fits = True
    except torch.OutOfMemoryError:
        fits = False
    assert fits == wanted, (gib, fits)
    torch.cuda.empty_cache()
"""


def guarded(run: Setting) -> None:
    """Fire everything at one servekit endpoint: it must survive and answer the plain rows."""
    cap(run)
    server = run.serve("memory", run.profile(budget_gib=L4_BUDGET_GIB), run.options.w4a16)
    server.until_ready(START_S)
    run.note("engine", figures(server))
    run.record["volleys"] = []
    for volley in volleys({kind: longest(run, server, kind) for kind in SCORERS}, quick=run.quick):
        shoot(run, server, volley)
    run.note("lines", server.find("ERROR", "out of memory"))


def shoot(run: Setting, server: Measured, volley: Volley) -> Outcome:
    """Fire a volley and record its outcome; end the stage if the engine dies."""
    outcome = fire(server, run.key(), volley)
    outcome.gpu_bytes = gpu_bytes(server)
    run.record["volleys"].append(asdict(outcome))
    run.note("last_volley", run.record["volleys"][-1])
    if not outcome.alive:
        run.note("causes", causes(server))
        raise SystemExit(f"{volley.name} ended the engine")
    return outcome


def longest(run: Setting, server: Measured, kind: str) -> int:
    """Return the largest tried number of prompt tokens whose logprobs the endpoint returns; 0 for none."""
    allowed = 0
    for length in (64, 2_000) if run.quick else LADDER:
        if shoot(run, server, Volley(f"{kind}-{length}", [scored(kind, length)])).shots != {"200": 1}:
            break
        allowed = length
    return allowed


def volleys(allowed: Mapping[str, int], *, quick: bool) -> Iterator[Volley]:
    """Yield the volleys for a guarded engine, the mixture last; `allowed`: kind of scorer to prompt tokens."""
    count, tokens = (6, 24) if quick else (ROWS, ROW_TOKENS)
    many = count // 16 + 1
    scorers = [scored(kind, length, number) for kind, length in allowed.items() for number in range(many) if length]
    plain = [row(number, tokens) for number in range(count)]
    yield Volley("scorers", scorers * 2)
    yield Volley("scorers-in-rows", scorers, plain)
    for name, fields in ROW_FIELDS.items():
        yield Volley(f"one-{name}-in-rows", [(COMPLETIONS, row(count, tokens) | fields)], plain)
        yield Volley(f"{name}-in-all-rows", [], [each | fields for each in plain])
    names = list(ROW_FIELDS)
    mixed = [each | ROW_FIELDS[names[number % len(names)]] for number, each in enumerate(plain)]
    yield Volley("everything", [*scorers, *[(CHAT, chat(number, tokens)) for number in range(many)]], mixed)
    yield Volley("plain", [], [row(number, 8) for number in range(count + count // 40)])


SCORERS: dict[str, Body] = {
    "prompt_logprobs": {"prompt_logprobs": 1},
    "echo": {"echo": True, "logprobs": 1},
    "ranks": {"prompt_logprobs": 0},
}
"""How a request asks for the logprobs of its prompt: in vLLM's words, as lm-eval's loglikelihood tasks do, and without
other words, so that the prompt may be longest."""
ROW_FIELDS: dict[str, Body] = {
    "penalty": {"frequency_penalty": 0.5, "presence_penalty": 0.5, "repetition_penalty": 1.1},
    "logprobs": {"logprobs": 20},
    "min-p": {"min_p": 0.05},
    "bias": {"logit_bias": {str(token): -1 for token in range(20, 84)}},
    "min-tokens": {"min_tokens": 16, "stop_token_ids": list(range(20, 84)), "ignore_eos": False},
}
"""Fields of a row that take memory for the whole batch."""


def scored(kind: str, length: int, number: int = 0) -> tuple[str, Body]:
    """Return a request for the logprobs of its prompt."""
    return COMPLETIONS, {"prompt": prompt(length, number), "max_tokens": 1, "temperature": 0} | SCORERS[kind]


def chat(number: int, tokens: int) -> Body:
    """Return a chat request with structured output and wide logprobs."""
    messages = [{"role": "user", "content": f"{number} pieces"}]
    wide = {"logprobs": True, "top_logprobs": 20, "response_format": {"type": "json_object"}}
    return {"messages": messages, "max_tokens": tokens} | wide


def bare(run: Setting) -> None:
    """Fire each killer at a separate vLLM without the guard; a second call continues where the first one ended."""
    cap(run, alone=True)
    kept = run.out / "memory-killers.json"
    killers: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    profile = run.profile(budget_gib=L4_BUDGET_GIB)
    for volley in killing_volleys(quick=run.quick):
        if volley.name in killers or run.left_s() < ONE_START_S:
            continue
        server = run.serve_bare(f"bare-{volley.name}", profile, run.options.w4a16)
        server.until_ready(START_S)
        killers[volley.name] = asdict(killed(server, fire(server, "", volley))) | {"causes": causes(server)}
        kept.write_text(json.dumps(killers))
        run.note("last_killer", killers[volley.name])
        server.processes()
        server.sweep()
        server.ending(server.started_s, 0)
    run.note("killers", killers)


def killing_volleys(*, quick: bool) -> Iterator[Volley]:
    """Yield the volleys that killed an engine with an L4's memory, each alone."""
    count, tokens, long = (6, 24, 64) if quick else (ROWS, ROW_TOKENS, 4_000)
    plain = [row(number, tokens) for number in range(count)]
    yield Volley("prompt_logprobs", [scored("prompt_logprobs", long)])
    yield Volley("penalty", [(COMPLETIONS, row(count, tokens) | ROW_FIELDS["penalty"])], plain)
    yield Volley("logprobs", [], [each | ROW_FIELDS["logprobs"] for each in plain])
    yield Volley("echo", [scored("echo", long)])


def killed(server: Measured, outcome: Outcome) -> Outcome:
    """Give the server time to notice that its engine has died."""
    outcome.gpu_bytes = gpu_bytes(server)
    end_s = time.monotonic() + DEATH_S
    while outcome.rows.keys() | outcome.shots.keys() != {"200"} and server.is_alive() and time.monotonic() < end_s:
        time.sleep(0.2)
    outcome.alive = server.is_alive()
    return outcome


def causes(server: Measured) -> list[str]:
    """Return the lines with the engine's cause of death."""
    return [line[:300] for line in server.find("OutOfMemoryError", "out of memory", "AssertionError")][:4]


def gpu_bytes(server: Measured) -> int:
    """Return the GPU memory of this server's processes; it only grows, because PyTorch keeps what it allocated."""
    gpu = read_gpu()
    mine = server.processes()
    return sum(size for pid, size in gpu.processes.items() if pid in mine) if gpu else 0


def cap(run: Setting, *, alone: bool = False) -> None:
    """Cap the memory of this run's engine at an L4's; check that the cap holds.

    `alone`: the engine has PyTorch's default allocator settings plus the cap, and none of servekit's.
    """
    if not run.gpu:
        return
    import_total = "import torch; print(torch.cuda.get_device_properties(0).total_memory)"
    said = subprocess.run([run.options.engine_python, "-c", import_total], capture_output=True, check=True, text=True)
    setting = f"per_process_memory_fraction:{L4_CAP_GIB * GIB / int(said.stdout):.6f}"
    attempt = [run.options.engine_python, "-c", _TRY_CAP.format(low=L4_CAP_GIB - 1, high=L4_CAP_GIB + 1)]
    environ = run.environ() | {_CAP_VARIABLE: setting}
    tried = subprocess.run(attempt, env=environ, capture_output=True, text=True, check=False)
    run.note("cap", {"setting": setting, "holds": tried.returncode == 0, "told": tried.stderr[-300:]})
    if tried.returncode:
        raise SystemExit(f"PyTorch does not keep to {setting}: {tried.stderr[-600:]}")
    others = "" if alone else f"${{{_CAP_VARIABLE}:+${_CAP_VARIABLE},}}"
    run.options.engine = str(_capped_program(run, others + setting))


def _capped_program(run: Setting, value: str) -> Path:
    program = run.out / f"engine-with-cap-{run.options.stage}"
    program.write_text(f'#!/bin/bash\nexport {_CAP_VARIABLE}="{value}"\nexec {shlex.quote(run.options.engine)} "$@"\n')
    program.chmod(0o755)
    return program
