"""Verifies the signatures of webhook requests.

Pure functions of the headers, the raw body, the secrets and the time; they raise Unauthorized.
Several secrets may be valid at once, so that they can be changed without a gap. Comparisons take
constant time.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence

from oncue.errors import Invalid, Unauthorized

TOLERANCE_S = 300.0


def standard_webhooks(
    headers: Mapping[str, str],
    body: bytes,
    keys: Sequence[bytes],
    now_s: float,
    tolerance_s: float = TOLERANCE_S,
    system_s: float | None = None,
) -> None:
    """Verify a request by Standard Webhooks 1.0. Raises Unauthorized.

    `now_s`: the time of this process. `system_s`: the system clock's. They differ after a step, and
    the sender's clock may agree with either.

    The header webhook-signature holds the HMAC-SHA256 of `id.timestamp.body` as `v1,<base64>`, or
    several with spaces between. `keys` come from `standard_key`.
    """
    message_id, stamp, given = (headers.get(f"webhook-{part}", "") for part in ("id", "timestamp", "signature"))
    for part, value in (("id", message_id), ("timestamp", stamp), ("signature", given)):
        if not value:
            raise Unauthorized(f"the header webhook-{part} is missing", remedy="sign requests by Standard Webhooks")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 16):
        raise Unauthorized("webhook-timestamp is not a time", remedy="send unix seconds")
    clocks_s = (now_s,) if system_s is None else (now_s, system_s)
    age_s = min((clock_s - int(stamp) for clock_s in clocks_s), key=abs)
    if abs(age_s) > tolerance_s:
        when = f"{age_s:.0f} s old" if age_s > 0 else f"{-age_s:.0f} s in the future"
        raise Unauthorized(
            f"the request was signed at a time that is {when}; at most {tolerance_s:g} s are allowed",
            remedy="check for a repeated old request or a wrong clock (NTP); `tolerance` sets the limit",
        )
    signed = f"{message_id}.{stamp}.".encode("utf-8", "surrogateescape") + body
    offered = [_unbase64(text) for version, _, text in (s.partition(",") for s in given.split()) if version == "v1"]
    _one_of(offered, (hmac.digest(key, signed, "sha256") for key in keys), "webhook-signature")


def standard_key(secret: str) -> bytes:
    """Return the key of a `whsec_...` secret. Raises Invalid.

    The secret is base64; the prefix may be missing.
    """
    try:
        key = base64.b64decode(secret.strip().removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise Invalid("the secret is not one of Standard Webhooks", remedy="write whsec_ and then base64")
    return key


def github(headers: Mapping[str, str], body: bytes, keys: Sequence[bytes]) -> None:
    """Verify a request of GitHub. Raises Unauthorized.

    The header X-Hub-Signature-256 is `sha256=` and the hex HMAC-SHA256 of the raw body.

    https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
    """
    given = headers.get("x-hub-signature-256", "")
    if not given:
        raise Unauthorized("the header X-Hub-Signature-256 is missing", remedy="set the webhook's secret at GitHub")
    offered = given.encode("utf-8", "surrogateescape")
    wanted = (b"sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest().encode() for key in keys)
    _one_of([offered], wanted, "X-Hub-Signature-256")


def bearer(headers: Mapping[str, str], tokens: Sequence[bytes]) -> None:
    """Verify the header `Authorization: Bearer <token>`. Raises Unauthorized."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("there is no bearer token", remedy="send the header Authorization: Bearer <token>")
    _one_of([token.strip().encode("utf-8", "surrogateescape")], tokens, "Authorization")


def _one_of(offered: Sequence[bytes], wanted: Iterable[bytes], header: str) -> None:
    fits = [hmac.compare_digest(o, w) for w in wanted for o in offered]  # all are compared
    if not any(fits):
        raise Unauthorized(
            f"{header} does not match the request and the secret",
            remedy="use the same secret on both sides, and pass the body on byte for byte",
        )


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
