"""RegistryReader: deployments, switches and endpoints in memory.

For processes without a view.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from oncue.errors import Undecodable
from oncue.log.base import Log, Record, RecordBatch
from oncue.protocol.codec import decode
from oncue.protocol.records import Deployment, EndpointRecord, RuleSwitch, Stored
from oncue.protocol.topics import REGISTRY, TaskTopics
from oncue.rules.active_rules import ActiveRule, ActiveRules, RuleCompiler

RegistryRecord = EndpointRecord | Deployment | RuleSwitch
_log = logging.getLogger(__name__)


class RegistryReader:
    """Reads `oncue.registry` until cancelled.

    Calls `changed` after changes of rules or endpoints.
    """

    def __init__(self, log: Log, changed: Callable[[], None], task_topics: TaskTopics) -> None:
        self._log, self._changed, self._task_topics = log, changed, task_topics
        self._compiler = RuleCompiler()
        self.active_rules = ActiveRules()
        self._newest: dict[bytes, RegistryRecord] = {}
        self._endpoints: dict[tuple[str, str], str] = {}  # (owner, name or id) -> id
        self._revoked: set[tuple[str, str]] = set()  # likewise
        self._reached = 0
        self._further = asyncio.Event()

    async def run(self) -> None:
        """Raises LogError."""
        reader = self._log.read([REGISTRY], start="earliest")
        try:
            while True:
                batches = await reader.next()
                if sum(self._apply(batch) for batch in batches):  # each of them
                    await asyncio.to_thread(self._compile)  # reading YAML takes about 1 ms a rule
                    self._changed()
                self._reached = max(self._reached, *(batch.next_offset for batch in batches))
                self._further.set()
        finally:
            await reader.close()

    async def caught_up(self) -> None:
        """Wait until all current records are applied.

        Acknowledged deploys are in force then.
        """
        ends = await self._log.end_offsets([REGISTRY])
        end = ends.get((REGISTRY, 0), 0)
        while self._reached < end:
            self._further.clear()
            await self._further.wait()

    def endpoint_id(self, name: str, owner: str) -> str | None:
        return self._endpoints.get((owner, name))

    def tasks_topic(self, endpoint: str) -> str:
        return self._task_topics.of(endpoint)

    def is_revoked(self, name: str, owner: str) -> bool:
        return (owner, name) in self._revoked

    def pause(self, entry: ActiveRule, why: str) -> None:
        """Pause a rule, now and in all rules compiled later."""
        self._compiler.pause(entry, why)

    async def deployment(self, label: str, version: int) -> Deployment | None:
        """Return an older deployment."""
        found = self._newest.get(f"deployment:{label}@{version}".encode())
        return found if isinstance(found, Deployment) and not found.removed else None

    # ------------------------------------------------------------ reading

    def _apply(self, batch: RecordBatch) -> bool:
        changed = False
        for record in batch.records:
            found = _wanted(record)
            if found is not None:
                self._newest[record.key] = found
                changed = True
            elif not record.value:
                changed |= self._newest.pop(record.key, None) is not None
        return changed

    def _compile(self) -> None:
        every = list(self._newest.values())
        deployments = [d for d in every if isinstance(d, Deployment)]  # of all versions
        switches = [s for s in every if isinstance(s, RuleSwitch)]
        endpoints = sorted((e for e in every if isinstance(e, EndpointRecord)), key=lambda e: e.at_us)
        good = [e for e in endpoints if not e.revoked]
        self._endpoints = {(e.owner, name): e.id for e in good for name in (e.id, e.name)}
        self._revoked = {(e.owner, name) for e in endpoints if e.revoked for name in (e.id, e.name)}
        self.active_rules = self._compiler.compile(deployments, switches)
        for label, why in self.active_rules.broken.items():
            _log.error("the deployed rule file %s cannot be read by this version: %s", label, why)


class _Tag(Stored, frozen=True):
    tag: str


_KINDS: dict[str, type[RegistryRecord]] = {"endpoint": EndpointRecord, "deployment": Deployment, "switch": RuleSwitch}


def _wanted(record: Record) -> RegistryRecord | None:
    """Decode a record; None: rules do not use it, or it cannot be read.

    Other records are not decoded, because functions are large.
    """
    try:
        kind = _KINDS.get(decode(_Tag, record.value).tag) if record.value else None
        return decode(kind, record.value) if kind is not None else None
    except Undecodable as e:
        _log.warning("a record of %s cannot be read: %s", REGISTRY, e.message)
        return None
