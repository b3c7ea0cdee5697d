"""Who may commit under a transactional id: the one that claimed it last (InitProducerId, kafka.apache.org/protocol).

Claiming takes two short requests over connections that are there, where a whole producer takes connections and tasks of its
own: a server that takes over hundreds of partitions claims two ids for each.
"""

from __future__ import annotations

import asyncio
import time

from aiokafka import AIOKafkaProducer
from aiokafka import errors as k
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.protocol.transaction import InitProducerIdRequest

PATIENCE_S = 30.0  # with a coordinator that moves, or that aborts what the last claimant has under way
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

ProducerId = tuple[int, int]  # and its epoch, which only grows


class ProducerIds:
    def __init__(self, client: AIOKafkaClient) -> None:
        self._client = client

    async def claim(self, transactional_id: str, timeout_ms: int) -> ProducerId:
        """From when this returns, whoever claimed it before is refused, and what that one had under way is aborted. Raises
        KafkaError."""
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


def give(producer: AIOKafkaProducer, found: ProducerId) -> None:
    """It starts with what was claimed; otherwise it would claim anew, and so refuse whoever has claimed since."""
    producer._txn_manager.set_pid_and_epoch(*found)
