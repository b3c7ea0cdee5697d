"""Puts the server together, starts and stops it.

                       ┌──────────────── Service (task, registry, rule, event, dead desks on one Core) ────────────┐
    HTTP ──► http/ ──► │ log ──► feeder ──► view        lanes ◄─► bridge ◄═══ agents        engine, trigger host  │
                       └───────────────────────────────────────────────────────────────────────────────────────────┘

Start: open the log, bring the view up to its end, claim the endpoints, bind the bridge, start rules and triggers, open HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import hashlib
import json
import logging
import os
import shutil
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from oncue import curve
from oncue.blobs import open_blobs
from oncue.config import Settings, http_url, make_data_folder
from oncue.dispatcher.auth.tokens import hash_token, new_token
from oncue.dispatcher.bridge.effect_runner import EffectRunner
from oncue.dispatcher.bridge.effects import ChannelPhase
from oncue.dispatcher.bridge.socket import BridgeSocket
from oncue.dispatcher.bridge.task_router import TaskRouter
from oncue.dispatcher.cluster.ownership import PartitionOwnership
from oncue.dispatcher.cluster.registry_sync import RegistrySync
from oncue.dispatcher.cluster.view_bootstrap import copy_view
from oncue.dispatcher.housekeeper import Housekeeper
from oncue.dispatcher.metrics import Metrics
from oncue.dispatcher.services.admin_token import accept_given_token
from oncue.dispatcher.services.cancellation import CancelDesk
from oncue.dispatcher.services.dead_letters import DeadDesk
from oncue.dispatcher.services.deployments import RuleDesk
from oncue.dispatcher.services.events import EventDesk
from oncue.dispatcher.services.registry import RegistryDesk
from oncue.dispatcher.services.revoked import end_all
from oncue.dispatcher.services.view_snapshot import ViewDesk
from oncue.dispatcher.topics import check_task_topics
from oncue.dispatcher.trigger_state import PARTITIONS
from oncue.dispatcher.view_consumer import ViewConsumer
from oncue.errors import Conflict, Undecodable
from oncue.ids import now_us
from oncue.log import Log, RecordBatch, Topic, open_log
from oncue.log.folder_lock import FolderLock
from oncue.protocol import api as r
from oncue.protocol.codec import decode
from oncue.protocol.records import VERSION, Claim, Control, TokenRecord
from oncue.protocol.topics import (
    CONTROL,
    DEAD,
    EVENTS,
    FILES,
    REGISTRY,
    REPORTS,
    RESULTS,
    SHARED_CONTROL_PARTITIONS,
    TASKS_PREFIX,
    UNVIEWED,
)
from oncue.rules.stateful.topics import ensure_matches
from oncue.view import View

log = logging.getLogger("oncue.server")
FIRST_S = 2.0  # for a webhook to begin, that another server deployed a moment ago
BURIAL = "dead"  # whoever acts for this tells of records that cannot be read
DAY_MS = 86_400_000
REBUILD_S = 24 * 3600.0  # a view that is built anew from a large log may take its time


class Server(CancelDesk, RegistryDesk, RuleDesk, EventDesk, DeadDesk, ViewDesk):
    def __init__(self, settings: Settings) -> None:
        self.folder = settings.data_path
        make_data_folder(self.folder)
        super().__init__(settings, open_blobs(settings.blobs_folder or str(self.folder / "blobs")), Metrics())
        self._jobs: set[asyncio.Task[Any]] = set()
        self._live = False  # whether what the log brings concerns lanes, rules, triggers

    # ------------------------------------------------------------ start and stop

    async def start(self) -> None:
        self._lock = FolderLock(self.folder)  # a log that several servers share does not keep them apart
        self.log = await self._open_log()
        try:
            await self._start_on_log()
        except BaseException:
            await self.log.close()
            raise

    async def _start_on_log(self) -> None:
        self._forget_other_log()
        path = self.folder / "view.db"
        if self.log.shared and not path.exists():
            await copy_view(self.log, path, self.server_id)
        self.view = View.open(path)
        self.feeder = ViewConsumer(
            self.log, self.view, self.board, self.server_id, self.on_registry, self._on_batch, self._buries
        )
        names = [t for t in await self.log.topics() if t not in UNVIEWED]
        await self.view.skip_to(await self.log.begin_offsets(names))  # what retention took is not waited for
        await self.feeder.catch_up(names, await self.log.end_offsets(names))
        self.feeder.follow(self.topics_of(self.settings), "all")
        for topic in names:
            if topic.startswith(TASKS_PREFIX):
                self.feeder.follow_tasks(topic)
        self._open_bridge()
        self.incoming = TaskRouter(self.log, self.view, self.bridge, self.started_us, self._run, self._count_known)
        self.owners = PartitionOwnership(self, self._claim(), self.on_owners)
        self._catch_up = RegistrySync(self._latest_registry)
        self._unwatch = self.log.watch(TASKS_PREFIX, self.incoming.on_appended, early=self.log.fifo)
        self._run(self.feeder.run(), vital=True)
        await self.view.wait_for(await self.log.end_offsets(names), REBUILD_S)
        await self.reload()
        if self.settings.admin_token_file:
            await accept_given_token(self, self.settings.admin_token_file)
        await self.owners.start()
        self._live = True
        await self.start_rules(self.folder / "triggers")
        self.housekeeper = Housekeeper(self, self.folder, self.triggers_host.infos)
        self.housekeeper.start()
        self.ready = True

    async def _open_log(self) -> Log:
        found = await open_log(self.settings.log_url, self.settings)
        try:
            check_task_topics(await found.topics(), self.task_topics)
            await found.ensure({**self.topics_of(self.settings), **dict.fromkeys(self.task_topics.names(), Topic())})
            await ensure_matches(found, self.settings)
        except BaseException:
            await found.close()
            raise
        return found

    def _forget_other_log(self) -> None:
        """What was derived from another log (`oncue up --log` was changed) would be taken for this one's by its offsets."""
        note = self.folder / "log.id"
        before = note.read_text() if note.exists() else "sqlite"
        if before != self.log.identity and (note.exists() or (self.folder / "view.db").exists()):
            log.warning(
                "the log is another one (%s, before %s): the view, and what rules remember, are built anew",
                self.log.identity,
                before,
            )
            for name in ("view.db", "windows.db"):
                for path in self.folder.glob(name + "*"):
                    path.unlink()
            (self.folder / "marks.json").unlink(missing_ok=True)
        note.write_text(self.log.identity)

    @staticmethod
    def topics_of(s: Settings) -> dict[str, Topic]:
        """Those that every server needs."""
        results = Topic(retention_ms=int(s.results_retention_days * DAY_MS), retention_bytes=s.results_retention_bytes)
        shared = {FILES: Topic(partitions=PARTITIONS, compact=True)} if s.shared_log else {}
        return shared | {
            EVENTS: Topic(partitions=s.events_partitions, retention_ms=int(s.events_retention_days * DAY_MS)),
            RESULTS: results,
            CONTROL: msgspec.structs.replace(results, partitions=SHARED_CONTROL_PARTITIONS if s.shared_log else 1),
            REPORTS: Topic(retention_ms=int(s.reports_retention_days * DAY_MS)),
            REGISTRY: Topic(compact=True),
            DEAD: Topic(retention_ms=int(s.events_retention_days * DAY_MS)),
        }

    def _open_bridge(self) -> None:
        keys = curve.load_or_make_keys(self.folder / "bridge.key")
        self.server_key = keys.public.decode()
        self.carrier = EffectRunner(self)
        remembered = self.folder / "bridge.port"
        port = self.settings.bridge_port
        if not port and remembered.exists():  # agents know the old one
            port = int(remembered.read_text() or 0)
        host = self.settings.bridge_host or self.settings.host
        try:
            self.bridge = BridgeSocket(keys, host, port, self.carrier)
        except Conflict:
            if self.settings.bridge_port:
                raise
            self.bridge = BridgeSocket(keys, host, 0, self.carrier)
        remembered.write_text(str(self.bridge.port))

    @property
    def port_file(self) -> Path:
        return self.folder / "http.port"

    def last_port(self) -> int:
        """0: none yet."""
        return int(self.port_file.read_text()) if self.port_file.exists() else 0

    def _claim(self) -> Claim:
        """What others need to know of this server."""
        return Claim(
            VERSION,
            self.server_id,
            bridge=curve.address(self.settings.advertised_host, self.bridge.port),
            server_key=self.server_key,
            url=self.url(),
            blobs=self.blobs.identity(),
        )

    def url(self) -> str:
        """Of the API, for other servers. It opens last: on the port of the settings, or on that of the last time; "": not
        known yet."""
        if self.settings.advertise_url:
            return self.settings.advertise_url.rstrip("/")
        port = self.settings.port or self.last_port()
        return http_url(self.settings.advertised_host, port) if port else ""

    def _run(self, coroutine: Any, *, vital: bool = False) -> None:
        task = asyncio.create_task(coroutine)
        self._jobs.add(task)
        task.add_done_callback(partial(self._job_done, vital))

    def _job_done(self, vital: bool, task: asyncio.Task[Any]) -> None:
        self._jobs.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        log.critical("a part of the server failed", exc_info=task.exception())
        if vital:  # a server without it would answer wrongly: stop, and start anew from the log
            os.kill(os.getpid(), signal.SIGTERM)

    async def stop(self) -> None:
        """In the order in which things flow; what is accepted is durable already."""
        self.ready = False
        self.board.close()
        await self.housekeeper.close()
        await self.across.close()
        await self._catch_up.close()
        await self.stop_rules()
        self._unwatch()
        await self.owners.close()
        await self.carrier.close()
        self.bridge.close()
        for task in list(self._jobs):
            task.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        await self.feeder.close()
        await self.view.close()
        await self.log.close()
        self._lock.release()

    # ------------------------------------------------------------ what the log brings

    def _buries(self) -> bool:
        """Each server's view finds the records that cannot be read: one of them tells."""
        return not self.log.shared or (self._live and self.owners.owns(BURIAL))

    def _count_known(self, rule: str, count: int) -> None:
        self.engine.made_before(rule, count)

    def _on_batch(self, batch: RecordBatch) -> None:
        """The view has it. What concerns the lanes here, and was not told them by this process itself."""
        if batch.topic.startswith(TASKS_PREFIX):
            self.incoming.on_read(batch)
        elif batch.topic == CONTROL and self.log.shared:
            for offset, record in zip(batch.offsets, batch.records, strict=True):
                with contextlib.suppress(Undecodable):  # the view has buried it
                    entry: Control = decode(Control, record.value)  # type: ignore[arg-type]
                    if isinstance(entry, Claim):
                        self.owners.on_claim(batch.partition, offset, entry)
                    else:
                        self.cancel_here(entry)

    # ------------------------------------------------------------ the server itself

    async def on_registry(self) -> None:
        await self.reload()
        if self._live:
            for endpoint in self.owners.sync_endpoints():  # through another server, perhaps
                self._run(end_all(self, endpoint))
            await self.reload_rules()

    async def receive(self, trigger: str, headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        self.accepting()
        if not self.triggers_host.receives(trigger) and await self.catch_up():
            await self.triggers_host.initial_scan([trigger], FIRST_S)
        return await self.triggers_host.receive(trigger, headers, body)

    async def catch_up(self) -> bool:
        return self._live and self.log.shared and await self._catch_up()

    async def _latest_registry(self) -> None:
        await self._registry_caught_up()
        await self.reload()

    async def health(self) -> r.Health:
        infos = self.triggers_host.infos()
        trouble = self.log.trouble()
        idle = {info.name: info.detail or info.state for info in infos if info.state in ("failed", "waiting")}
        checks = {
            "log": self.disk_full or trouble or "ok",
            "view": "ok",
            "bridge": "ok",
            "blobs": self._blobs_trouble() or "ok",
            "triggers": f"not ok: {len(idle)} of {len(infos)} do not run" if idle else "ok",
            "rules with memory": self.memory_trouble() or "ok",
        }
        status = (
            "ok" if self.ready and not self.disk_full and not trouble else ("degraded" if self.ready else "starting")
        )
        return r.Health(status=status, version=self.version, checks=checks, triggers=idle)

    def _blobs_trouble(self) -> str:
        others = self.owners.other_blob_stores() if self._live else []
        return f"not the folder of {', '.join(others)}: set blobs_folder to one that all servers see" if others else ""

    async def collect(self) -> None:
        """Gauges for /metrics."""
        channels = self.bridge.channels
        self.metrics.queue_depths(
            {self.endpoint_name(e): x.pending.queued_tasks + len(x.in_flight) for e, x in channels.items()}
        )
        self.metrics.connected(sum(x.phase is ChannelPhase.READY for x in channels.values()))
        usage = shutil.disk_usage(self.folder)
        self.metrics.disk(usage.used / (usage.used + usage.free))
        await self.count_rules()
        reached = self.view.positions()
        ends = await self.log.end_offsets({topic for topic, _ in reached})
        self.metrics.view_lag(sum(max(0, end - reached.get(place, 0)) for place, end in ends.items()))
        self.metrics.dead(await self.view.open_dead())

    async def local_token(self, path: Path) -> str:
        """The token of the person who started the server: the one in `path` as long as it is good, else a new one."""
        try:
            token = str(json.loads(path.read_text())["token"])
            known = self.token(hash_token(token))
            if known is not None and not known.revoked:
                return token
        except (OSError, ValueError, KeyError):
            pass
        token, hashed = new_token()
        person = getpass.getuser()
        token_id = "tok_local"
        if self.log.shared:  # each server's own
            token_id += "_" + hashlib.sha256(self.server_key.encode()).hexdigest()[:12]
        record = TokenRecord(VERSION, token_id, hashed, person, ("admin",), 0, False, now_us(), "local")
        await self.record([(f"token:{token_id}", record)])
        return token
