"""Accepts an admin token that exists before the server does.

The setting `admin_token_file` names it: a secret of compose, a credential of systemd. It is valid
from the server's first start on, so endpoints can be registered without a person.
"""

from __future__ import annotations

import getpass
import logging
import re
from pathlib import Path

from oncue.clocks.process import now_us
from oncue.dispatcher.auth.tokens import PREFIX, hash_token
from oncue.dispatcher.context import ServerContext
from oncue.errors import Invalid
from oncue.protocol.records import VERSION, TokenRecord

log = logging.getLogger("oncue.server")
FORM = re.compile(PREFIX + r"[A-Za-z0-9_-]{43,190}")
MAKE = "python3 -c 'import secrets; print(\"oncue_\" + secrets.token_urlsafe(32))'"


def read_token(file: str) -> str:
    """Return the token in the file. Raises Invalid."""
    try:
        path = Path(file).expanduser()
        mode = path.stat().st_mode
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as e:
        raise Invalid(f"admin_token_file: {e}", remedy="name a file that the server can read, or unset it") from None
    if mode & 0o002:
        raise Invalid(
            f"admin_token_file: others may write {file}: they could choose the token", remedy=f"chmod 600 {file}"
        )
    if mode & 0o024:
        log.warning("other users may read or replace the admin's token in %s: chmod 600 %s", file, file)
    if not FORM.fullmatch(token):
        raise Invalid(f"admin_token_file: {file} holds no token", remedy=f"make one: {MAKE} > {file}")
    return token


async def accept_given_token(context: ServerContext, file: str) -> None:
    """Record the token as an admin's. Idempotent, on any server. Raises Invalid."""
    digest = hash_token(read_token(file))
    known = context.registry.token(digest)
    if known is not None:
        if known.revoked:
            log.warning("the token of admin_token_file was revoked (%s): put another into %s", known.id, file)
        return
    token_id = f"tok_given_{digest[:12]}"
    record = TokenRecord(VERSION, token_id, digest, getpass.getuser(), ("admin",), 0, False, now_us(), "given")
    await context.record([(f"token:{token_id}", record)])
