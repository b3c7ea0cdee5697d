"""The end of what a revoked endpoint was asked to do."""

from __future__ import annotations

from oncue.dispatcher.bridge.pending_tasks import OpenTask
from oncue.dispatcher.bridge.server_ends import end_by_server
from oncue.dispatcher.context import ServerContext
from oncue.ids import now_us
from oncue.log import Record
from oncue.protocol.codec import encode
from oncue.protocol.records import REFUSED, VERSION, Call, Ended, EndpointRecord, Failure
from oncue.protocol.topics import RESULTS

PAGE = 1_000


async def end_all(core: ServerContext, endpoint: EndpointRecord) -> None:
    """Close all open tasks of the endpoint as refused; durable when this returns. Again is harmless: what is closed is not
    open any more, and the first closing record decides. Raises LogError, DiskFull."""
    reason = Failure(
        "oncue.TaskRefused",
        f"its endpoint {endpoint.name!r} was revoked",
        remedy="run it on another endpoint; what an agent had begun may have happened there",
    )
    why, after = encode(reason), -1
    while True:
        await core.barrier((core.tasks_topic(endpoint.id), RESULTS))
        rows = [OpenTask(*row) for row in await core.view.open_tasks(endpoint.id, after, PAGE)]
        if not rows:
            return
        after, at = rows[-1].seq, now_us()
        frames: dict[tuple[Call, int], list[Ended]] = {}
        for row in rows:
            ends = frames.setdefault((row.call, row.accepted_us), [])
            ends.append(end_by_server(row.task, row.attempt, REFUSED, at, why))
        records = [Record(encode((VERSION, call, "", accepted, ends))) for (call, accepted), ends in frames.items()]
        await core.log.append(RESULTS, records)
