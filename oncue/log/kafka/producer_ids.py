"""Claims of transactional ids (InitProducerId, kafka.apache.org/protocol).

Only the last claimant may commit. A claim takes two short requests on existing connections, while a
producer needs its own connections and tasks: a server that takes over hundreds of partitions claims
two ids for each.
"""

from __future__ import annotations

import asyncio
import time

from aiokafka import AIOKafkaProducer
from aiokafka import errors as k
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.protocol.transaction import InitProducerIdRequest

PATIENCE_S = 30.0  # for a coordinator that moves, or aborts the last claimant's transaction
PAUSE_S = 0.1
WAIT_FOR = (
    k.CoordinatorNotAvailableError,
    k.NotCoordinatorError,
    k.CoordinatorLoadInProgressError,
    k.ConcurrentTransactions,
    k.NodeNotReadyError,
    k.KafkaConnectionError,
    k.RequestTimedOutError,
)

ProducerId = tuple[int, int]  # id, epoch


class ProducerIds:
    """Claims ids through the log's client."""

    def __init__(self, client: AIOKafkaClient) -> None:
        self._client = client

    async def claim(self, transactional_id: str, timeout_ms: int) -> ProducerId:
        """Claim an id, which fences previous claimants.

        Their open transactions are aborted.
        Raises KafkaError.
        """
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await self._ask(transactional_id, timeout_ms)
            except WAIT_FOR:
                if time.monotonic() > end:
                    raise
            await asyncio.sleep(PAUSE_S)

    async def _ask(self, transactional_id: str, timeout_ms: int) -> ProducerId:
        node = await self._client.coordinator_lookup(CoordinationType.TRANSACTION, transactional_id)
        request = InitProducerIdRequest(transactional_id, timeout_ms)
        response = await self._client.send(node, request, group=ConnectionGroup.COORDINATION)
        if response.error_code:
            raise k.for_code(response.error_code)(transactional_id)
        return response.producer_id, response.producer_epoch


def use_producer_id(producer: AIOKafkaProducer, found: ProducerId) -> None:
    """Make a producer start with a claimed id.

    Otherwise it would claim it again, and fence a server that claimed it since.
    """
    producer._txn_manager.set_pid_and_epoch(*found)
