"""List of servers that the agent can dial.

It holds the registered server and those that a server named, which are stored in `servers.json`.
Any server knows which one acts for the endpoint, so it is enough that one of them can be reached.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from oncue.disk.durable_files import replace_file
from oncue.errors import Invalid

log = logging.getLogger("oncue.agent")


class ServerAddress(msgspec.Struct, frozen=True):
    """Bridge address and key of a server."""

    bridge: str  # tcp://host:port
    key: str  # CURVE, Z85


class ServerList:
    """Known servers.

    `registered` returns the first one's (address, key), or raises Invalid.
    """

    def __init__(self, path: Path, registered: Callable[[], tuple[str, bytes]]) -> None:
        self._path, self._registered = path, registered
        self._advertised = self._load()
        self._current: ServerAddress | None = None  # connected to last

    def _load(self) -> list[ServerAddress]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[ServerAddress])
        except (OSError, msgspec.MsgspecError):
            return []  # the registered server names them again

    def remember(self, servers: Iterable[tuple[str, str]]) -> None:
        """Store the servers that a server named."""
        servers_now = [ServerAddress(bridge, key) for bridge, key in servers]
        if servers_now == self._advertised:
            return
        self._advertised = servers_now
        try:
            replace_file(self._path, msgspec.json.encode(servers_now), durable=False)
        except OSError as e:
            log.warning("%s could not be written: %s", self._path, e.strerror)

    def known(self) -> list[ServerAddress]:
        """Return all servers, the registered one first.

        Raises Invalid if there is none.
        """
        try:
            bridge, key = self._registered()
            home = [ServerAddress(bridge, key.decode())]
        except Invalid:
            if not self._advertised:
                raise
            home = []
        return list(dict.fromkeys([*home, *self._advertised]))

    def has_several(self) -> bool:
        try:
            return len(self.known()) > 1
        except Invalid:
            return False

    def pick(self, bridge: str = "", key: str = "") -> ServerAddress:
        """Return this server, or the next known one.

        Raises Invalid if there is none.
        """
        if bridge:
            self._current = ServerAddress(bridge, key)
        else:
            known = self.known()
            following = known.index(self._current) + 1 if self._current in known else 0
            self._current = known[following % len(known)]
        return self._current
