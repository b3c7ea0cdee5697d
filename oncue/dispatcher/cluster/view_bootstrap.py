"""Copies the view of a running server to a new server.

    claims in oncue.control: the peers ──► a token of this server in oncue.registry
      ──► GET /v1/view ──► view.db, with its offsets ──► the log from there on

A server that may write the log may make the token, and so may ask. A copy takes less time than
reading the whole log, whose beginning retention may have removed. Without a peer, or after an
error, the view is built from the log.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import aiohttp

from oncue.clocks.process import now_us
from oncue.dispatcher.auth.tokens import new_token
from oncue.errors import OncueError, Undecodable
from oncue.log import Log, Record
from oncue.protocol.codec import decode, encode
from oncue.protocol.records import VERSION, Claim, Control, TokenRecord
from oncue.protocol.topics import CONTROL, EVENTS, REGISTRY, RESULTS
from oncue.view import snapshots

log = logging.getLogger("oncue.joining")
LONG = 1_000  # records; a shorter log is read faster than a view is copied
TOKEN_US = 3_600_000_000
ANSWER_S, COPY_S = 15.0, 1_800.0
PAUSE_S = 0.5


async def copy_view(durable: Log, path: Path, server: str) -> bool:
    """Copy a peer's view to `path`.

    Return False if the view should be built from the log.
    """
    names = (EVENTS, RESULTS, REGISTRY)
    begins, ends = await durable.begin_offsets(names), await durable.end_offsets(names)
    gone = any(begins[place] for place in begins if place[0] != REGISTRY)
    if not gone and sum(end - begins[place] for place, end in ends.items()) < LONG:
        return False
    urls = await _peer_urls(durable)
    if not urls:
        return False
    token, digest = new_token()
    key, record = _token(server, digest)
    await durable.append(REGISTRY, [Record(encode(record), key=key)])
    part = path.with_name("view.joining")
    try:
        for url in urls:
            try:
                await _fetch(url, token, part)
                await asyncio.to_thread(snapshots.restore, path, part)
                log.info("the view of %s was copied", url)
                return True
            except (OncueError, aiohttp.ClientError, OSError, TimeoutError) as e:
                log.warning("the view of %s could not be copied: %s", url, e or type(e).__name__)
        return False
    finally:
        part.unlink(missing_ok=True)
        await durable.append(REGISTRY, [Record(b"", key=key)])


def _token(server: str, digest: str) -> tuple[bytes, TokenRecord]:
    token_id = f"tok_join_{server}"
    at = now_us()
    return f"token:{token_id}".encode(), TokenRecord(
        VERSION, token_id, digest, "oncue", ("admin",), at + TOKEN_US, False, at, "a server that joins"
    )


async def _peer_urls(durable: Log) -> list[str]:
    """Return the API URLs of the servers that have claimed a partition.

    The server with the newest claim is first.
    """
    ends = {place: end for place, end in (await durable.end_offsets((CONTROL,))).items() if end}
    begins = await durable.begin_offsets((CONTROL,))
    left = {place for place, end in ends.items() if end > begins[place]}
    newest: dict[int, Claim] = {}
    reader = durable.read([CONTROL], start="earliest")
    try:
        async with asyncio.timeout(ANSWER_S):
            while left:
                for batch in await reader.next():
                    for record in batch.records:
                        try:
                            entry: Control = decode(Control, record.value)  # type: ignore[arg-type]
                        except Undecodable:
                            continue
                        if isinstance(entry, Claim):
                            newest[batch.partition] = entry
                    place = (batch.topic, batch.partition)
                    if batch.next_offset >= ends.get(place, 0):
                        left.discard(place)
    except TimeoutError:
        log.warning("the claims of other servers could not be read in %g s", ANSWER_S)
    finally:
        await reader.close()
    found = sorted(newest.values(), key=lambda claim: claim.at_us, reverse=True)
    return list(dict.fromkeys(claim.url for claim in found if claim.url))


async def _fetch(url: str, token: str, part: Path) -> None:
    """Download the view of a peer.

    Raises aiohttp.ClientError, TimeoutError, OSError.
    """
    patience = asyncio.get_running_loop().time() + ANSWER_S
    limits = aiohttp.ClientTimeout(total=COPY_S, sock_connect=ANSWER_S, sock_read=60.0)
    async with aiohttp.ClientSession(timeout=limits, headers={"Authorization": f"Bearer {token}"}) as session:
        while True:
            async with session.get(f"{url}/v1/view") as answer:
                # The peer may not have read the token's record yet.
                if answer.status != 401 or asyncio.get_running_loop().time() > patience:
                    answer.raise_for_status()
                    with part.open("wb") as file:
                        async for data in answer.content.iter_chunked(1 << 20):
                            await asyncio.to_thread(file.write, data)
                    return
            await asyncio.sleep(PAUSE_S)
