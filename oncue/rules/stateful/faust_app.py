"""FaustApp: KafkaRunner inside Faust (`oncue stream`).

The only module that imports Faust, which is slow to import and reads sys.argv on import; only the
process of that command imports it.

Faust assigns partitions of `oncue.matches` and of its changelog `oncue.windows` together, restores
the table from the changelog after each rebalance, and then delivers matches to the KafkaRunner.
Faust commits no offsets: the table holds them, so that states and offsets never differ.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import faust
from faust.stores import memory
from faust.tables.manager import TableManager
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from oncue.errors import LogError
from oncue.log.base import Record
from oncue.protocol.topics import MATCHES, WINDOWS
from oncue.rules.stateful.kafka_runner import GROUP, KafkaRunner

SESSION_S = 6.0  # of a killed worker; then others take over
STOP_S = 10.0
_RAW: dict[str, Any] = {
    "key_type": bytes,
    "value_type": bytes,
    "key_serializer": "raw",
    "value_serializer": "raw",
}
_log = logging.getLogger("oncue.stream")


class KafkaCluster(NamedTuple):
    """The Kafka cluster of the log's address."""

    servers: tuple[str, ...]
    client: Mapping[str, Any]  # connection arguments of aiokafka's clients
    prefix: str  # of the topics' and groups' names
    session_s: float


class FaustApp:
    """A Faust app: `run` until cancelled.

    `placed` is called with the partitions after a rebalance.
    """

    def __init__(
        self,
        cluster: KafkaCluster,
        runner: KafkaRunner,
        partitions: int,
        folder: Path,
        placed: Callable[[list[int]], None],
    ) -> None:
        self._app = _App(cluster, runner, folder)
        self._app.add_table(cluster.prefix + WINDOWS, partitions, placed)
        self._app.topics.add(self._app.topic(self._app.matches, acks=False, **_RAW))

    async def run(self) -> None:
        """Run until cancelled. Raises LogError when Faust stops."""
        app = self._app
        try:
            await app.maybe_start()
            await app.wait_until_stopped()
            reason = app.crash_reason
            raise LogError(
                f"the stream worker ended: {reason or 'Faust has stopped'}", remedy="start it again"
            ) from reason
        finally:
            await self._stop()

    async def _stop(self) -> None:
        try:
            await asyncio.wait_for(self._app.stop(), STOP_S)
        except Exception as e:
            _log.warning("Faust did not stop cleanly: %s: %s", type(e).__name__, e)


class _App(faust.App):
    def __init__(self, cluster: KafkaCluster, runner: KafkaRunner, folder: Path) -> None:
        session_s = min(cluster.session_s, SESSION_S)
        super().__init__(
            cluster.prefix + GROUP,
            broker=";".join(f"kafka://{server}" for server in cluster.servers),
            broker_credentials=_credentials(cluster.client),
            broker_client_id="oncue-stream",
            broker_session_timeout=session_s,
            broker_heartbeat_interval=session_s / 3,
            consumer_auto_offset_reset="earliest",
            key_serializer="raw",
            value_serializer="raw",
            datadir=str(folder),
            store="memory://",
            autodiscover=False,
            web_enabled=False,
            topic_allow_declare=False,  # the log creates them, with its settings
            topic_disable_leader=True,
            table_standby_replicas=0,
            stream_recovery_delay=0.0,
        )
        self.windows, self.matches = runner, cluster.prefix + MATCHES

    def add_table(self, changelog: str, partitions: int, placed: Callable[[list[int]], None]) -> None:
        topic = self.topic(
            changelog, partitions=partitions, compacting=True, acks=False, internal=True, allow_empty=True,
            maxsize=131_072, **_RAW,
        )  # fmt: skip
        table = _Table(
            self, name=WINDOWS, partitions=partitions, key_type=bytes, value_type=bytes, changelog_topic=topic
        )
        table.windows, table.placed = self.windows, placed
        self.tables.add(table)

    def _new_transport(self) -> Any:
        return _Transport(self.conf.broker_consumer, self)


class _Table(faust.Table[bytes, bytes]):
    windows: KafkaRunner
    placed: Callable[[list[int]], None]

    def _new_store(self) -> Any:
        store = _Store(self.app.conf.store, self.app, self, table_name=self.name, loop=self.loop)
        store.windows, store.placed, store.changelog = self.windows, self.placed, self.changelog_topic_name
        return store


class _Store(memory.Store[bytes, bytes]):
    """Table storage that is the runner's ChangelogStates, one per partition."""

    windows: KafkaRunner
    placed: Callable[[list[int]], None]
    changelog: str
    trouble: Exception | None = None

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        """Claim and restore every partition: another worker may have had it meanwhile."""
        assigned_here = {tp for tp in assigned if tp.topic == self.changelog}
        recovery = cast(TableManager, self.app.tables).recovery
        for tp in assigned_here:
            recovery.revoke(tp)
        await self.windows.claim(tp.partition for tp in assigned_here)

    def apply_changelog_batch(self, batch: Iterable[Any], to_key: Any, to_value: Any) -> None:
        """Apply records.

        Errors are raised later: Faust would log them and skip the record.
        """
        try:
            for event in batch:
                m = event.message
                self.windows.restore(m.partition, m.key, m.value or b"")
        except Exception as e:
            self.trouble = e

    async def on_recovery_completed(self, active_tps: set[TP], standby_tps: set[TP]) -> None:
        try:
            if self.trouble is not None:
                raise self.trouble
            await self.windows.check()
            self.placed(self.windows.ready())
        except Exception as e:
            await self.app.crash(e)


class _Consumer(driver.Consumer):
    def _new_consumer_thread(self) -> Any:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        """Deliver matches to the runner directly.

        Faust's streams would drop some: they clear a queue when flow resumes, after it was
        refilled.
        """
        app = cast(_App, self.app)
        async for tp, m in super().getmany(timeout):
            if tp.topic != app.matches:
                yield tp, m
            elif m.generation_id == app.consumer_generation_id:  # of the current assignment
                await app.windows.enqueue(tp.partition, m.offset, Record(m.value or b"", m.key or b""))

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek to the offsets stored in the tables.

        Faust calls this again for partitions that are not restored yet.
        """
        app = cast(_App, self.app)
        found = {**await super().seek_to_committed()}
        wanted = {TP(app.matches, number): offset for number, offset in app.windows.positions().items()}
        here = {tp: offset for tp, offset in wanted.items() if tp in self.assignment()}
        await self.seek_wait(here)
        return {**found, **here}


class _Transport(driver.Transport):
    Consumer = _Consumer


class _Thread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> Any:
        """Create a consumer that skips aborted transactions.

        Faust does so only with its own transactions, which are not used.
        """
        self.consumer.in_transaction = True
        try:
            return super()._create_worker_consumer(transport)
        finally:
            self.consumer.in_transaction = False


def _credentials(client: Mapping[str, Any]) -> Any:
    context, protocol = client.get("ssl_context"), client["security_protocol"]
    if protocol == "PLAINTEXT":
        return None
    if protocol == "SSL":
        return faust.SSLCredentials(context)
    if provider := client.get("sasl_oauth_token_provider"):
        return faust.OAuthCredentials(oauth_cb=provider, ssl_context=context)
    return faust.SASLCredentials(
        username=client["sasl_plain_username"],
        password=client["sasl_plain_password"],
        mechanism=client["sasl_mechanism"],
        ssl_context=context,
    )
