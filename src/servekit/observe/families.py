"""Metric families from their values, as every collector of servekit builds them."""

from collections.abc import Mapping

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

Kind = type[CounterMetricFamily] | type[GaugeMetricFamily]
Values = Mapping[tuple[str, ...], float | None]
"""The value for each tuple of label values; None if unknown."""


def family(kind: Kind, name: str, text: str, labels: tuple[str, ...], values: Values) -> Metric:
    """Return the family `name` with a sample for each known value; `text` is its help."""
    built = kind(name, text, labels=labels)
    for label_values, value in values.items():
        if value is not None:
            built.add_metric(label_values, value)
    return built
