"""Which of the engine's last lines are repeated, and which one is taken as the cause of its end."""

from pathlib import Path

import pytest

from servekit.serve.engine.engine_output import EngineOutput, fold

TRACEBACK = [
    "(APIServer pid=7) ERROR 11-24 02:30:0{n} [async_llm.py:712] AsyncLLM output_handler failed.",
    "(APIServer pid=7) ERROR 11-24 02:30:0{n} [async_llm.py:712] Traceback (most recent call last):",
    '(APIServer pid=7) ERROR 11-24 02:30:0{n} [async_llm.py:712]   File "x.py", line 3, in f',
    "(APIServer pid=7) ERROR 11-24 02:30:0{n} [async_llm.py:712] EngineDeadError: request cmpl-{n}6f0a9c1b2d3e4f5",
]


def tracebacks(count: int) -> list[str]:
    """One line per stream, each with another time and another request id."""
    return [line.replace("{n}", str(number)) for number in range(count) for line in TRACEBACK]


def test_identical_tracebacks_appear_once() -> None:
    """Repeats of a block of lines, equal except for times and ids, are collapsed into one copy and a count."""
    lines = ["before", *tracebacks(8), "after"]
    assert fold(lines) == ["before", *tracebacks(1), "... these 4 lines 7 more times", "after"]


def test_one_line_again_and_again() -> None:
    """A single line is collapsed too, and one repetition is written in the singular."""
    assert fold(["a", "b", "b", "c", "c", "c"]) == [
        "a",
        "b",
        "... this line 1 more time",
        "c",
        *["... this line 2 more times"],
    ]


def test_different_lines_stay() -> None:
    """Lines that do not repeat stay; lines that differ in a number other than an id are not equal."""
    lines = ["step 1", "step 2", "", "step 1", "RuntimeError: 7 of 9"]
    assert fold(lines) == lines
    assert fold([]) == []


def test_what_came_before_the_tracebacks_stays() -> None:
    """The reason before a hundred tracebacks is among the last lines."""
    output = EngineOutput()
    for line in ["RuntimeError: the reason", *tracebacks(9)]:
        output.add(line)
    assert output.last()[0] == "RuntimeError: the reason"
    assert len(output.last()) == 3, "the traceback once, and the number of repetitions"


def test_the_cause_since_a_moment() -> None:
    """Lines from before the given moment are ignored."""
    now_s = [1.0]
    output = EngineOutput(clock=lambda: now_s[0])
    output.add("RuntimeError: survived")
    now_s[0] = 2.0
    output.add("ValueError: the reason")
    assert output.cause() == "RuntimeError: survived"
    assert output.cause(since_s=1.5) == "ValueError: the reason"
    assert output.cause(since_s=2.5) == ""


def test_a_consequence_that_began_before() -> None:
    """An exception is no cause because its traceback began, with what shows that, before the time in question."""
    now_s = [0.0]
    output = EngineOutput(clock=lambda: now_s[0])
    for line in ("Traceback (most recent call last):", '  File "worker.py", line 1021, in shutdown'):
        output.add(f"(Worker pid=6) {line}")
    now_s[0] = 2.0
    for line in ('  File "cuda.py", line 478, in _lazy_init', "RuntimeError: Found no NVIDIA driver"):
        output.add(f"(Worker pid=6) {line}")
    assert output.cause(since_s=1.0) == ""
    output.add("(EngineCore pid=5) ValueError: the reason")
    assert output.cause(since_s=1.0) == "ValueError: the reason"


DEATHS = Path(__file__).parent / "deaths"
"""All output of vLLM 0.20.2 for the CPU from readiness to exit, with shortened paths."""


@pytest.mark.parametrize(
    ("death", "cause", "repeated"),
    [
        ("core_killed", "", "Parent process exited, terminating worker queues"),
        (
            "core_raised",
            "IndexError: index out of range in self",
            "RuntimeError: Worker failed with error 'index out of range in self'",
        ),
    ],
)
def test_a_real_death(death: str, cause: str, repeated: str) -> None:
    """The last lines of a death hold its first error, and nothing that only followed from it."""
    lines = (DEATHS / f"{death}.txt").read_text().splitlines()
    assert any("Found no NVIDIA driver" in line for line in lines)
    output = EngineOutput()
    for line in lines:
        output.add(line)
    assert output.cause() == cause
    assert any(repeated in line for line in output.last())
    for consequence in ("NVIDIA", "EngineDeadError", "Exception ignored", "AttributeError"):
        assert not any(consequence in line for line in output.last())
    assert output.last()[-1].endswith("Finished server process [9971]" if not cause else "server process [12359]")
