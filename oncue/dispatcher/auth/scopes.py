"""Scopes of tokens, and the scope that a route needs.

    admin   everything
    user    everything with the objects that the caller owns
    emit    POST /v1/events only: for an instrument that reports events
    read    GET requests
    metrics GET /metrics, with the names of all owners' rules and endpoints; only admins give it

Every caller may use GET /v1/me.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Literal

from oncue.dispatcher.auth.identity import Caller
from oncue.errors import Forbidden

SCOPES: Final = ("admin", "user", "emit", "read", "metrics")
#: The scope that a route needs. "": no login at all.
Scope = Literal["", "any", "read", "user", "emit", "admin"]

#: The caller's scopes of which a route with this need accepts any.
OPENS: Final[dict[str, frozenset[str]]] = {
    "any": frozenset(SCOPES),
    "read": frozenset(("admin", "user", "read")),
    "user": frozenset(("admin", "user")),
    "emit": frozenset(("admin", "user", "emit")),
    "admin": frozenset(("admin",)),
}


def require(caller: Caller, scope: Scope) -> None:
    """Raise Forbidden if none of the caller's scopes is enough for `scope`."""
    if caller.scopes.isdisjoint(OPENS[scope]):
        raise Forbidden(
            f"this needs a token with the scope {_words(OPENS[scope])}; yours has {_words(caller.scopes) or 'none'}",
            remedy="use another token, or ask an admin for one: `oncue tokens create NAME --scope ...`",
            needs=sorted(OPENS[scope]),
        )


def _words(scopes: Collection[str]) -> str:
    return " or ".join(s for s in SCOPES if s in scopes)
