"""Checks of consumer groups: lag and members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aiokafka import errors as k
from aiokafka.conn import AIOKafkaConnection

from oncue.log.finding import Finding
from oncue.log.kafka.address import Address
from oncue.log.kafka.doctor.brokers import Brokers
from oncue.log.kafka.doctor.cluster import NO_COORDINATOR
from oncue.log.kafka.offsets import BEGIN, END
from oncue.log.kafka.requests import ClusterDescription, committed, coordinator, group_state, list_offsets

Place = tuple[str, int]  # full name of a topic, partition


async def check_groups(
    conn: AIOKafkaConnection,
    brokers: Brokers,
    address: Address,
    there: ClusterDescription,
    groups: Mapping[str, Sequence[str]],
) -> list[Finding]:
    """Check groups (name -> topics it reads). Raises KafkaError."""
    prefix = address.options.prefix
    found = []
    for group, topics in groups.items():
        ends = await _edges(brokers, there, [prefix + t for t in topics], END)
        begins = await _edges(brokers, there, [prefix + t for t in topics], BEGIN)
        if ends:
            found.append(await _group(conn, brokers, prefix + group, begins, ends))
    return found


async def _edges(brokers: Brokers, there: ClusterDescription, fulls: Sequence[str], which: int) -> dict[Place, int]:
    """Return BEGIN or END offsets of partitions whose leader can be reached."""
    found: dict[Place, int] = {}
    for full in fulls:
        led: dict[int, list[int]] = {}
        for part in there.topics[full].partitions if full in there.topics else ():
            led.setdefault(part.leader, []).append(part.number)
        for node, partitions in led.items():
            if (conn := brokers.node(node)) is not None:
                offsets = await list_offsets(conn, full, partitions, which)
                found |= {(full, p): offset for p, offset in offsets.items()}
    return found


async def _group(
    conn: AIOKafkaConnection, brokers: Brokers, group: str, begins: Mapping[Place, int], ends: Mapping[Place, int]
) -> Finding:
    check = f"group {group}"
    try:
        node = await coordinator(conn, group)
        its = brokers.node(node)
        if its is None:
            return Finding(check, False, f"its coordinator, broker {node}, is unreachable", "is this broker up?")
        done, state = await committed(its, group), await group_state(its, group)
    except k.GroupAuthorizationFailedError:
        return Finding(
            check, False, "not allowed to describe it", "the finding about ACLs names the missing permission"
        )
    except NO_COORDINATOR as e:
        return Finding(
            check, False, f"it has no coordinator: {e}", "is the topic __consumer_offsets there, with all brokers up?"
        )
    lag = sum(max(0, end - max(begins.get(place, 0), done.get(place, 0))) for place, end in ends.items())
    remedy = "nobody reads: start a server (oncue up), or the workers of stateful rules (oncue stream)"
    return Finding(check, not lag or state.members > 0, f"records to go: {lag:,}, members: {state.members}", remedy)
