"""Creates, lists and revokes API tokens."""

from __future__ import annotations

import getpass
import hashlib
import json
import secrets as random_secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from oncue.clocks.process import now_us
from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.auth.tokens import check_token_request, expiry_of, hash_token, new_token
from oncue.dispatcher.context import ServerContext
from oncue.errors import Conflict, NotFound
from oncue.protocol import api as r
from oncue.protocol.records import NAME_CHARS, VERSION, EndpointRecord, TokenRecord

TOKENS = 1_000  # valid ones of one person
TOKENS_EVER = 50_000  # with those that are revoked or have expired: their records are kept


class TokenService:
    """Tokens in the registry. The registry has their SHA-256 only."""

    def __init__(
        self, context: ServerContext, revoke_endpoint: Callable[[EndpointRecord], Awaitable[None]] | None = None
    ) -> None:
        self._context, self._revoke_endpoint = context, revoke_endpoint

    def find(self, hash_hex: str) -> TokenRecord | None:
        """Return the token with this SHA-256, also a revoked one."""
        return self._context.registry.token(hash_hex)

    async def create(self, caller: Caller, request: r.TokenRequest) -> r.TokenInfo:
        """Make a token. Only this answer has its text. Raises Invalid, Forbidden."""
        check_token_request(caller, request)
        self._check_count(request.subject or caller.subject)
        maker = self.by_id(caller.token_id)
        expires = expiry_of(request, maker, now_us())
        token, hashed = new_token()
        record = TokenRecord(
            VERSION,
            "tok_" + random_secrets.token_hex(6),
            hashed,
            request.subject or caller.subject,
            tuple(request.scopes),
            expires,
            False,
            now_us(),
            request.name[:NAME_CHARS],
            maker.id if maker is not None else "",
        )
        await self._context.record([(f"token:{record.id}", record)])
        return msgspec.structs.replace(_token_info(record), token=token)

    async def all(self, caller: Caller) -> list[r.TokenInfo]:
        """Return the tokens that the caller may see, oldest first."""
        visible = [t for t in self._context.registry.tokens() if caller.sees(t.subject)]
        return [_token_info(t) for t in sorted(visible, key=lambda t: t.at_us)]

    async def revoke(self, caller: Caller, token_id: str, endpoints: bool = False) -> r.RevokedToken:
        """Revoke a token and all that were made by it, on all servers. Raises NotFound.

        `endpoints`: revoke the endpoints that these tokens registered, too.
        """
        found = self.by_id(token_id)
        if found is None or not caller.sees(found.subject):
            raise NotFound(f"there is no token {token_id!r}", remedy="oncue tokens list shows yours")
        gone = [msgspec.structs.replace(t, revoked=True) for t in self._context.registry.with_descendants(found)]
        await self._context.record([(f"token:{t.id}", t) for t in gone])
        ids = {t.id for t in gone}
        registered = [e for e in self._context.registry.endpoints() if e.token in ids and not e.revoked]
        if endpoints and self._revoke_endpoint is not None:
            for endpoint in registered:
                await self._revoke_endpoint(endpoint)
        names = sorted(e.name for e in registered)
        return r.RevokedToken(tokens=[_token_info(t) for t in gone], endpoints=names, endpoints_revoked=endpoints)

    def _check_count(self, subject: str) -> None:
        """Raise Conflict if the subject has too many tokens."""
        now, tokens = now_us(), self._context.registry.tokens_of(subject)
        valid = sum(not t.revoked and (not t.expires_us or t.expires_us > now) for t in tokens)
        if valid >= TOKENS:
            raise Conflict(
                f"{subject} has {valid:,} valid tokens; at most {TOKENS:,} are kept",
                remedy="revoke those that are not needed: oncue tokens list",
            )
        if len(tokens) >= TOKENS_EVER:
            raise Conflict(
                f"{subject} has made {len(tokens):,} tokens, with revoked and expired ones; at most {TOKENS_EVER:,} are kept",
                remedy="make tokens that are valid for longer, or for another subject",
            )

    def by_id(self, token_id: str) -> TokenRecord | None:
        """Return the token with this id, also a revoked one."""
        return self._context.registry.token_by_id(token_id) if token_id else None

    async def local_token(self, path: Path, server_key: str) -> str:
        """Return the admin token of the person who started the server.

        This is the one in `path`, a local.json, if it is valid, else a new one. `server_key`: the
        server's public key.
        """
        try:
            token = str(json.loads(path.read_text())["token"])
            known = self.find(hash_token(token))
            if known is not None and not known.revoked:
                return token
        except (OSError, ValueError, KeyError, TypeError):  # there is none, or it is damaged
            pass
        token, hashed = new_token()
        token_id = "tok_local"
        if self._context.log.shared:  # each server has its own
            token_id += "_" + hashlib.sha256(server_key.encode()).hexdigest()[:12]
        record = TokenRecord(VERSION, token_id, hashed, getpass.getuser(), ("admin",), 0, False, now_us(), "local")
        await self._context.record([(f"token:{token_id}", record)])
        return token


def _token_info(t: TokenRecord) -> r.TokenInfo:
    return r.TokenInfo(
        id=t.id,
        name=t.name,
        subject=t.subject,
        scopes=list(t.scopes),
        expires_us=t.expires_us,
        revoked=t.revoked,
        parent=t.parent,
    )
