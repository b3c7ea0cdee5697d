"""Bearer tokens: who calls, and what they may do.

    Authorization: Bearer oncue_<43 characters>  ──SHA-256──► backend.token(hash) ──► TokenRecord ──► Who

A token is "oncue_" and 32 random bytes (base64url); the server keeps only its SHA-256. It has 256 random bits, so a plain
hash is enough (there is nothing to guess), and looking one up costs the same whether it exists or not. What a token may do:

    admin   everything
    user    everything with what is their own
    emit    POST /v1/events, and nothing else: for a beamline that only tells what happened
    read    GET requests

Any of them may ask GET /v1/me.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final, Literal

from oncue.dispatcher.auth.identity import Caller
from oncue.errors import Forbidden, Invalid, Unauthorized
from oncue.protocol.api import TokenRequest
from oncue.protocol.records import TokenRecord

PREFIX: Final = "oncue_"
SCOPES: Final = ("admin", "user", "emit", "read")
Scope = Literal["", "any", "read", "user", "emit", "admin"]  # what a route needs; "": no token at all

#: Which of a token's scopes open a route that needs the key.
OPENS: Final[dict[str, frozenset[str]]] = {
    "any": frozenset(SCOPES),
    "read": frozenset(("admin", "user", "read")),
    "user": frozenset(("admin", "user")),
    "emit": frozenset(("admin", "user", "emit")),
    "admin": frozenset(("admin",)),
}
_CACHE = 10_000
_LONGEST = 200  # characters
_LONGEST_S = 10 * 366 * 86_400
_REMEDY = (
    "send the header `Authorization: Bearer oncue_...`; `oncue tokens create NAME` makes one, on the server's machine"
)


def new_token() -> tuple[str, str]:
    """A fresh token, and the hash that is stored. The token is shown once and kept nowhere."""
    token = PREFIX + secrets.token_urlsafe(32)
    return token, hash_token(token)


def hash_token(token: str) -> str:
    """SHA-256 of the token, hex."""
    return hashlib.sha256(token.encode()).hexdigest()


class Authenticator:
    """From the Authorization header to Who. What it remembers is only the Who made of a record: each request looks the
    record up again, so a token that is revoked, here or on another server, is refused as soon as the registry says so."""

    def __init__(self, find: Callable[[str], TokenRecord | None]) -> None:
        self._find = find
        self._known: dict[str, tuple[TokenRecord, Caller, int]] = {}

    def who(self, header: str | None) -> Caller:
        """Raises Unauthorized."""
        if header is None:
            raise Unauthorized("this needs a token", remedy=_REMEDY)
        digest = hash_token(_token_of(header))
        record = self._find(digest)
        known = self._known.get(digest)
        if known is None or known[0] is not record:
            known = self._check(digest, record)
        if known[2] and known[2] <= time.time_ns() // 1000:
            raise Unauthorized("this token has expired", remedy="make a new one: `oncue tokens create NAME`")
        return known[1]

    def knows(self, header: str | None) -> bool:
        """Whether a token that was good is good still: not revoked, not expired."""
        try:
            self.who(header)
        except Unauthorized:
            return False
        return True

    def _check(self, digest: str, record: TokenRecord | None) -> tuple[TokenRecord, Caller, int]:
        if record is None:
            raise Unauthorized("this token is not known here", remedy=_REMEDY)
        if record.revoked:
            raise Unauthorized("this token was revoked", remedy="make a new one: `oncue tokens create NAME`")
        if len(self._known) >= _CACHE:
            self._known.clear()
        known = (record, Caller(record.subject, frozenset(record.scopes), record.id), record.expires_us)
        self._known[digest] = known
        return known


def _token_of(header: str) -> str:
    scheme, _, token = header.partition(" ")
    if scheme != "Bearer" and scheme.lower() != "bearer":
        raise Unauthorized("the Authorization header is not of the kind Bearer", remedy=_REMEDY)
    token = token.strip()
    if not token.startswith(PREFIX) or len(token) > _LONGEST or not token.isascii():
        raise Unauthorized("this is not an oncue token", remedy=_REMEDY)
    return token


def require(who: Caller, scope: Scope) -> None:
    """Raises Forbidden when none of the caller's scopes opens what needs `scope`."""
    if who.scopes.isdisjoint(OPENS[scope]):
        raise Forbidden(
            f"this needs a token with the scope {_words(OPENS[scope])}; yours has {_words(who.scopes) or 'none'}",
            remedy="use another token, or ask an admin for one: `oncue tokens create NAME --scope ...`",
            needs=sorted(OPENS[scope]),
        )


def may_make(who: Caller, request: TokenRequest) -> None:
    """Nobody makes a token that can do more than they can themselves.

    Raises Invalid for a scope that does not exist, Forbidden for one that the caller may not give away."""
    wanted: Sequence[str] = request.scopes
    unknown = [s for s in wanted if s not in SCOPES]
    if unknown or not wanted:
        what = f"there is no scope {unknown[0]!r}" if unknown else "a token needs at least one scope"
        raise Invalid(f"{what} - at `$.scopes`", remedy=f"the scopes are {', '.join(SCOPES)}")
    if not 0 <= request.expires_s <= _LONGEST_S:
        raise Invalid(
            f"expires_s is {'below 0' if request.expires_s < 0 else 'too large'} - at `$.expires_s`",
            remedy=f"give seconds from now (at most {_LONGEST_S}), or 0 for never",
        )
    if "admin" in who.scopes:
        return
    if "admin" in wanted:
        raise Forbidden("only an admin can make an admin's token", remedy="leave `admin` out of the scopes")
    if request.subject not in ("", who.subject):
        raise Forbidden("only an admin can make a token for somebody else", remedy="leave `subject` out")


def challenge(error: Unauthorized | Forbidden, sent: bool) -> str:
    """The WWW-Authenticate header (RFC 6750) of a refusal; `sent`: the request carried a token."""
    if isinstance(error, Forbidden):
        return 'Bearer realm="oncue", error="insufficient_scope"'
    return 'Bearer realm="oncue", error="invalid_token"' if sent else 'Bearer realm="oncue"'


def _words(scopes: Collection[str]) -> str:
    return " or ".join(s for s in SCOPES if s in scopes)
