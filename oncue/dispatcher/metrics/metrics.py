"""Metrics of GET /metrics, in Prometheus' text format.

The server counts whole batches; nothing here runs for each task. The text is made in a thread.
Names start with `oncue_`. Times are in seconds, sizes in bytes. Labels are bounded: rules or
endpoints beyond the first hundreds are counted as "(others)", so that 10,000 rules do not make
10,000 series.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import accumulate
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from oncue import __version__
from oncue.dispatcher.metrics.endpoint_gauges import OTHERS, EndpointGauges
from oncue.dispatcher.metrics.totals import ReplacedGauges, Totals

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
RULES_SHOWN = 500
_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class RuleNumbers(NamedTuple):
    """Use of one rule's tasks. `over`: it has used what it may."""

    node_hours: float
    cpu_hours: float
    limit: float = 0.0  # 0: none
    over: bool = False


class Metrics:
    """Metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        Gauge("oncue_info", "Version of the server.", ["version"], registry=registry).labels(__version__).set(1)
        self._accepted = Counter("oncue_tasks_accepted", "Tasks accepted: durable in the log.", registry=registry)
        self._outcomes = Counter("oncue_outcomes", "Tasks closed, by how.", ["state"], registry=registry)
        self._events = Counter("oncue_events", "Events stored.", registry=registry)
        self._dead = Gauge(
            "oncue_dead_letters_open", "What could not go on, and nobody has dealt with.", registry=registry
        )
        self._fired = Counter("oncue_rule_fired", "Firings of each rule.", ["rule"], registry=registry)
        self._suppressed = Counter(
            "oncue_rule_suppressed", "Events that a rule's dedupe did not let pass.", ["rule"], registry=registry
        )
        self._unevaluated = Counter(
            "oncue_rule_unevaluated", "Events whose `when` could not be evaluated.", ["rule"], registry=registry
        )
        self._unevaluated_before: dict[str, int] = {}
        self._rule_names: set[str] = set()
        self._windows, self._uses, self.endpoints = ReplacedGauges(), ReplacedGauges(), EndpointGauges()
        for collector in (self._windows, self._uses, self.endpoints):
            registry.register(collector)
        self._agents_refused = Counter(
            "oncue_agent_refused", "What agents sent and may not, by reason.", ["reason"], registry=registry
        )
        self._connected = Gauge("oncue_endpoints_connected", "Endpoints whose agent is connected.", registry=registry)
        self._view_lag = Gauge("oncue_view_lag_records", "Records of the log not yet in the view.", registry=registry)
        self._disk = Gauge("oncue_disk_used_ratio", "Of the disk that holds the log, 0 to 1.", registry=registry)
        self._clock = Gauge(
            "oncue_clock_ahead_seconds",
            "By how much the system clock is ahead of the server's time, which does not step.",
            registry=registry,
        )
        self._steps = Gauge(
            "oncue_clock_steps", "Steps of the system clock since the server's start.", registry=registry
        )
        self._streams = Gauge("oncue_http_streams", "Streams and waiting requests that are open.", registry=registry)
        self._ended = Counter(
            "oncue_http_connections_ended", "Connections that the server ended, by why.", ["reason"], registry=registry
        )
        self._http = HttpCounts()
        registry.register(self._http)
        ProcessCollector(registry=registry)

    # ------------------------------------------------------------ counted by the services

    def accepted(self, count: int) -> None:
        """Count accepted tasks."""
        self._accepted.inc(count)

    def outcomes(self, by_state: Mapping[str, int]) -> None:
        """Count closed tasks. `by_state`: "succeeded" ... -> number of tasks."""
        for state, count in by_state.items():
            self._outcomes.labels(state).inc(count)

    def events(self, count: int) -> None:
        """Count stored events."""
        self._events.inc(count)

    def dead(self, letters: int) -> None:
        """Set the number of open dead letters."""
        self._dead.set(letters)

    def rules_fired(self, by_rule: Mapping[str, int]) -> None:
        """Count firings of rules."""
        self._add(self._fired, by_rule)

    def rules_suppressed(self, by_rule: Mapping[str, int]) -> None:
        """Count events that `dedupe` suppressed."""
        self._add(self._suppressed, by_rule)

    def rules_unevaluated(self, totals: Mapping[str, int]) -> None:
        """Count events whose conditions could not be evaluated. `totals`: since the start."""
        before = self._unevaluated_before
        self._add(self._unevaluated, {rule: total - before.get(rule, 0) for rule, total in totals.items()})
        before.update(totals)

    def _add(self, counter: Counter, by_rule: Mapping[str, int]) -> None:
        for rule, count in by_rule.items():
            counter.labels(self._rule_label(rule)).inc(count)

    def _rule_label(self, rule: str) -> str:
        if rule not in self._rule_names:
            if len(self._rule_names) >= RULES_SHOWN:
                return OTHERS
            self._rule_names.add(rule)
        return rule

    def windows(self, by_rule: Mapping[str, tuple[int, int]]) -> None:
        """Set (open windows, events in them) of rules.

        Rules that are not given disappear.
        """
        windows = Totals("oncue_rule_windows_open", "Open windows of each rule.", "rule")
        waiting = Totals("oncue_rule_events_waiting", "Events in them.", "rule")
        for rule, counts in by_rule.items():
            label = (self._rule_label(rule),)
            windows.add(label, counts[0])
            waiting.add(label, counts[1])
        self._windows.set((windows, waiting))

    def rules_used(self, by_rule: Mapping[str, RuleNumbers]) -> None:
        """Set what the tasks of rules have used. Rules that are not given disappear."""
        hours = Totals("oncue_rule_node_hours", "Node-hours used within the limit's period, or a week.", "rule")
        cpu = Totals("oncue_rule_cpu_hours", "CPU-hours of it, as far as measured.", "rule")
        limit = Totals("oncue_rule_node_hours_limit", "Node-hours that may be used.", "rule")
        paused = Totals("oncue_rule_over_limit", "1: no more tasks start, the node-hours are used.", "rule")
        for rule, numbers in by_rule.items():
            label = (self._rule_label(rule),)
            hours.add(label, numbers.node_hours)
            cpu.add(label, numbers.cpu_hours)
            if numbers.limit:
                limit.add(label, numbers.limit)
                paused.add(label, numbers.over)
        self._uses.set((hours, cpu, limit, paused))

    def agent_refused(self, reason: str, count: int) -> None:
        """Count what an agent may not send. `reason`: one of a few words."""
        self._agents_refused.labels(reason).inc(count)

    def connected(self, endpoints: int) -> None:
        """Set the number of connected endpoints."""
        self._connected.set(endpoints)

    def view_lag(self, records: int) -> None:
        """Set the number of records that the view has not applied."""
        self._view_lag.set(records)

    def http_connection_ended(self, reason: str) -> None:
        """Count a connection that the server ended."""
        self._ended.labels(reason).inc()

    def disk(self, used_ratio: float) -> None:
        """Set the used part of the disk, 0 to 1."""
        self._disk.set(used_ratio)

    def clock(self, steps: int, ahead_s: float) -> None:
        """Set the system clock's number of steps, and its lead."""
        self._steps.set(steps)
        self._clock.set(ahead_s)

    # ------------------------------------------------------------ counted by the HTTP API

    def streams(self, count: int) -> None:
        """Set the number of open streams and waiting requests."""
        self._streams.set(count)

    def http_route(self, route: str, timed: bool = True) -> Callable[[int, float], None]:
        """Return a function (status, seconds) that counts one request of a route."""
        return self._http.route(route, timed)

    # ------------------------------------------------------------ read

    def text(self) -> bytes:
        """Return all metrics, in the format of CONTENT_TYPE."""
        return generate_latest(self.registry)

    def text_for(self, owner: str, rules: Collection[str]) -> bytes:
        """Return the metrics with the names of these rules and of this owner's endpoints.

        Others are counted together.
        """

        def visible(labels: Mapping[str, str]) -> dict[str, str]:
            out = dict(labels)
            if "rule" in out and out["rule"] not in rules:
                out["rule"] = OTHERS
            if out.get("owner", owner) != owner:
                out["owner"] = out["endpoint"] = OTHERS
                out |= {"reason": OTHERS} if "reason" in out else {}
            return out

        return generate_latest(_Restricted(self.registry, visible))


