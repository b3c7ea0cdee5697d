"""Metrics of endpoints: queues, workers, blocks, node-hours.

The loads of all endpoints are set at once, and made into series when they are read, in any thread.
The endpoints with the most work are named, the rest is counted as "(others)". Outsiders choose the
scheduler's reasons, so their number is limited as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from oncue.dispatcher.metrics.totals import Totals
from oncue.protocol.reports import Usage

OTHERS = "(others)"
ENDPOINTS_SHOWN = 200
REASONS_SHOWN, REASON_CHARS = 100, 60  # in the server's life
BLOCK_STATES = ("asked", "pending", "running", "draining")
BREAKER = "breaker"
_LIMIT = re.compile(r"\b(?:limits|blocks)\.[a-z_]+")  # an option of endpoint.yaml
_LABELS = ("endpoint", "owner")

Key = tuple[str, str]  # endpoint, owner


class EndpointLoad(msgspec.Struct, frozen=True):
    """Load of one endpoint.

    `usage`: its agent's newest report; None: the agent is away.
    """

    name: str
    owner: str
    open: int = 0  # tasks
    usage: Usage | None = None


class EndpointGauges(Collector):
    """Series of all endpoints."""

    def __init__(self) -> None:
        self._loads: Sequence[EndpointLoad] = ()
        self._reasons: set[str] = set()

    def set(self, loads: Sequence[EndpointLoad]) -> None:
        """Set the loads of all endpoints. Those that are not given disappear."""
        self._loads = loads

    def collect(self) -> Iterator[Metric]:
        """Yield the series. See prometheus_client."""
        loads = self._loads
        depths = Totals("oncue_queue_depth", "Open tasks of each endpoint.", *_LABELS)
        for key, e in _keyed(loads, lambda e: e.open):
            depths.add(key, e.open)
        yield depths.gauge()
        here = [e for e in loads if e.usage is not None]
        yield from _machines([(key, e.usage) for key, e in _keyed(here, _workers) if e.usage is not None])
        with_blocks = [e for e in here if e.usage is not None and e.usage.scheduler]
        keyed = [(key, e.usage) for key, e in _keyed(with_blocks, _block_count) if e.usage is not None]
        yield from _blocks(keyed)
        reasons = Totals("oncue_endpoint_pending_info", "Why no more workers come, in a word.", *_LABELS, "reason")
        for key, usage in keyed:
            if key[0] != OTHERS and (reason := pending_reason(usage)):
                reasons.add((*key, self._label(reason)), 1)
        yield reasons.gauge()

    def _label(self, reason: str) -> str:
        label = reason[:REASON_CHARS]
        if label not in self._reasons:
            if len(self._reasons) >= REASONS_SHOWN:
                return OTHERS
            self._reasons.add(label)
        return label


def _machines(usages: Iterable[tuple[Key, Usage]]) -> Iterator[Metric]:
    workers = Totals("oncue_endpoint_workers", "Workers of endpoints that are connected.", *_LABELS, "state")
    cores = Totals("oncue_endpoint_cores", "Cores of their machines; with blocks, of the nodes.", *_LABELS)
    memory = Totals("oncue_endpoint_memory_bytes", "Memory of these machines.", *_LABELS, "kind")
    for key, u in usages:
        for state, count in (("busy", u.busy), ("idle", u.idle), ("starting", u.starting)):
            workers.add((*key, state), count)
        cores.add(key, u.cores)
        memory.add((*key, "total"), u.machine_bytes)
        memory.add((*key, "used"), u.used_bytes)
    for totals in (workers, cores, memory):
        yield totals.gauge()


def _blocks(usages: Iterable[tuple[Key, Usage]]) -> Iterator[Metric]:
    blocks = Totals("oncue_endpoint_blocks", "Blocks (batch jobs) of endpoints.", *_LABELS, "state")
    nodes = Totals("oncue_endpoint_nodes", "Nodes of blocks that are connected.", *_LABELS)
    hours = Totals("oncue_endpoint_node_hours", "Node-hours used within the limit's period.", *_LABELS)
    limit = Totals("oncue_endpoint_node_hours_limit", "Node-hours that may be used in it.", *_LABELS)
    breaker = Totals("oncue_endpoint_breaker_open", "1: too many blocks failed, none is asked for.", *_LABELS)
    failed = Totals("oncue_endpoint_submits_failed", "Submissions of blocks that failed.", *_LABELS)
    for key, u in usages:
        for state in BLOCK_STATES:
            blocks.add((*key, state), sum(1 for b in u.blocks if b.state == state))
        nodes.add(key, u.nodes)
        hours.add(key, u.node_hours)
        if u.node_hours_limit:
            limit.add(key, u.node_hours_limit)
        breaker.add(key, bool(u.breaker))
        failed.add(key, u.submits_failed)
    for totals in (blocks, nodes, hours, limit, breaker):
        yield totals.gauge()
    yield failed.counter()


def pending_reason(usage: Usage) -> str:
    """Return the scheduler's reason, or the limit, that holds blocks back; or ""."""
    if usage.breaker:
        return BREAKER
    waits = next((b.waits for b in usage.blocks if b.waits), "")
    if waits or not usage.waiting_for:
        return waits
    limit = _LIMIT.search(usage.waiting_for)
    return limit[0] if limit else ""


def _workers(e: EndpointLoad) -> int:
    return e.usage.workers if e.usage is not None else 0


def _block_count(e: EndpointLoad) -> int:
    return len(e.usage.blocks) if e.usage is not None else 0


def _keyed(loads: Sequence[EndpointLoad], size: Callable[[EndpointLoad], int]) -> list[tuple[Key, EndpointLoad]]:
    """Return each with its labels. The largest are named."""
    if len(loads) <= ENDPOINTS_SHOWN:
        return [((e.name, e.owner), e) for e in loads]
    ordered = sorted(loads, key=size, reverse=True)
    named = [((e.name, e.owner), e) for e in ordered[:ENDPOINTS_SHOWN]]
    return named + [((OTHERS, OTHERS), e) for e in ordered[ENDPOINTS_SHOWN:]]
