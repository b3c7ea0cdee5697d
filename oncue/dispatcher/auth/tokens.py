"""Login by a bearer token that this installation made.

    Authorization: Bearer oncue_<43 characters>
      ──SHA-256──► find_token(hash) ──► TokenRecord ──► Caller

A token is "oncue_" and 32 random bytes (base64url). The registry has its SHA-256 only. A plain hash
is enough, because 256 random bits cannot be guessed. A lookup takes the same time for known and
unknown tokens.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from oncue.clocks.process import now_us
from oncue.dispatcher.auth.base import REMEDY, AuthContext, Credentials
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.auth.scopes import SCOPES
from oncue.errors import Forbidden, Invalid, Unauthorized
from oncue.protocol.api import TokenRequest
from oncue.protocol.records import TokenRecord

PREFIX: Final = "oncue_"
_CACHE = 10_000  # callers
_LONGEST = 200  # characters
_LONGEST_S = 10 * 366 * 86_400


def new_token() -> tuple[str, str]:
    """Return a new token, and its hash.

    The token is shown once and stored nowhere.
    """
    token = PREFIX + secrets.token_urlsafe(32)
    return token, hash_token(token)


def hash_token(token: str) -> str:
    """Return the SHA-256 of the token, in hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def open_token_login(context: AuthContext) -> TokenAuthenticator:
    """Make the login by tokens of the registry. It is always enabled."""
    return TokenAuthenticator(context.find_token, context.sync_registry)


class TokenAuthenticator:
    """Login by a token of the registry.

    Only the Caller made of a record is cached. Each request looks the record up again, so a token
    that was revoked, on this server or another, is refused as soon as the registry has the
    revocation.
    """

    def __init__(
        self, find_token: Callable[[str], TokenRecord | None], sync_registry: Callable[[], Awaitable[bool]]
    ) -> None:
        self._find_token, self._sync_registry = find_token, sync_registry
        # Hash -> (record, caller, expiry in µs).
        self._callers: dict[str, tuple[TokenRecord, Caller, int]] = {}

    async def authenticate(self, credentials: Credentials) -> Caller | None:
        """See Authenticator.

        Raises Unauthorized for a token that is unknown, revoked or expired.
        """
        token = _own_token(credentials)
        if not token:
            return None
        digest = hash_token(token)
        try:
            return self._caller(digest)
        except Unauthorized:
            # Another server may have made the token a moment ago.
            if not await self._sync_registry():
                raise
        return self._caller(digest)

    def is_valid(self, credentials: Credentials) -> bool:
        """See Authenticator."""
        token = _own_token(credentials)
        try:
            return bool(token and self._caller(hash_token(token)))
        except Unauthorized:
            return False

    async def close(self) -> None:
        """See Authenticator. There is nothing to release."""

    def _caller(self, digest: str) -> Caller:
        record = self._find_token(digest)
        cached = self._callers.get(digest)
        if cached is None or cached[0] is not record:
            cached = self._add_caller(digest, record)
        if cached[2] and cached[2] <= now_us():
            raise _ended("has expired")
        return cached[1]

    def _add_caller(self, digest: str, record: TokenRecord | None) -> tuple[TokenRecord, Caller, int]:
        if record is None:
            raise Unauthorized("this token is not known here", remedy=REMEDY)
        if record.revoked:
            raise _ended("was revoked")
        if len(self._callers) >= _CACHE:
            self._callers.clear()
        entry = (record, Caller(record.subject, frozenset(record.scopes), record.id), record.expires_us)
        self._callers[digest] = entry
        return entry


def _ended(why: str) -> Unauthorized:
    """Return the error for a token that is no longer valid.

    Its holder cannot make another one, and is not told whose it was: it may be a thief.
    """
    return Unauthorized(
        f"this token {why}",
        remedy="ask an admin of this server for a new one: `oncue tokens create YOU`",
    )


def _own_token(credentials: Credentials) -> str:
    """Return the bearer token if it has the form of an oncue token, else ""."""
    token = credentials.bearer
    if not token.startswith(PREFIX) or len(token) > _LONGEST or not token.isascii():
        return ""
    return token


def expiry_of(request: TokenRequest, maker: TokenRecord | None, now_us: int) -> int:
    """Return when the new token expires, unix µs (0: never).

    Raises Forbidden if the request wants it to live longer.
    """
    wanted = now_us + request.expires_s * 1_000_000 if request.expires_s else 0
    limit = maker.expires_us if maker is not None else 0
    if limit and wanted > limit:
        left = max(0, limit - now_us) // 1_000_000
        raise Forbidden(
            f"the new token would outlive the one that makes it, which expires in {left:,} s",
            remedy="ask for less time, or leave the expiry out: it then expires with the other",
        )
    return wanted or limit


def check_token_request(caller: Caller, request: TokenRequest) -> None:
    """Check that the new token can do no more than its maker.

    Raises Invalid for a scope that does not exist, Forbidden for one that the caller may not give
    away.
    """
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
    if caller.is_admin:
        return
    if "admin" in wanted:
        raise Forbidden("only an admin can make an admin's token", remedy="leave `admin` out of the scopes")
    if "metrics" in wanted:
        raise Forbidden(
            "only an admin can make a token with the scope metrics: it shows everybody's names",
            remedy="use the scope read: it shows yours",
        )
    if request.subject not in ("", caller.subject):
        raise Forbidden("only an admin can make a token for somebody else", remedy="leave `subject` out")
