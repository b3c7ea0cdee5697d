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
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from oncue.errors import Invalid, Unauthorized

TOLERANCE_S = 300.0
MILLISECONDS_DIGITS = 13


class Clocks(NamedTuple):
    """The time of this process, and the system clock's.

    They differ after a step, and the sender's clock may agree with either.
    """

    now_s: float
    system_s: float | None = None


class HmacScheme(NamedTuple):
    """An HMAC of the body, or of a text with the body and a time in it."""

    algorithm: str  # sha256 ...
    header: str  # that has the signature; in lower case
    prefix: str = ""  # of the signature
    encoding: str = "hex"  # or base64, base64url
    timestamp: str = ""  # header with the time, in lower case; "": the time is not signed
    signed: str = "{body}"  # with {timestamp}, if there is one


SLACK = HmacScheme("sha256", "x-slack-signature", "v0=", "hex", "x-slack-request-timestamp", "v0:{timestamp}:{body}")


def standard_webhooks(
    headers: Mapping[str, str],
    body: bytes,
    keys: Sequence[bytes],
    clocks: Clocks,
    tolerance_s: float = TOLERANCE_S,
) -> None:
    """Verify a request by Standard Webhooks 1.0. Raises Unauthorized.

    The header webhook-signature holds the HMAC-SHA256 of `id.timestamp.body` as `v1,<base64>`, or
    several with spaces between. `keys` come from `standard_key`.
    """
    message_id, stamp, given = (headers.get(f"webhook-{part}", "") for part in ("id", "timestamp", "signature"))
    for part, value in (("id", message_id), ("timestamp", stamp), ("signature", given)):
        if not value:
            raise Unauthorized(f"the header webhook-{part} is missing", remedy="sign requests by Standard Webhooks")
    _check_age(stamp, "webhook-timestamp", clocks, tolerance_s)
    signed = _bytes(f"{message_id}.{stamp}.") + body
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
    offered = _bytes(given)
    wanted = (b"sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest().encode() for key in keys)
    _one_of([offered], wanted, "X-Hub-Signature-256")


def any_hmac(
    headers: Mapping[str, str],
    body: bytes,
    keys: Sequence[bytes],
    scheme: HmacScheme,
    clocks: Clocks,
    tolerance_s: float = TOLERANCE_S,
) -> None:
    """Verify a request signed by an HMAC. Raises Unauthorized.

    The header may hold several signatures, with commas or spaces between them; one is enough.
    """
    given = _required(headers, scheme.header)
    before, _, after = scheme.signed.partition("{body}")
    if scheme.timestamp:
        stamp = _required(headers, scheme.timestamp)
        _check_age(stamp, scheme.timestamp, clocks, tolerance_s)
        before, after = (part.replace("{timestamp}", stamp) for part in (before, after))
    message = _bytes(before) + body + _bytes(after)
    values = [v.removeprefix(scheme.prefix) for v in re.split(r"[,\s]+", given) if v.startswith(scheme.prefix)]
    wanted = (hmac.digest(key, message, scheme.algorithm) for key in keys)
    _one_of([_decoded(value, scheme.encoding) for value in values], wanted, scheme.header)


def stripe(
    headers: Mapping[str, str],
    body: bytes,
    keys: Sequence[bytes],
    clocks: Clocks,
    tolerance_s: float = TOLERANCE_S,
) -> None:
    """Verify a request of Stripe. Raises Unauthorized.

    The header Stripe-Signature is `t=<unix seconds>,v1=<hex HMAC-SHA256 of time.body>`, maybe with
    several of v1.

    https://docs.stripe.com/webhooks/signature
    """
    pairs = [part.strip().partition("=") for part in _required(headers, "stripe-signature").split(",")]
    stamp = next((value for name, _, value in pairs if name == "t"), "")
    _check_age(stamp, "the time `t` in Stripe-Signature", clocks, tolerance_s)
    message = f"{stamp}.".encode() + body
    offered = [_decoded(value, "hex") for name, _, value in pairs if name == "v1"]
    _one_of(offered, (hmac.digest(key, message, "sha256") for key in keys), "Stripe-Signature")


def gitlab(headers: Mapping[str, str], tokens: Sequence[bytes]) -> None:
    """Verify X-Gitlab-Token, which is the secret itself. Raises Unauthorized."""
    _one_of([_bytes(_required(headers, "x-gitlab-token"))], tokens, "X-Gitlab-Token")


def bearer(headers: Mapping[str, str], tokens: Sequence[bytes]) -> None:
    """Verify the header `Authorization: Bearer <token>`. Raises Unauthorized."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("there is no bearer token", remedy="send the header Authorization: Bearer <token>")
    _one_of([_bytes(token.strip())], tokens, "Authorization")


def _one_of(offered: Sequence[bytes], wanted: Iterable[bytes], header: str) -> None:
    fits = [hmac.compare_digest(o, w) for w in wanted for o in offered]  # all are compared
    if not any(fits):
        raise Unauthorized(
            f"{header} does not match the request and the secret",
            remedy="use the same secret on both sides, and pass the body on byte for byte",
        )


def _required(headers: Mapping[str, str], name: str) -> str:
    found = headers.get(name, "")
    if not found:
        raise Unauthorized(f"the header {name} is missing", remedy="set the webhook's secret where it is sent from")
    return found


def _check_age(stamp: str, name: str, clocks: Clocks, tolerance_s: float) -> None:
    """Raise Unauthorized unless a request was signed a short time ago.

    `stamp`: unix seconds, or milliseconds, which have 13 digits for the next 200 years.
    """
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 16):
        raise Unauthorized(f"{name} is not a time", remedy="send unix seconds")
    signed_s = int(stamp) / 1000 if len(stamp) == MILLISECONDS_DIGITS else int(stamp)
    age_s = min((clock_s - signed_s for clock_s in clocks if clock_s is not None), key=abs)
    if abs(age_s) > tolerance_s:
        when = f"{age_s:.0f} s old" if age_s > 0 else f"{-age_s:.0f} s in the future"
        raise Unauthorized(
            f"the request was signed at a time that is {when}; at most {tolerance_s:g} s are allowed",
            remedy="check for a repeated old request or a wrong clock (NTP); `tolerance` sets the limit",
        )


def _decoded(text: str, encoding: str) -> bytes:
    """Return a signature's bytes; b"": it has another encoding."""
    if encoding == "hex":
        try:
            return bytes.fromhex(text) if text.isalnum() else b""
        except ValueError:
            return b""
    padded = text + "=" * (-len(text) % 4)
    return _unbase64(padded if encoding == "base64" else padded.replace("-", "+").replace("_", "/"))


def _bytes(text: str) -> bytes:
    """Return the bytes of a header's value."""
    return text.encode("utf-8", "surrogateescape")


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
