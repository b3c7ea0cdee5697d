"""Keys of `kind: webhook` in a rule file, and the Verification that they ask for."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from oncue.errors import Invalid
from oncue.protocol.codec import build_decoders
from oncue.quantities import duration_ms
from oncue.triggers.webhook.signatures import SLACK, HmacScheme, standard_key

REFERENCE = re.compile(r"\$\{(secret|env):([^{}]+)\}")
_NAMES = {"secret": re.compile(r"[A-Za-z0-9._-]+"), "env": re.compile(r"[A-Za-z_][A-Za-z0-9_]*")}
_REMEDY = 'write verify: {bearer: "${secret:NAME}"}, or github or standard-webhooks there; or, openly, verify: none'
_METHODS = ("standard_webhooks", "github", "gitlab", "stripe", "slack", "bearer")
_HMACS = ("hmac_sha1", "hmac_sha256", "hmac_sha384", "hmac_sha512")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
_ORIGIN_CHARS = 253

Secret = str | tuple[str, ...]


class VerifyOptions(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={name: name.replace("_", "-") for name in ("standard_webhooks", *_HMACS)},
):
    """Authentication of the senders; exactly one method.

    A list holds the new and the old secret while a secret is being changed.
    """

    standard_webhooks: Secret = ()
    github: Secret = ()
    gitlab: Secret = ()
    stripe: Secret = ()
    slack: Secret = ()
    bearer: Secret = ()
    hmac_sha1: Secret = ()
    hmac_sha256: Secret = ()
    hmac_sha384: Secret = ()
    hmac_sha512: Secret = ()
    header: str = ""  # with the signature of hmac-...
    prefix: str = ""  # of the signature: "sha256="
    encoding: Literal["hex", "base64", "base64url"] = "hex"  # of the signature
    timestamp: str = ""  # with the time of the signature, if it is signed
    signed: str = ""  # the text that is signed: "{timestamp}.{body}"
    tolerance: str | int | float = "5m"  # greatest age of a signed time


class WebhookOptions(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"id_header": "id-header"}
):
    """Keys of `kind: webhook` in a rule file.

    Secrets are texts, or better "${secret:name}" (kept by the server) or "${env:NAME}".
    """

    verify: Annotated[VerifyOptions | Literal["none"] | None, msgspec.Meta(extra={"remedy": _REMEDY})] = None
    type: str = ""  # type of the events made of requests that are not CloudEvents
    identity: Literal["request", "body"] = "request"  # of a request that no header identifies
    id_header: str = ""  # that has the id of the event
    origins: tuple[str, ...] = ()  # senders that the handshake of CloudEvents admits; (): all

    def __post_init__(self) -> None:
        """Check the options, so that a deploy refuses wrong ones."""
        try:
            read_verify(self.verify, "verify")
            _check_header(self.id_header, "id-header")
        except Invalid as e:
            raise ValueError(f"{e.message} ({e.remedy})") from None
        self._check_origins()

    def event_type(self, name: str) -> str:
        """Return the type of the events of this trigger, if the sender gives none."""
        return self.type or f"oncue.webhook.{name}"

    def _check_origins(self) -> None:
        if any(not 0 < len(origin) <= _ORIGIN_CHARS or not origin.isprintable() for origin in self.origins):
            raise ValueError("origins: these are names of hosts, such as eventgrid.azure.net")


class Verification(msgspec.Struct, frozen=True):
    """A method of verifying requests. `secrets` are as written in the rule file."""

    method: str  # a field of VerifyOptions, "hmac", or "none"
    secrets: tuple[str, ...] = ()
    tolerance_s: float = 0.0
    scheme: HmacScheme | None = None  # of slack and hmac

    @property
    def signs_body_only(self) -> bool:
        """True if the sender signs neither a time nor an id."""
        return self.method == "github" or (self.scheme is not None and not self.scheme.timestamp)


def read_verify(verify: VerifyOptions | str | None, place: str) -> Verification:
    """Return the Verification. Raises Invalid, which names the place."""
    if verify == "none":
        return Verification("none")
    if not isinstance(verify, VerifyOptions):
        raise Invalid(f"{place} is missing: anybody could send events", remedy=_REMEDY)
    given: dict[str, Any] = {m: getattr(verify, m) for m in (*_METHODS, *_HMACS) if getattr(verify, m)}
    if len(given) != 1:
        raise Invalid(f"{place} names {len(given)} methods; it needs one", remedy=_REMEDY)
    ((method, secrets),) = given.items()
    secrets = (secrets,) if isinstance(secrets, str) else tuple(secrets)
    for secret in secrets:
        _check_secret(secret, method, place)
    try:
        tolerance_s = duration_ms(verify.tolerance) / 1000
    except ValueError as e:
        raise Invalid(f"{place}.tolerance: {e}", remedy="write 5m") from None
    if method in _HMACS:
        return Verification("hmac", secrets, tolerance_s, _scheme(verify, method, place))
    for name in ("header", "prefix", "timestamp", "signed"):
        if getattr(verify, name):
            raise Invalid(f"{place}.{name}: is for hmac-sha256 and its like", remedy="leave it out")
    return Verification(method, secrets, tolerance_s, SLACK if method == "slack" else None)


def _scheme(verify: VerifyOptions, method: str, place: str) -> HmacScheme:
    name = method.replace("_", "-")
    if not verify.header:
        raise Invalid(f"{place}: {name} lacks `header`", remedy=f"write {{{name}: ..., header: X-Signature}}")
    _check_header(verify.header, f"{place}.header")
    _check_header(verify.timestamp, f"{place}.timestamp")
    signed = verify.signed or ("{timestamp}.{body}" if verify.timestamp else "{body}")
    if signed.count("{body}") != 1 or not signed.isprintable():
        raise Invalid(f"{place}.signed: {signed!r} needs {{body}} once", remedy='write "{timestamp}.{body}"')
    if ("{timestamp}" in signed) != bool(verify.timestamp):
        remedy = 'name the header with the time, and sign it: timestamp: X-Timestamp, signed: "{timestamp}.{body}"'
        raise Invalid(f"{place}: `timestamp` and {{timestamp}} in `signed` go together", remedy=remedy)
    algorithm = method.partition("_")[2]
    header, timestamp = verify.header.lower(), verify.timestamp.lower()
    return HmacScheme(algorithm, header, verify.prefix, verify.encoding, timestamp, signed)


def _check_header(name: str, place: str) -> None:
    if name and not _HEADER.fullmatch(name):
        raise Invalid(f"{place}: {name[:100]!r} is not the name of a header", remedy="write it like X-Signature")


def _check_secret(secret: str, method: str, place: str) -> None:
    if not secret.strip():
        raise Invalid(f"{place}: an empty secret would match any request", remedy=_REMEDY)
    _check_reference(secret, place)
    if method == "standard_webhooks" and not REFERENCE.fullmatch(secret):
        try:
            standard_key(secret)
        except Invalid as e:
            raise Invalid(f"{place}: {e.message}", remedy=e.remedy) from None


def _check_reference(secret: str, place: str) -> None:
    """Raises Invalid for a malformed reference.

    It would otherwise be used as the secret itself.
    """
    found = REFERENCE.fullmatch(secret)
    if found is None and secret.startswith("${"):
        raise Invalid(f"{place}: {secret!r} is not a reference", remedy='write "${secret:NAME}" or "${env:NAME}"')
    if found is not None and not _NAMES[found[1]].fullmatch(found[2]):
        what = "a secret: letters, digits, _ . -" if found[1] == "secret" else "a variable: letters, digits, _"
        raise Invalid(f"{place}: {found[2]!r} names no {what[2:].partition(':')[0]}", remedy=f"name {what}")


build_decoders(globals())
