"""Checks that a cluster is fit for oncue; changes nothing.

examine ──► brokers   each broker: host name, port, TLS, SASL, version
        ──► cluster   the controller's clock, permissions (ACLs)
        ──► topics    settings, replicas, leaders
        └─► groups    lag and members
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from aiokafka import errors as k

from oncue.config import Settings
from oncue.log.base import Topic
from oncue.log.finding import Finding
from oncue.log.kafka.address import parse_address
from oncue.log.kafka.doctor.brokers import Brokers
from oncue.log.kafka.doctor.cluster import check_clock, check_rights
from oncue.log.kafka.doctor.groups import check_groups
from oncue.log.kafka.doctor.topics import check_topics
from oncue.log.kafka.failures import explain, quiet
from oncue.log.kafka.requests import describe_cluster


async def examine(
    rest: str,
    settings: Settings,
    topics: Mapping[str, Topic],
    groups: Mapping[str, Sequence[str]],
    now: Callable[[], float] = time.time,
) -> list[Finding]:
    """Run all checks; `rest` is the URL after kafka://.

    `topics` are those that a server needs, `groups` maps each group to the topics it reads.
    Raises Invalid for unusable settings.
    """
    address = parse_address(rest, settings)
    quiet()
    async with Brokers(address) as brokers:
        found = await brokers.given()
        conn = brokers.any()
        if conn is None:
            return found
        try:
            there = await describe_cluster(conn)
            found += await brokers.advertised(there)
            found += await check_clock(conn, now)
            found += await check_rights(conn, address, there, [*topics], [*groups])
            found += await check_topics(conn, address, there, topics)
            found += await check_groups(conn, brokers, address, there, groups)
        except (k.KafkaError, OSError) as e:
            why = explain(e, str(address), "be examined to the end")
            found.append(Finding("kafka", False, why.message, why.remedy))
    return found
