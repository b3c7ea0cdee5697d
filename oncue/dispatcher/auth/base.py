"""The interface of a login, and the chain that tries all logins of a server.

    request ──► Credentials ──► AuthenticatorChain ──► Authenticator 1, 2 ... ──► Caller

`Caller` is in identity.py. To add a login: write a class with the three methods of `Authenticator`,
and add its factory to `AUTHENTICATORS` (catalog.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from oncue.config import Settings
from oncue.dispatcher.auth.identity import Caller
from oncue.errors import Forbidden, Unauthorized
from oncue.protocol.records import TokenRecord

REMEDY = (
    "set ONCUE_TOKEN, or in other programs send the header `Authorization: Bearer oncue_...`;"
    " an admin of this server makes a token: `oncue tokens create YOU`"
)


class Credentials(msgspec.Struct, frozen=True):
    """The part of a request by which its caller can be known."""

    authorization: str | None = None  # the header, as it was sent

    @property
    def bearer(self) -> str:
        """The token of `Authorization: Bearer TOKEN` (RFC 6750); "" if there is none."""
        scheme, _, token = (self.authorization or "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""


class Authenticator(Protocol):
    """One kind of login. Made once for each server, by a factory of the catalogue.

    A login sees only credentials, not the request, so it works for every route. It decides by their
    form whether they are of its kind. The first login of the catalogue that recognizes credentials
    decides about them alone.
    """

    async def authenticate(self, credentials: Credentials) -> Caller | None:
        """Return the caller, or None if the credentials are of another kind.

        Called for each request, so it must answer from memory if it can. It may wait for I/O (keys
        of an issuer, introspection of an opaque token) for credentials that it has not seen before.

        Raises Unauthorized, with a remedy, for credentials of this kind that are wrong, expired or
        revoked.
        """
        ...

    def is_valid(self, credentials: Credentials) -> bool:
        """Return True if the credentials are accepted now. No I/O.

        Called every few seconds for each open stream, with credentials that `authenticate` accepted
        at its start.
        """
        ...

    async def close(self) -> None:
        """Release connections. Called once, when the server stops."""
        ...


@dataclass(frozen=True, slots=True)
class AuthContext:
    """Parts of the server that a login may use."""

    settings: Settings
    find_token: Callable[[str], TokenRecord | None]  # by its SHA-256 in hex; also a revoked one
    # Apply the registrations of other servers. False: not possible.
    sync_registry: Callable[[], Awaitable[bool]]


#: Makes a login, or returns None if the settings do not enable it.
AuthenticatorFactory = Callable[[AuthContext], Authenticator | None]


class AuthenticatorChain:
    """All logins of a server, in the order of the catalogue."""

    def __init__(self, authenticators: Sequence[Authenticator]) -> None:
        self._authenticators = tuple(authenticators)

    @classmethod
    def open(cls, factories: Sequence[AuthenticatorFactory], context: AuthContext) -> AuthenticatorChain:
        """Make the logins that the settings enable."""
        made = (factory(context) for factory in factories)
        return cls([authenticator for authenticator in made if authenticator is not None])

    async def authenticate(self, credentials: Credentials) -> Caller:
        """Return the caller. Raises Unauthorized."""
        for authenticator in self._authenticators:
            caller = await authenticator.authenticate(credentials)
            if caller is not None:
                return caller
        raise _unrecognized(credentials)

    def is_valid(self, credentials: Credentials) -> bool:
        """Return True if a login accepts these credentials now. No I/O."""
        return any(authenticator.is_valid(credentials) for authenticator in self._authenticators)

    async def close(self) -> None:
        """Close all logins."""
        for authenticator in self._authenticators:
            await authenticator.close()


def _unrecognized(credentials: Credentials) -> Unauthorized:
    if credentials.authorization is None:
        return Unauthorized("this needs a token", remedy=REMEDY)
    if credentials.authorization.partition(" ")[0].lower() != "bearer":
        return Unauthorized("the Authorization header is not of the kind Bearer", remedy=REMEDY)
    return Unauthorized("this is not an oncue token", remedy=REMEDY)


def challenge(error: Unauthorized | Forbidden, sent: bool) -> str:
    """Return the WWW-Authenticate header (RFC 6750) of a refusal.

    `sent`: the request had an Authorization header.
    """
    if isinstance(error, Forbidden):
        return 'Bearer realm="oncue", error="insufficient_scope"'
    return 'Bearer realm="oncue", error="invalid_token"' if sent else 'Bearer realm="oncue"'
