"""Metric families from their values, as every collector of servekit builds them."""

from collections.abc import Mapping

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

Values = Mapping[tuple[str, ...], float | None]
"""The value for each tuple of label values; None where it is not known."""


def gauge(name: str, text: str, labels: tuple[str, ...], values: Values) -> Metric:
    """Return a gauge with a sample for each known value."""
    return _fill(GaugeMetricFamily(name, text, labels=labels), values)


def counter(name: str, text: str, labels: tuple[str, ...], values: Values) -> Metric:
    """Return a counter with a sample for each known value."""
    return _fill(CounterMetricFamily(name, text, labels=labels), values)


def _fill(family: CounterMetricFamily | GaugeMetricFamily, values: Values) -> Metric:
    for label_values, value in values.items():
        if value is not None:
            family.add_metric(label_values, value)
    return family
