"""What the log reports about the requests in flight when the engine dies."""

from dataclasses import replace
from pathlib import Path

from servekit.serve.engine.last_requests import in_flight_lines, repeated_lines
from servekit.serve.guard import InFlight


def flights(count: int) -> list[InFlight]:
    """Return `count` requests, the latest first, each a second older than the one before."""
    return [InFlight(100.0 - age, f"r{age}", "/v1/completions", 22_000_000, "prompt(4)") for age in range(count)]


def test_one_request() -> None:
    """Id, route, size, age and fields of a request fit on one line."""
    assert in_flight_lines(flights(1), 121.5) == [
        "in flight: 1 request, the latest first:",
        "  r0 /v1/completions, 22,000,000 bytes, for 21.5 s: prompt(4)",
    ]


def test_nothing_in_flight_is_reported_too() -> None:
    """If no request was in flight, the log reports that none was the cause."""
    assert in_flight_lines([], 1) == ["no client request was in flight"]


def test_of_many_the_latest_and_the_oldest() -> None:
    """At most twelve requests are named; the rest is counted."""
    lines = in_flight_lines(flights(100), 100)
    assert [line.split()[0] for line in lines[1:]] == [*(f"r{n}" for n in range(8)), "...", "r96", "r97", "r98", "r99"]
    assert lines[9] == "  ... 88 more"
    assert len(in_flight_lines(flights(12), 100)) == 13


def test_the_name_of_the_key() -> None:
    """A request of a named key is listed with the name."""
    flight = InFlight(100.0, "r0", "/v1/completions", 10, "prompt(4)", "team-a")
    assert "  r0 /v1/completions, key team-a, 10 bytes" in in_flight_lines([flight], 101.0)[1]


def test_a_shape_that_was_in_flight_at_the_last_death(tmp_path: Path) -> None:
    """The second death names the request whose shape was in flight at the first, and no other; a broken file none."""
    record = tmp_path / "last_death.json"
    poison = InFlight(100.0, "a", "/v1/completions", 31, "prompt(4), stop[9]", "team-a")
    assert repeated_lines([poison, InFlight(1.0, "b", "/v1/messages", 5, "messages[1]")], record) == []
    again = [replace(poison, request_id="c"), InFlight(1.0, "d", "/v1/messages", 5, "messages[2]")]
    [line] = repeated_lines(again, record)
    assert line.startswith("in flight at the last death too: c /v1/completions of key team-a, then as a")
    record.write_text("[")
    assert repeated_lines(again, record) == []
    assert len(repeated_lines(again, record)) == 2
