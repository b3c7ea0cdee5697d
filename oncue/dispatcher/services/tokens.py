"""Creates, lists and revokes API tokens."""

from __future__ import annotations

import getpass
import hashlib
import json
import secrets as random_secrets
from pathlib import Path

import msgspec

from oncue.dispatcher.auth.identity import Caller
from oncue.dispatcher.auth.tokens import check_token_request, hash_token, new_token
from oncue.dispatcher.context import ServerContext
from oncue.errors import NotFound
from oncue.ids import now_us
from oncue.protocol import api as r
from oncue.protocol.records import NAME_CHARS, VERSION, TokenRecord


class TokenService:
    """Tokens in the registry. The registry has their SHA-256 only."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def find(self, hash_hex: str) -> TokenRecord | None:
        """Return the token with this SHA-256, also a revoked one."""
        return self._context.registry.token(hash_hex)

    async def create(self, caller: Caller, request: r.TokenRequest) -> r.TokenInfo:
        """Make a token. Only this answer has its text. Raises Invalid, Forbidden."""
        check_token_request(caller, request)
        token, hashed = new_token()
        expires = now_us() + request.expires_s * 1_000_000 if request.expires_s else 0
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
        )
        await self._context.record([(f"token:{record.id}", record)])
        return msgspec.structs.replace(_token_info(record), token=token)

    async def all(self, caller: Caller) -> list[r.TokenInfo]:
        """Return the tokens that the caller may see, oldest first."""
        visible = [t for t in self._context.registry.tokens() if caller.sees(t.subject)]
        return [_token_info(t) for t in sorted(visible, key=lambda t: t.at_us)]

    async def revoke(self, caller: Caller, token_id: str) -> None:
        """Revoke a token on all servers. Raises NotFound."""
        found = next((t for t in self._context.registry.tokens() if t.id == token_id), None)
        if found is None or not caller.sees(found.subject):
            raise NotFound(f"there is no token {token_id!r}", remedy="oncue tokens list shows yours")
        await self._context.record([(f"token:{found.id}", msgspec.structs.replace(found, revoked=True))])

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
        id=t.id, name=t.name, subject=t.subject, scopes=list(t.scopes), expires_us=t.expires_us, revoked=t.revoked
    )
