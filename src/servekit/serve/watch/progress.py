"""Whether the engine makes progress, judged by counters that only a working engine moves."""

from prometheus_client.parser import text_string_to_metric_families

_MARKS = frozenset({"vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:iteration_tokens_total_count"})
"""Counters of vLLM 0.20.2 (v1/metrics/loggers.py) that every step of the scheduler with work in it moves."""


Marks = tuple[float, ...]
"""The values of the progress counters."""


class Progress:
    """Counts the seconds during which the engine had work, or did not answer, and nothing moved."""

    def __init__(self, now_s: float) -> None:
        self._moved_s = now_s
        self._marks: Marks | None = None

    def record(self, now_s: float, marks: Marks | None, *, pending: bool, quiet_s: float = 0.0) -> float:
        """Record a reading at the monotonic second `now_s`; return the seconds without progress so far.

        `marks` is None where the engine did not answer; `pending` says whether it has requests or a canary to answer.
        `quiet_s` is how long before the reading EngineCore gave its last output.
        """
        if marks is not None:
            if marks != self._marks or not pending:
                self._moved_s = max(self._moved_s, now_s - quiet_s * pending)
            self._marks = marks
        return now_s - self._moved_s

    def left_s(self, now_s: float, hang_s: float) -> float:
        """Return the seconds until `hang_s` without progress are over; negative afterwards."""
        return self._moved_s + hang_s - now_s


def progress_marks(metrics: str) -> Marks:
    """Return the values of the progress counters in vLLM's metrics page, in a fixed order."""
    lines = [line for line in metrics.splitlines() if line.startswith(("vllm:prompt", "vllm:gener", "vllm:iter"))]
    samples = [
        (sample.name, tuple(sorted(sample.labels.items())), sample.value)
        for family in text_string_to_metric_families("\n".join(lines) + "\n")
        for sample in family.samples
        if sample.name in _MARKS
    ]
    return tuple(value for *_, value in sorted(samples))
