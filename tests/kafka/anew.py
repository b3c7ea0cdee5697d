"""Deletes topics behind the back of those who use them, and makes them anew."""

from __future__ import annotations

import asyncio

from aiokafka.admin import AIOKafkaAdminClient, NewTopic


async def make_anew(address: str, topic: str) -> None:
    """Delete a topic, and make one of the same name with as many partitions."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        (known,) = await admin.describe_topics([topic])
        await admin.delete_topics([topic])
        async with asyncio.timeout(60):
            while True:
                made = await admin.create_topics([NewTopic(topic, len(known["partitions"]), 1)])
                if not made.topic_errors[0][1]:
                    return
                await asyncio.sleep(0.02)  # the old one is being deleted
    finally:
        await admin.close()


async def delete(address: str, topic: str) -> None:
    """Delete a topic."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        await admin.delete_topics([topic])
    finally:
        await admin.close()
