"""Checks of the cluster's clock and of permissions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from aiokafka import errors as k
from aiokafka.conn import AIOKafkaConnection

from oncue.log.finding import SKEW_S, Finding
from oncue.log.kafka.address import Address
from oncue.log.kafka.requests import (
    TRANSACTION,
    ClusterDescription,
    cluster_time_s,
    coordinator,
    describe_cluster,
    group_state,
)

NO_COORDINATOR = (k.GroupCoordinatorNotAvailableError, k.NotCoordinatorForGroupError, k.GroupLoadInProgressError)
TOPIC_RIGHTS = ("Read", "Write", "Create", "Describe", "Alter", "Delete", "DescribeConfigs", "AlterConfigs")
GROUP_RIGHTS = ("Read", "Describe")


async def check_clock(conn: AIOKafkaConnection, now: Callable[[], float]) -> list[Finding]:
    """Compare the clocks. Raises KafkaError.

    Retention, expiry and the order of ids depend on them.
    """
    check = "kafka clock"
    before = now()
    try:
        theirs = await cluster_time_s(conn)
    except k.ClusterAuthorizationFailedError:
        return [Finding(check, True, "unknown: reading it requires Describe on the cluster")]
    if math.isnan(theirs):
        return [Finding(check, True, "unknown: this version of Kafka does not report it")]
    after = now()
    apart = max(0.0, before - theirs, theirs - after)
    remedy = "set the clocks of the brokers and of this machine by NTP (chrony): retention and expiry go by them"
    return [Finding(check, apart < SKEW_S, f"the controller's clock differs by {apart:.0f} s from ours", remedy)]


async def check_rights(
    conn: AIOKafkaConnection, address: Address, there: ClusterDescription, topics: Sequence[str], groups: Sequence[str]
) -> list[Finding]:
    """Report missing ACLs, with the commands that add them. Raises KafkaError.

    Without an authorizer everything is allowed.
    """
    prefix = address.options.prefix
    fulls = [prefix + name for name in topics]
    lacks: dict[str, list[str]] = {}
    for full, seen in (await describe_cluster(conn, fulls)).topics.items():
        has = set(seen.operations) | ({"Create"} if "Create" in there.operations else set())
        for right in TOPIC_RIGHTS:
            if right not in has:
                lacks.setdefault(right, []).append(full)
    found = []
    if lacks:
        text = f"on topics: {', '.join(lacks)} (of {', '.join(sorted({t for ts in lacks.values() for t in ts}))})"
        found.append(_lacking(text, address, list(lacks), "--topic"))
    missing = {right for group in groups for right in await _group_lacks(conn, prefix + group)}
    if missing:
        rights = [r for r in GROUP_RIGHTS if r in missing]
        found.append(_lacking(f"on groups: {', '.join(rights)}", address, rights, "--group"))
    try:
        await coordinator(conn, prefix + "oncue", TRANSACTION)
    except k.TransactionalIdAuthorizationFailed:
        rights = ["Write", "Describe"]
        found.append(_lacking("on transactional ids: Write, Describe", address, rights, "--transactional-id"))
    except NO_COORDINATOR:
        pass  # a new cluster has none at first
    return found or [Finding("kafka ACLs", True, "oncue has all permissions that it needs")]


async def _group_lacks(conn: AIOKafkaConnection, group: str) -> list[str]:
    # Any broker knows the permissions; only the coordinator knows the state.
    state = await group_state(conn, group)
    if k.for_code(state.error) is k.GroupAuthorizationFailedError:
        return list(GROUP_RIGHTS)
    if state.error:  # not its coordinator: no permissions in the response
        return []
    return [right for right in GROUP_RIGHTS if right not in state.operations]


def _lacking(text: str, address: Address, rights: Sequence[str], resource: str) -> Finding:
    who = address.client.get("sasl_plain_username") or "NAME"
    prefix = address.options.prefix
    names = f"{resource} '{prefix}' --resource-pattern-type prefixed" if prefix else f"{resource} '*'"
    operations = " ".join(f"--operation {right}" for right in rights)
    remedy = (
        f"kafka-acls.sh --bootstrap-server {address.servers[0]} --add --allow-principal User:{who} {operations} {names}"
    )
    return Finding("kafka ACLs", False, f"not allowed {text}", remedy)
