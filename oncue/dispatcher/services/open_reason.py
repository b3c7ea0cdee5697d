"""Reason why a task is still open, as the API shows it."""

from __future__ import annotations

from collections.abc import Mapping

from oncue.clocks.process import now_us
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.effects import ChannelPhase
from oncue.dispatcher.cluster.ownership import PartitionOwnership
from oncue.dispatcher.registry_cache import RegistryCache
from oncue.protocol.payload import REF
from oncue.protocol.records import Call
from oncue.task_lifecycle import TaskState


def open_reason(
    state: TaskState,
    registry: RegistryCache,
    channels: Mapping[str, EndpointChannel],
    ownership: PartitionOwnership,
    blobs_trouble: str = "",
) -> str:
    """Return why a task has not ended; "" for a closed one.

    `blobs_trouble`: what is wrong with the store of blobs.
    """
    call = state.call
    if state.state.closed or call is None:
        return ""
    name = registry.endpoint_name(call.endpoint)
    endpoint = registry.endpoint(call.endpoint)
    if endpoint is None or endpoint.revoked:
        return f"endpoint {name!r} was revoked"
    now = now_us()
    if state.due_us > now:
        return f"attempt {state.attempt} is due in {(state.due_us - now) / 1e6:.1f} s"
    channel = channels.get(call.endpoint)
    if channel is not None:
        return _own_reason(state, call, name, channel, now, blobs_trouble)
    if state.running[0] == state.attempt:
        return "it runs"
    owner = ownership.owner_label(call.endpoint)
    if not owner:
        return f"no server acts for endpoint {name!r} yet"
    return f"the server {owner} acts for endpoint {name!r}: that one can say more"


def _own_reason(state: TaskState, call: Call, name: str, channel: EndpointChannel, now: int, blobs_trouble: str) -> str:
    """Return why a task is open whose endpoint this server owns."""
    if channel.refused:
        return f"endpoint {name!r} is refused: {channel.refused}"
    if channel.phase is ChannelPhase.AWAY:
        since = f" for {(now - channel.since_us) / 1e6:.0f} s" if channel.since_us else ", it has not come yet"
        return f"endpoint {name!r} is away{since}; start it: oncue endpoint start {name}"
    if state.running[0] == state.attempt:
        return "it runs"
    if (why := channel.pending.paused.why(call)) and not channel.at_agent(state.id):
        return why
    if blobs_trouble and state.args[:1] == REF:
        return f"its large arguments cannot be read: {blobs_trouble}"
    if channel.waiting_for and (channel.at_agent(state.id) or not channel.full):
        return f"endpoint {name!r}: {channel.waiting_for}"
    if channel.at_agent(state.id):
        return f"it is at endpoint {name!r}, for a free worker or running"
    if channel.full:
        return takes_none(f"endpoint {name!r}", channel)
    ahead = channel.pending.ahead_of(call)
    first = f", {ahead:,} of them of a higher priority" if ahead else ""
    return f"endpoint {name!r} has no free worker; {channel.pending.queued_tasks:,} tasks wait here{first}"


def takes_none(who: str, channel: EndpointChannel) -> str:
    """Return that an endpoint takes no tasks at the moment, and why."""
    return f"{who} takes no new tasks: {channel.full}"
