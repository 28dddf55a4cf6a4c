"""The progress of a measurement on standard error: one line that stays, or on a log one line every half minute."""

import sys
import time
from contextlib import suppress
from typing import Final, TextIO

from servekit.measure.figures.counters import total
from servekit.measure.figures.work import GAUGES, TOKENS
from servekit.measure.recording.sampling import GpuReader, Scraper

_WH: Final = 3600
_TERMINAL_S, _LOG_S = 1.0, 30.0


class ProgressLine:
    """Shows watts, tokens/s and tokens/Wh of the run so far."""

    def __init__(
        self, reader: GpuReader, scraper: Scraper, *, quiet: bool = False, stream: TextIO | None = None
    ) -> None:
        self._reader, self._scraper, self._quiet = reader, scraper, quiet
        self._stream = stream or sys.stderr
        self._shown_s = -_LOG_S
        self._began_s = time.monotonic()
        self._first: tuple[float | None, float | None] = (None, None)

    def idle(self) -> None:
        """Show that the idle power is read."""
        self._show(f"idle {time.monotonic() - self._began_s:4.0f} s, the command has not begun")

    def begin(self) -> None:
        """Count from now on."""
        self._began_s, self._first = time.monotonic(), self._counts()

    def run(self) -> None:
        """Show the run so far."""
        self._show(self.text(time.monotonic() - self._began_s))

    def end(self) -> None:
        """Leave the line."""
        if not self._quiet and self._stream.isatty():
            self._stream.write("\n")

    def text(self, seconds: float) -> str:
        """Return the figures of the run so far; what is unknown is left out."""
        (first_j, first_tokens), (joules, tokens) = self._first, self._counts()
        used_j = joules - first_j if joules is not None and first_j is not None else None
        made = tokens - first_tokens if tokens is not None and first_tokens is not None else None
        requests = [total(self._scraper.page, GAUGES[name]) or 0 for name in ("running", "waiting")]
        parts = [
            f"{seconds:.0f} s",
            f"{used_j / seconds:.1f} W" if used_j is not None and seconds else "",
            f"{made / seconds:,.0f} tokens/s" if made is not None and seconds else "",
            f"{made / (used_j / _WH):,.0f} tokens/Wh" if made is not None and used_j else "",
            "{:.0f} running, {:.0f} waiting".format(*requests),
        ]
        return "  ".join(filter(None, parts))

    def _counts(self) -> tuple[float | None, float | None]:
        return self._reader.energy_j, total(self._scraper.page, TOKENS)

    def _show(self, text: str) -> None:
        terminal = self._stream.isatty()
        now_s = time.monotonic()
        if self._quiet or now_s - self._shown_s < (_TERMINAL_S if terminal else _LOG_S):
            return
        self._shown_s = now_s
        with suppress(OSError):  # nobody reads it any more: the measurement goes on
            self._stream.write(f"\r\x1b[Kmeasure: {text}" if terminal else f"measure: {text}\n")
            self._stream.flush()
