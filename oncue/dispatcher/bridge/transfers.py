"""Parts of blobs and function bodies that agents read and write.

An agent gets what its tasks need, by content hash: the functions of its owner or of its tasks, and
the blobs that its tasks' arguments name. What it uploads, and does not finish, ends with its
session.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine
from typing import Any

from oncue.blobs import Upload
from oncue.dispatcher.bridge.agent_limits import Drop
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.dispatcher.bridge.effects import ReadPart, WritePart
from oncue.dispatcher.bridge.pending_tasks import TaskGroup
from oncue.dispatcher.context import ServerContext
from oncue.dispatcher.off_loop import MANY, off_loop_if
from oncue.errors import BlobMissing, OncueError
from oncue.processes.fair_threads import on_behalf_of
from oncue.protocol import bridge
from oncue.protocol.payload import REF
from oncue.protocol.topics import REGISTRY

READERS = 4  # parts of one endpoint that are read at once
READS_WAITING = 64  # of one endpoint; an agent has 8 requests open (fetcher.WINDOW * AT_ONCE)
WRITES_WAITING = 16  # of one endpoint; an agent waits for each part's answer
UPLOADS = 4  # unfinished ones of one session; an agent has one
ALL_UPLOADS = 256  # unfinished ones of all agents: each holds a file open
LOOK_S = 2.0  # between looks for a store that is away
PERMITTED = 10_000  # hashes that a session remembers as permitted
log = logging.getLogger("oncue.carrier")
Answer = Callable[[str, bridge.BlobPart | bridge.UploadAck, bytes], None]


class _Session:
    """Transfers of one agent's session."""

    def __init__(self) -> None:
        self.reads: deque[ReadPart] = deque()
        self.away: dict[ReadPart, EndpointChannel] = {}  # reads that wait for the store
        self.writes: deque[WritePart] = deque()
        self.uploads: OrderedDict[str, Upload] = OrderedDict()
        self.permitted: set[str] = set()
        self.readers = 0
        self.writing = self.ended = False

    def abort_uploads(self) -> None:
        """Delete the unfinished uploads and close their files."""
        for upload in self.uploads.values():
            upload.abort()
        self.uploads.clear()


