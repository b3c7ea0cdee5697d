"""Totals by labels, and gauges that are replaced as a whole.

A scrape in another thread sees the old values or the new ones, never a part of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class Totals:
    """Numbers by the values of `labels`; equal ones are added up."""

    def __init__(self, name: str, words: str, *labels: str) -> None:
        self._name, self._words, self._labels = name, words, labels
        self._values: dict[tuple[str, ...], float] = {}

    def add(self, labels: tuple[str, ...], value: float) -> None:
        self._values[labels] = self._values.get(labels, 0.0) + value

    def gauge(self) -> Metric:
        return self._filled(GaugeMetricFamily(self._name, self._words, labels=self._labels))

    def counter(self) -> Metric:
        """Return a counter. The values must not decrease from scrape to scrape."""
        return self._filled(CounterMetricFamily(self._name, self._words, labels=self._labels))

    def _filled(self, family: GaugeMetricFamily | CounterMetricFamily) -> Metric:
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        return family


class ReplacedGauges(Collector):
    """Gauges that are set together."""

    def __init__(self) -> None:
        self._metrics: Sequence[Metric] = ()

    def set(self, totals: Sequence[Totals]) -> None:
        """Replace all of them."""
        self._metrics = [t.gauge() for t in totals]

    def collect(self) -> Iterator[Metric]:
        """Yield the series. See prometheus_client."""
        yield from self._metrics
