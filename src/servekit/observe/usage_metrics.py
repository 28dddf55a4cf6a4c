"""What each key has used since the engine's start, and how its books are, as metric families."""

import math
from collections.abc import Iterator, Mapping

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from servekit.observe.families import Values, family
from servekit.serve.books.bookkeeper import Bookkeeper

_OUTCOMES = ("ok", "cancelled", "refused", "failed")
_COUNTERS = {
    "prompt_tokens": "Tokens of prompts that the engine has read, by key.",
    "output_tokens": "Tokens that the engine has generated, by key.",
    "images": "Images in requests, by key.",
}


def usage_families(books: Bookkeeper, prices: Mapping[str, float]) -> Iterator[Metric]:
    """Yield what each key has used, from the guard's own counters, while the engine's server is down too.

    servekit_key_requests_total{key="team-a",outcome="ok"} 12.0
    servekit_key_prompt_tokens_total{key="team-a"} 300.0
    servekit_key_output_tokens_total{key="team-a"} 1200.0
    servekit_key_images_total{key="team-a"} 3.0
    servekit_key_in_flight_seconds_total{key="team-a"} 41.5
    servekit_key_in_flight{key="team-a"} 2.0
    servekit_key_expiry_timestamp_seconds{key="team-a"} 1.8e9           only for keys that expire
    servekit_books_broken 0.0
    servekit_books_lost_total 0.0
    servekit_gpu_hour_price 0.71                                         only where one of the three is set
    servekit_kwh_price 0.3
    servekit_kwh_co2_grams 350.0
    servekit_log_lines_lost_total{log="requests"} 0.0
    """
    used = books.used()
    yield family(
        CounterMetricFamily,
        "servekit_key_requests",
        "Requests for text by key and outcome; (servekit) is servekit itself.",
        ("key", "outcome"),
        {(name, outcome): getattr(usage, outcome) for name, usage in used.items() for outcome in _OUTCOMES},
    )
    for field, text in _COUNTERS.items():
        values: Values = {(name,): float(getattr(usage, field)) for name, usage in used.items()}
        yield family(CounterMetricFamily, f"servekit_key_{field}", text, ("key",), values)
    yield family(
        CounterMetricFamily,
        "servekit_key_in_flight_seconds",
        "Seconds that requests were in flight, by key.",
        ("key",),
        {(name,): usage.in_flight_us / 1e6 for name, usage in used.items()},
    )
    yield family(
        GaugeMetricFamily,
        "servekit_key_in_flight",
        "Requests in flight, by key.",
        ("key",),
        {(name,): usage.in_flight for name, usage in used.items()},
    )
    # The last of a name's keys to expire: the others are being rotated out.
    last: dict[str, float] = {}
    for key in list(books.keys.keys.values()):
        expires_s = math.inf if key.expires_s is None else key.expires_s
        last[key.name] = max(expires_s, last.get(key.name, -math.inf))
    yield family(
        GaugeMetricFamily,
        "servekit_key_expiry_timestamp_seconds",
        "When the last key of a name expires.",
        ("key",),
        {(name,): time_s for name, time_s in last.items() if time_s < math.inf},
    )
    yield GaugeMetricFamily("servekit_books_broken", "1 while usage is not written.", float(bool(books.problem)))
    yield CounterMetricFamily("servekit_books_lost", "Damaged books that were put aside.", books.lost_books)
    if any(prices.values()):
        for name, price in prices.items():
            yield GaugeMetricFamily(f"servekit_{name}", "As the operator has set it; 0: not set.", price)
    lost: Values = {(log,): float(count) for log, count in books.lines_lost.items()}
    yield family(CounterMetricFamily, "servekit_log_lines_lost", "Lines that a log has lost.", ("log",), lost)