class BlobTransfers:
    """Transfers of all agents of this server."""

    def __init__(
        self,
        context: ServerContext,
        run: Callable[[Coroutine[Any, Any, None]], None],
        answer: Answer,
        drop: Drop,
    ) -> None:
        self._context, self._run, self._answer, self._drop = context, run, answer, drop
        self._sessions: dict[str, _Session] = {}

    @property
    def unfinished(self) -> int:
        """Number of uploads in progress."""
        return sum(len(s.uploads) for s in self._sessions.values())

    def end_session(self, endpoint: str) -> None:
        """Drop what waits, and delete the unfinished uploads of the endpoint's agent."""
        session = self._sessions.pop(endpoint, None)
        if session is None:
            return
        session.ended = True
        session.reads.clear()
        session.away.clear()
        session.writes.clear()
        if not session.writing:  # else its writer does it, after the part at hand
            session.abort_uploads()

    def close(self) -> None:
        """End all sessions."""
        for endpoint in list(self._sessions):
            self.end_session(endpoint)

    # ------------------------------------------------------------ read

    def read(self, channel: EndpointChannel, effect: ReadPart) -> None:
        """Answer with a part, or with the reason why there is none."""
        session = self._sessions.setdefault(channel.endpoint, _Session())
        if len(session.reads) >= READS_WAITING:
            self._drop(channel.endpoint, "transfer", "asked for too many parts at once")
            return
        session.reads.append(effect)
        if session.readers < READERS:
            session.readers += 1
            self._run(self._read_all(channel, session))

    async def _read_all(self, channel: EndpointChannel, session: _Session) -> None:
        on_behalf_of.set(channel.endpoint)
        try:
            while session.reads and not channel.backlogged:
                await self._read(channel, session, session.reads.popleft())
        finally:
            session.readers -= 1

    def resume(self, channel: EndpointChannel) -> None:
        """Go on with reads that waited until the agent had read what it was sent."""
        session = self._sessions.get(channel.endpoint)
        if session is not None and session.reads and not session.readers:
            session.readers += 1
            self._run(self._read_all(channel, session))

    async def _read(self, channel: EndpointChannel, session: _Session, effect: ReadPart) -> None:
        sha, offset, endpoint = effect.sha256, effect.offset_bytes, channel.endpoint
        size, body, why = 0, b"", ""
        try:
            found = await self._function_body(channel, session, sha)
            if found:
                size, body = len(found), found[offset : offset + bridge.PART_BYTES]
            else:
                await self._check_blob(channel, session, sha)
                stored = await self._stored_part(sha, offset)
                if stored is None:
                    if len(session.away) < READS_WAITING and not session.ended:
                        session.away[effect] = channel
                    return  # its tasks wait; the agent asks again too
                size, body = stored
        except OncueError as e:
            why = e.message
        except OSError as e:
            why = f"the server cannot read it: {e.strerror or e}"
        if not session.ended:
            self._answer(endpoint, bridge.BlobPart(sha, offset, size, why), body)

    async def _stored_part(self, sha: str, offset: int) -> tuple[int, bytes] | None:
        """Return (size of the blob, part); None while its store is away.

        Raises BlobMissing, OSError.
        """
        blobs = self._context.blobs
        try:
            size = await asyncio.to_thread(blobs.size, sha)
            return size, await asyncio.to_thread(blobs.part, sha, offset, bridge.PART_BYTES)
        except (BlobMissing, OSError):
            if self._context.blobs_trouble or await self._is_store_away():
                return None
            raise

    async def _is_store_away(self) -> bool:
        """Look if the store is another one, or none: emptied, or its disk not mounted."""
        context = self._context
        trouble = await asyncio.to_thread(context.blobs.trouble, context.store_id)
        was_here = not context.blobs_away
        context.blobs_away = trouble and (
            f"not ok: {trouble}, so large arguments of accepted tasks are missing (is its disk mounted?)."
            " Put the store back: they wait for it"
        )
        if trouble and was_here:
            log.error("blobs: %s", context.blobs_away)
            self._run(self._await_store())
        return bool(trouble)

    async def _await_store(self) -> None:
        while self._context.blobs_away:
            await asyncio.sleep(LOOK_S)
            if not await self._is_store_away():
                log.info("blobs: the store is back")
                self._read_again()

    def _read_again(self) -> None:
        """Read the parts that waited for the store."""
        for session in self._sessions.values():
            away, session.away = session.away, {}
            session.reads.extend(away)
            for channel in set(away.values()):
                self.resume(channel)

    async def _function_body(self, channel: EndpointChannel, session: _Session, sha: str) -> bytes:
        """Return the body of a function that the endpoint may run; b"" if it is a blob.

        Raises BlobMissing.
        """
        context, endpoint = self._context, channel.endpoint
        known = context.registry.endpoint(endpoint)
        owner = known.owner if known is not None else ""
        record, body, permitted = await context.view.function_for(sha, endpoint, owner)
        if sha in session.permitted:  # a later part: the many tasks in flight are not searched again
            return body
        permitted = permitted or await _any_in_flight(channel, lambda g: g.call.function == sha)
        # Another server may have registered it a moment ago.
        if record is None and permitted and context.log.shared:
            await context.barrier((REGISTRY,))
            record, body, _ = await context.view.function_for(sha, endpoint, owner)
        if record is None:
            return b""
        if not permitted:
            self._drop(endpoint, "transfer", "asked for a function that it may not run")
            raise _missing(sha)
        self._permit(session, sha)
        return body

    async def _check_blob(self, channel: EndpointChannel, session: _Session, sha: str) -> None:
        """Raise BlobMissing unless a task of the endpoint needs the blob."""
        if sha in session.permitted:
            return
        wanted = sha.encode()
        if not await self._context.view.has_open_argument(channel.endpoint, sha) and not await _any_in_flight(
            channel, lambda g: any(t.args[:1] == REF and wanted in t.args for t in g.tasks)
        ):
            self._drop(channel.endpoint, "transfer", "asked for a blob that none of its tasks needs")
            raise _missing(sha)
        self._permit(session, sha)

    def _permit(self, session: _Session, sha: str) -> None:
        if len(session.permitted) >= PERMITTED:
            session.permitted.clear()
        session.permitted.add(sha)

    # ------------------------------------------------------------ write

    def write(self, endpoint: str, effect: WritePart) -> None:
        """Write a part, and answer with the next offset."""
        session = self._sessions.setdefault(endpoint, _Session())
        if len(session.writes) >= WRITES_WAITING:
            self._drop(endpoint, "transfer", "sent too many parts at once")
            return
        session.writes.append(effect)
        if not session.writing:
            session.writing = True
            self._run(self._write_all(endpoint, session))

    async def _write_all(self, endpoint: str, session: _Session) -> None:
        try:
            while session.writes and not session.ended:
                await self._write(endpoint, session, session.writes.popleft())
        finally:
            session.writing = False
            if session.ended:
                session.abort_uploads()

    async def _write(self, endpoint: str, session: _Session, effect: WritePart) -> None:
        why, at, sha = "", effect.offset_bytes, effect.sha256
        try:
            if await asyncio.to_thread(self._context.blobs.has, sha):
                at = effect.size_bytes
                self._abort(session, sha)
            else:
                upload = self._upload(endpoint, session, effect)
                if upload is None:
                    return  # the agent sends the part again
                at = await asyncio.to_thread(upload.write, effect.offset_bytes, effect.body)
                if at >= effect.size_bytes:
                    await asyncio.to_thread(upload.finish)
                    del session.uploads[sha]
        except OncueError as e:
            why = e.message
            self._abort(session, sha)
        except OSError as e:
            why = f"the server cannot store it: {e.strerror or e}"
            self._abort(session, sha)
        if not session.ended:
            self._answer(endpoint, bridge.UploadAck(sha, at, why), b"")

    def _upload(self, endpoint: str, session: _Session, effect: WritePart) -> Upload | None:
        """Return the upload that the part belongs to, opened if it is the first one.

        None if the server has too many of them. Raises NotReady, Conflict, DiskFull.
        """
        sha = effect.sha256
        upload = session.uploads.get(sha)
        if upload is not None and effect.offset_bytes == 0:
            self._abort(session, sha)
            upload = None
        if upload is None:
            self._context.check_accepting()
            while len(session.uploads) >= UPLOADS:  # an agent sends one blob after the other
                self._drop(endpoint, "transfer", "began too many uploads at once")
                self._abort(session, next(iter(session.uploads)))
            if self.unfinished >= ALL_UPLOADS:
                self._drop(endpoint, "transfer", "began an upload while the server had too many")
                return None
            owner = self._context.registry.quota_owner(endpoint)
            upload = session.uploads[sha] = self._context.blob_quota.upload(owner, sha, effect.size_bytes)
        return upload

    def _abort(self, session: _Session, sha: str) -> None:
        upload = session.uploads.pop(sha, None)
        if upload is not None:
            upload.abort()


async def _any_in_flight(channel: EndpointChannel, test: Callable[[TaskGroup], bool]) -> bool:
    """Return True if a group of tasks in flight passes the test.

    There may be 200,000 groups, and an agent may ask again and again: many are searched beside the
    loop.
    """
    groups = list(channel.in_flight.values())
    return await off_loop_if(len(groups) > MANY, _any, groups, test)


def _any(groups: list[TaskGroup], test: Callable[[TaskGroup], bool]) -> bool:
    seen: set[int] = set()  # a group is here once for each of its tasks
    for group in groups:
        if id(group) not in seen:
            seen.add(id(group))
            if test(group):
                return True
    return False


def _missing(sha: str) -> BlobMissing:
    return BlobMissing(f"there is no blob {sha[:12]}… for this endpoint", remedy="it gets what its tasks need")
