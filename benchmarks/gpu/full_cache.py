"""Every kind of request at its bound, in a batch of 1,024 rows and beside a full cache, with an L4's memory."""

import re
from collections.abc import Iterator

from benchmarks.gpu.engine_log import figures
from benchmarks.gpu.memory import L4_BUDGET_GIB, ROW_FIELDS, START_S, cap, scored, shoot
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.volleys import COMPLETIONS, Volley, row

BATCH, ROW_TOKENS = 1_024, 512
"""Rows with the shot's own, and what each answers: the first must still run when the last prompt has been read."""
OVERFULL = 1.2
"""Tokens of the rows' prompts over those of the pool."""
REHEARSED_BATCH, REHEARSED_LENGTH = 8, 300


def full(run: Setting) -> None:
    """Fire the volleys at one servekit endpoint: its engine must live and answer all of them."""
    cap(run)
    profile, count, most = run.profile(budget_gib=L4_BUDGET_GIB), BATCH, 10**9
    more: tuple[str, ...] = ()
    if not run.gpu:
        more, count, most = ("--deviate", "max-num-seqs"), REHEARSED_BATCH, REHEARSED_LENGTH
        profile.write_text(re.sub(r"(?m)^max-num-seqs:.*$", f"max-num-seqs: {count}", profile.read_text()))
    memory = run.ask("plan", *run.flags(profile, run.options.w4a16, *more))["memory"]
    run.note("shortages", memory["shortages"])
    server = run.serve("memory-full", profile, run.options.w4a16, *more)
    server.until_ready(START_S)
    engine = figures(server)
    run.note("engine", engine)
    bound = (memory["shortages"] or {"penalised_tokens": most})["penalised_tokens"]
    longest = min(bound, memory["max_model_len"] - ROW_TOKENS, most)
    run.record["volleys"] = []
    for volley in volleys(count, min(int(OVERFULL * engine["pool_tokens"] / count), most), longest):
        shoot(run, server, volley)
    run.note("lines", server.find("ERROR", "out of memory"))


def volleys(count: int, length: int, longest: int) -> Iterator[Volley]:
    """Yield a volley for each kind, then one of all, with `count` rows in all.

    `length`: prompt tokens of a plain row. `longest`: those of the shots, so that their rows are the widest.
    """
    plain = [row(number, ROW_TOKENS, length) for number in range(count)]
    long = row(count, ROW_TOKENS, longest)
    shots = {
        "penalty": long | ROW_FIELDS["penalty"],
        "logprobs": long | ROW_FIELDS["logprobs"],
        "seed": long | {"seed": 5},
        "prompt_logprobs": scored("prompt_logprobs", min(2_048, longest))[1],
        "ranks": scored("ranks", min(4_096, longest))[1],
    }
    for name, shot in shots.items():
        yield Volley(f"one-{name}-beside-full-cache", [(COMPLETIONS, shot)], plain[1:], fills_cache=True)
    for name in ("penalty", "logprobs"):
        every = [each | ROW_FIELDS[name] for each in plain[1:]]
        yield Volley(f"{name}-in-all-rows-beside-full-cache", [(COMPLETIONS, shots[name])], every, fills_cache=True)
    fields = [*ROW_FIELDS.values(), {"seed": 5}]
    mixed = [each | fields[number % len(fields)] for number, each in enumerate(plain[len(shots) :])]
    every_shot = [(COMPLETIONS, shot) for shot in shots.values()]
    yield Volley("everything-beside-full-cache", every_shot, mixed, fills_cache=True)
    yield Volley("plain", [], [row(number, 8) for number in range(count)])