class _Restricted(CollectorRegistry):
    """Metrics with other labels; series that become equal are added up."""

    def __init__(self, registry: CollectorRegistry, visible: Callable[[Mapping[str, str]], dict[str, str]]) -> None:
        super().__init__()
        self._whole, self._visible = registry, visible

    def collect(self) -> Iterator[Metric]:
        """Yield the series. See prometheus_client."""
        for family in self._whole.collect():
            totals: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
            for s in family.samples:
                labels = self._visible(s.labels)
                key = (s.name, tuple(labels.items()))
                first = s.name.endswith("_created")  # a time: of several, the first
                totals[key] = min(totals.get(key, s.value), s.value) if first else totals.get(key, 0.0) + s.value
            shown = Metric(family.name, family.documentation, family.type, family.unit)
            for (name, pairs), value in totals.items():
                shown.add_sample(name, dict(pairs), value)
            yield shown


class HttpCounts(Collector):
    """Counts requests by route and status, and their durations.

    Plain numbers, made into series when they are read. All requests run on one thread; three locked
    counters for each request would cost more than the rest of the counting.
    """

    def __init__(self) -> None:
        self._by_route: dict[str, dict[int, int]] = {}
        self._buckets = [0] * (len(_FAST) + 1)
        self._seconds = 0.0

    def route(self, route: str, timed: bool) -> Callable[[int, float], None]:
        """Return a function (status, seconds) that counts one request."""
        by_status = self._by_route.setdefault(route, {})
        buckets = self._buckets

        def count(status: int, seconds: float) -> None:
            by_status[status] = by_status.get(status, 0) + 1
            if timed:
                buckets[bisect_left(_FAST, seconds)] += 1
                self._seconds += seconds

        return count

    def collect(self) -> Iterator[Metric]:
        """Yield the series. See prometheus_client."""
        requests = CounterMetricFamily("oncue_http_requests", "Requests answered.", labels=["route", "status"])
        for route, by_status in list(self._by_route.items()):  # copies: the loop goes on counting
            for status, count in list(by_status.items()):
                requests.add_metric([route, str(status)], count)
        yield requests
        bounds = [*(str(float(b)) for b in _FAST), "+Inf"]
        totals = list(zip(bounds, accumulate(map(float, self._buckets)), strict=True))
        yield HistogramMetricFamily(
            "oncue_http_request_seconds", "Time to answer (streams and waits left out).", totals, self._seconds
        )
