"""Builds the parts of a server, starts them and stops them.

    HTTP ──► Backend: services ──┐         ┌──► channels ◄─► bridge ◄═══ agents
                                 ▼         │
                   log ──► view consumer ──┼──► view, notifier (outcomes to callers)
                                           └──► engine, stateful rules, triggers

Start: open the log, bring the view to its end, bind the bridge, claim partitions, start rules and
triggers. Until then HTTP answers how far it is (process.py). Stop: the same in reverse.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Coroutine
from functools import partial
from typing import Any

from oncue import curve
from oncue.blobs import open_blobs
from oncue.config import Settings, http_url
from oncue.dispatcher.bridge.effect_runner import EffectRunner
from oncue.dispatcher.bridge.socket import BridgeSocket
from oncue.dispatcher.bridge.task_router import TaskRouter
from oncue.dispatcher.cluster.ownership import PartitionOwnership
from oncue.dispatcher.cluster.peers import PeerClient
from oncue.dispatcher.cluster.registry_sync import RegistrySync
from oncue.dispatcher.context import ServerContext, new_server_id
from oncue.dispatcher.folder import DataFolder
from oncue.dispatcher.housekeeper import Housekeeper
from oncue.dispatcher.http.backend import Backend
from oncue.dispatcher.metrics.metrics import Metrics
from oncue.dispatcher.notifier import Notifier
from oncue.dispatcher.services.admin_token import accept_given_token
from oncue.dispatcher.services.blobs import BlobService
from oncue.dispatcher.services.cancellation import CancellationService
from oncue.dispatcher.services.dead_letters import DeadLetterService
from oncue.dispatcher.services.deployment.deployed_rules import DeployedRules
from oncue.dispatcher.services.deployment.deployments import DeploymentService
from oncue.dispatcher.services.endpoints import EndpointService, close_open_tasks
from oncue.dispatcher.services.events import EventService
from oncue.dispatcher.services.functions import FunctionService
from oncue.dispatcher.services.history.replays import ReplayService
from oncue.dispatcher.services.history.reports import ReportService
from oncue.dispatcher.services.history.simulations import SimulationService
from oncue.dispatcher.services.many_tasks.lists import TaskListService
from oncue.dispatcher.services.many_tasks.retries import RetryService
from oncue.dispatcher.services.rule_budgets import RuleBudgets
from oncue.dispatcher.services.rules import RuleService
from oncue.dispatcher.services.stateful_rules import StatefulRuleService
from oncue.dispatcher.services.status import StatusService
from oncue.dispatcher.services.tasks import TaskService
from oncue.dispatcher.services.tokens import TokenService
from oncue.dispatcher.services.traces import TraceService
from oncue.dispatcher.services.triggers import TriggerService
from oncue.dispatcher.services.view_snapshot import ViewSnapshotService
from oncue.dispatcher.start_progress import StartProgress
from oncue.dispatcher.topics import ensure_topics, server_topics
from oncue.dispatcher.view_consumer import ViewConsumer
from oncue.dispatcher.view_opening import open_view
from oncue.errors import Conflict, Undecodable
from oncue.log import Log, RecordBatch, open_log
from oncue.protocol.codec import decode
from oncue.protocol.records import VERSION, Claim, Control
from oncue.protocol.topics import CONTROL, TASKS_PREFIX, UNVIEWED
from oncue.rules.survey.surveyor import Surveyor

log = logging.getLogger("oncue.server")
DEAD_LETTERS = "dead"  # the owner of this key writes the dead letters of unreadable records
REBUILD_S = 24 * 3600.0  # a view that is rebuilt from a large log may take hours


class Server:
    """One server. `start`, then `stop`."""

    context: ServerContext
    bridge: BridgeSocket
    backend: Backend

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = DataFolder(settings)
        self.blobs = open_blobs(settings.blobs_folder or str(self.folder.blobs))
        self.metrics, self.notifier = Metrics(), Notifier()
        self.server_id = new_server_id()
        self._surveyor = Surveyor()
        self.progress = StartProgress()
        self._jobs: set[asyncio.Task[Any]] = set()
        self._live = False  # True once new records concern channels, rules and triggers

    # ------------------------------------------------------------ start

    async def start(self) -> None:
        """Start all parts but HTTP.

        Raises LogLocked, NetworkMount, Conflict, Invalid, LogError.
        """
        self.folder.lock()
        self._log = await self._open_log()
        try:
            await self._start_on_log()
        except BaseException:
            await self._log.close()
            raise

    async def _open_log(self) -> Log:
        opened = await open_log(self.settings.log_url, self.settings)
        try:
            await ensure_topics(opened, self.settings)
        except BaseException:
            await opened.close()
            raise
        return opened

    async def _start_on_log(self) -> None:
        self.progress.begin("opening the view")
        self.view = await open_view(self._log, self.folder, self.server_id)
        self.context = ServerContext(
            self.settings, self._log, self.view, self.blobs, self.metrics, self.notifier, self.server_id
        )
        self.context.store_id = self.blobs.identity()
        self.context.blobs_trouble = self.folder.trouble_of_blobs(self._log.identity, self.context.store_id)
        names = await self._open_consumer()
        self.context.view_trouble = lambda: self._consumer.trouble
        self._open_bridge()
        self._build_services()
        self._unwatch = self._log.watch(TASKS_PREFIX, self._router.on_appended, early=self._log.fifo)
        consuming = self._run(self._consumer.run(), vital=True)
        await self._unless_ended(consuming, self._start_parts(names))
        self._consumer.patient = self.context.ready = True

    async def _start_parts(self, names: list[str]) -> None:
        """Start what needs the consumer."""
        await self.view.wait_for(await self._log.end_offsets(names), REBUILD_S)
        self.context.newest_us = await self.view.newest_us()
        self._router.begin_after(self.context.newest_us)
        await self.context.reload()
        if self.settings.admin_token_file:
            await accept_given_token(self.context, self.settings.admin_token_file)
        await self.ownership.start()
        self._live = True
        self.progress.begin("reading the rules in force")
        await self._deployed.reload()
        self._run(self._budgets.watch(), vital=True)
        self.progress.begin("starting triggers and rules")
        self._triggers.start()
        self._deployed.start()
        await self._stateful.start(self.folder.windows)
        self._housekeeper.start()

    async def _unless_ended(self, consuming: asyncio.Task[Any], start: Coroutine[Any, Any, None]) -> None:
        """Await `start`, or raise what ends the consumer: the start would wait for ever."""
        starting = asyncio.create_task(start)
        try:
            await asyncio.wait({starting, consuming}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                consuming.result()
            await starting
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)

    async def _open_consumer(self) -> list[str]:
        """Bring the view to the log's end, and follow its topics. Returns their names."""
        self._consumer = ViewConsumer(
            self._log,
            self.view,
            self.notifier,
            self.server_id,
            self._on_registry,
            self._on_batch,
            self._writes_dead_letters,
        )
        names = [t for t in await self._log.topics() if t not in UNVIEWED]
        # Retention has deleted the records before these offsets.
        await self.view.skip_to(await self._log.begin_offsets(names))
        await self._consumer.catch_up(names, await self._log.end_offsets(names), self.progress)
        self._consumer.follow(server_topics(self.settings), "all")
        for topic in names:
            if topic.startswith(TASKS_PREFIX):
                self._consumer.follow_tasks(topic)
        return names

    def _open_bridge(self) -> None:
        keys = self.folder.bridge_keys()
        self.server_key = keys.public.decode()
        self._effects = EffectRunner(self.context)
        # Agents know the last port.
        port = self.settings.bridge_port or self.folder.last_bridge_port()
        host = self.settings.bridge_host or self.settings.host
        try:
            self.bridge = BridgeSocket(keys, host, port, self._effects)
        except Conflict:
            if self.settings.bridge_port:
                raise
            self.bridge = BridgeSocket(keys, host, 0, self._effects)
        self.folder.set_bridge_port(self.bridge.port)

    def _build_services(self) -> None:
        """Build everything that needs log, view and bridge. Nothing runs yet."""
        context, bridge = self.context, self.bridge
        peers = self._peers = PeerClient()
        ownership = self.ownership = PartitionOwnership(
            context, bridge, self._consumer.follow_tasks, self._claim(), lambda: self._triggers.update()
        )
        self._effects.attach(bridge, ownership)
        self._registry_sync = RegistrySync(self._read_registry)
        deployed = self._deployed = DeployedRules(context)
        self._router = TaskRouter(
            self._log, self.view, bridge, context.started_us, self._run, deployed.engine.made_before
        )
        events = EventService(context, deployed.owner_of)
        triggers = self._triggers = TriggerService(
            context, deployed, ownership, peers, events, self.sync_registry, self.folder.triggers
        )
        stateful = self._stateful = StatefulRuleService(context, deployed, ownership, peers)
        deployed.on_reload(stateful.wake)
        deployed.on_reload(triggers.update)
        self._housekeeper = Housekeeper(context, bridge, ownership, self.folder.path, triggers.infos)
        tasks, functions = TaskService(context, bridge, ownership, peers), FunctionService(context)
        self._cancellation = CancellationService(context, tasks, bridge, ownership, peers)
        lists = TaskListService(context, tasks, self._cancellation)
        endpoints = EndpointService(context, bridge, self._effects, ownership, peers, self.server_key)
        budgets = self._budgets = RuleBudgets(context, deployed, bridge)
        self.tokens = TokenService(context, endpoints.revoke_record)
        self.backend = Backend(
            self.server_id,
            tasks,
            self._cancellation,
            lists,
            RetryService(context, tasks, lists, deployed),
            BlobService(context),
            ViewSnapshotService(context),
            functions,
            endpoints,
            DeploymentService(context, deployed, triggers, stateful, functions),
            RuleService(context, deployed, triggers, stateful, budgets),
            triggers,
            events,
            DeadLetterService(context),
            self.tokens,
            StatusService(context, bridge, ownership, deployed, triggers, stateful, self._effects.usage, budgets),
            TraceService(context, events),
            ReportService(context, deployed, stateful, self._surveyor),
            ReplayService(context, deployed, self._surveyor),
            SimulationService(context, deployed, self._surveyor),
            context.wait_for,
            self.sync_registry,
        )

    # ------------------------------------------------------------ addresses

    def _claim(self) -> Claim:
        """Return the record with the addresses of this server."""
        return Claim(
            VERSION,
            self.server_id,
            bridge=curve.address(self.settings.advertised_host, self.bridge.port),
            server_key=self.server_key,
            url=self.url(),
            blobs=self.blobs.identity(),
        )

    def url(self) -> str:
        """Return the API's URL for other servers; "" if it is not known yet.

        Its port is that of the settings, or of the last time.
        """
        if self.settings.advertise_url:
            return self.settings.advertise_url.rstrip("/")
        port = self.settings.port or self.folder.last_http_port()
        return http_url(self.settings.advertised_host, port) if port else ""

    # ------------------------------------------------------------ background jobs

    def _run(self, coroutine: Any, *, vital: bool = False) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine)
        self._jobs.add(task)
        task.add_done_callback(partial(self._job_done, vital))
        return task

    def _job_done(self, vital: bool, task: asyncio.Task[Any]) -> None:
        self._jobs.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        if vital and not self._consumer.patient:
            return  # the start raises it
        log.critical("a part of the server failed", exc_info=task.exception())
        if vital:  # a server without it would answer wrongly: stop, and start again from the log
            os.kill(os.getpid(), signal.SIGTERM)

    # ------------------------------------------------------------ stop

    def refuse_new(self) -> None:
        """Accept nothing new, and end the streams of callers."""
        self.context.ready = False
        self.notifier.close()

    async def stop(self) -> None:
        """Stop all parts, in the order in which records flow."""
        self.refuse_new()
        await self._housekeeper.close()
        await self._peers.close()
        await self._registry_sync.close()
        await self._triggers.close()
        await self._deployed.close()
        await self._stateful.close()
        await self._deployed.engine.close()
        await self._surveyor.close()
        self._unwatch()
        await self.ownership.close()
        await self._effects.close()
        self.bridge.close()
        for task in list(self._jobs):
            task.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        await self._consumer.close()
        self.context.blob_quota.close()
        await self.view.close()
        await self._log.close()
        self.folder.release()

    # ------------------------------------------------------------ records from the log

    def _writes_dead_letters(self) -> bool:
        """Return True if this server writes the dead letters of unreadable records.

        Each server's view finds these records, so one server must write.
        """
        return not self._log.shared or (self._live and self.ownership.owns(DEAD_LETTERS))

    def _on_batch(self, batch: RecordBatch) -> None:
        """Hand applied records of other servers to channels and ownership."""
        if batch.topic.startswith(TASKS_PREFIX):
            self._router.on_read(batch)
        elif batch.topic == CONTROL and self._log.shared:
            for offset, record in zip(batch.offsets, batch.records, strict=True):
                with contextlib.suppress(Undecodable):  # the view has made a dead letter of it
                    entry: Control = decode(Control, record.value)  # type: ignore[arg-type]
                    if isinstance(entry, Claim):
                        self.ownership.on_claim(batch.partition, offset, entry)
                    else:
                        self._cancellation.apply(entry)

    async def _on_registry(self) -> None:
        """Put new registry records in force, of this server or another."""
        await self.context.reload()
        if self._live:
            for endpoint in self.ownership.sync_endpoints():
                self._run(close_open_tasks(self.context, endpoint))
            await self._deployed.reload()

    async def sync_registry(self) -> bool:
        """Apply the records of other servers. Return False if there can be none."""
        return self._live and self._log.shared and await self._registry_sync()

    async def _read_registry(self) -> None:
        await self._deployed.sync()
        await self.context.reload()
