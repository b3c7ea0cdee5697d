"""Addresses of the agent, as its nodes find it.

The agent writes its addresses into a file of its folder. A node that sees that folder reads it
before each dial, so that it finds an agent that was restarted elsewhere. Others dial what they were
given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from oncue.disk.durable_files import replace_file


class AgentAddresses(msgspec.Struct, frozen=True):
    """Content of the file: addresses, the best first, and the agent's key."""

    addresses: tuple[str, ...]  # tcp://host:port
    key: str  # CURVE, Z85


def write_addresses(path: Path, found: AgentAddresses) -> None:
    """Write the file. Raises OSError."""
    replace_file(path, msgspec.json.encode(found), durable=False)


def read_addresses(path: Path | None) -> AgentAddresses | None:
    """Return the file's content; None if it cannot be read."""
    if path is None:
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=AgentAddresses)
    except (OSError, msgspec.MsgspecError):
        return None


class AddressCycle:
    """Addresses to dial, in turn."""

    def __init__(self, given: Sequence[str], key: str, file: Path | None) -> None:
        self._given, self._file = AgentAddresses(tuple(given), key), file
        self._dials = 0

    def pick(self) -> tuple[str, bytes]:
        """Return the next (address, key of the agent)."""
        found = read_addresses(self._file) or self._given
        # All of the file, then once those that were given: the file may be an old copy.
        known = [(a, found.key) for a in found.addresses]
        known += [(a, self._given.key) for a in self._given.addresses if a not in found.addresses]
        address, key = known[self._dials % len(known)]
        self._dials += 1
        return address, key.encode()
