"""The raw trace of a measurement: compressed JSON lines, written as it goes, from which every figure is computed.

Each line is an event with `kind` and `t`, monotonic seconds. `begin` has what was asked for, `identity` what was
measured, `phase` the beginning of `idle`, `warm-up`, `run` and `after`. `gpu` is one reading of one GPU (the fields of
GpuReadings), `processes` has the foreign processes on a GPU, when they change. `scrape` has the samples of the metrics
page that changed since the scrape before, as text, and the names of those that are gone. `codecarbon` has what that
read between `began_s` and `t`. `ended` has the command's exit code, `scores` its own results.
"""

import bisect
import gzip
import hashlib
import json
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from servekit.errors import ConfigurationError, Finding

FORMAT: Final = 1
SUFFIX: Final = ".trace.jsonl.gz"
_FLUSH_S: Final = 10
"""A killed `measure` loses at most this much of its trace."""

Event = Mapping[str, Any]
Page = dict[str, str]
"""The samples of a metrics page: `name{labels}` to the value, both as they stand there."""


@dataclass(frozen=True)
class Scrape:
    """One reading of the metrics page: when it began and ended, and what changed; None if there was no answer."""

    began_s: float
    t: float
    changed: Mapping[str, str] | None
    gone: tuple[str, ...] = ()


class Trace:
    """A trace as it was read: its events by kind, in order of time."""

    def __init__(self, file: str, sha256: str, events: list[Event], *, complete: bool) -> None:
        self.file, self.sha256, self.complete = file, sha256, complete
        self._events: defaultdict[str, list[Event]] = defaultdict(list)
        ordered = sorted(events, key=lambda each: float(each["t"]))
        for event in ordered:
            self._events[event["kind"]].append(event)
        self.last_s = float(ordered[-1]["t"]) if ordered else 0.0
        self.phases = {event["phase"]: float(event["t"]) for event in self.all("phase")}
        self.scrapes = tuple(
            Scrape(each["began_s"], each["t"], each.get("changed"), tuple(each.get("gone", ())))
            for each in self.all("scrape")
        )

    def all(self, kind: str) -> list[Event]:
        """Return every event of a kind."""
        return self._events[kind]

    def one(self, kind: str) -> Event:
        """Return the only event of a kind, or the last; empty if there is none."""
        return self._events[kind][-1] if self._events[kind] else {}

    def pages(self) -> Iterator[tuple[float, Page]]:
        """Yield the moment and the page of each answered scrape; it is one dict, which the next step changes."""
        page: Page = {}
        for scrape in self.scrapes:
            if scrape.changed is not None:
                page.update(scrape.changed)
                for name in scrape.gone:
                    del page[name]
                yield scrape.t, page

    def pages_at(self, *moments: float) -> list[Page]:
        """Return a copy of the last page at or before each moment; empty before the first."""
        times = [scrape.t for scrape in self.scrapes if scrape.changed is not None]
        numbers = [bisect.bisect_right(times, moment) - 1 for moment in moments]
        kept = {number: dict(page) for number, (_, page) in enumerate(self.pages()) if number in numbers}
        return [kept.get(number, {}) for number in numbers]


class TraceWriter:
    """Appends events to a new file, from any thread."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Create the file; raises FileExistsError where it exists."""
        self._file = gzip.open(path, "xt", encoding="utf-8", compresslevel=5)  # noqa: SIM115 - `close` closes it
        self._lock = threading.Lock()
        self._clock, self._flushed_s = clock, clock()
        self._page: Page = {}

    def write(self, kind: str, t: float | None = None, **values: Any) -> None:
        """Write an event; `t` is now unless given."""
        now_s = self._clock()
        line = json.dumps({"kind": kind, "t": round(now_s if t is None else t, 6), **values}, ensure_ascii=False)
        with self._lock:
            self._file.write(f"{line}\n")
            if now_s - self._flushed_s >= _FLUSH_S:
                self._flushed_s = now_s
                self._file.flush()

    def write_scrape(self, began_s: float, page: Page | None) -> None:
        """Write a scrape as the difference to the one before; `page` is None if there was no answer."""
        began_s = round(began_s, 6)
        if page is None:
            self.write("scrape", began_s=began_s)
            return
        changed = {name: value for name, value in page.items() if self._page.get(name) != value}
        gone = [name for name in self._page if name not in page]
        self._page = page
        self.write("scrape", began_s=began_s, changed=changed, gone=gone)

    def close(self) -> None:
        """Finish the file."""
        with self._lock:
            self._file.close()


def parse_page(text: str) -> Page:
    """Return the samples of a page in Prometheus's text format 0.0.4; vLLM and servekit write no time stamps."""
    lines = (line.rpartition(" ") for line in text.splitlines() if line and line[0] != "#")
    return {name: value for name, _, value in lines}


def read_trace(path: Path) -> Trace:
    """Read a trace; one that `measure` could not finish ends with its last whole line.

    Raises ConfigurationError where it is no trace, OSError where it cannot be read.
    """
    data = path.read_bytes()
    text, complete = _unpack(data)
    lines = text.split(b"\n")
    try:
        events = [json.loads(line) for line in lines[:-1]]
        trace = Trace(path.name, hashlib.sha256(data).hexdigest(), events, complete=complete)
        begin = trace.one("begin")
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, f"is not a trace of servekit measure: {error}") from error
    if begin.get("format") != FORMAT:
        raise _unreadable(path, f"has another format of trace (got {begin.get('format')}, this version reads {FORMAT})")
    return trace


def _unpack(data: bytes) -> tuple[bytes, bool]:
    """Return the text as far as it can be unpacked, and whether the file is complete."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(data)
    except zlib.error:
        return b"", False
    return text, unpacker.eof


def _unreadable(path: Path, message: str) -> ConfigurationError:
    return ConfigurationError([Finding(message, file=str(path), remedy="measure again")])
