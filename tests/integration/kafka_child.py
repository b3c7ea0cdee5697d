"""A process that stops just before it commits a Kafka transaction.

It waits to be killed: python kafka_child.py URL
"""

from __future__ import annotations

import asyncio
import sys

from oncue.log import Append, Record, open_log
from oncue.log.kafka import transactions


async def hang(_: object) -> None:
    print("transaction is open", flush=True)
    await asyncio.Event().wait()


async def main() -> None:
    transactions.AIOKafkaProducer.commit_transaction = hang
    log = await open_log(sys.argv[1])
    batches = await log.read(["in"], group="g").next()
    await log.commit("g", batches, [Append("out", [Record(b"never")])])


asyncio.run(main())
