"""WebhookTrigger, `kind: webhook`: makes events of POST /hooks/<name>.

    sender ──POST──► API ──receive──► verify ──► make CloudEvents ──► emit (durable) ──► 202

CloudEvents (structured, batched, binary) keep their own id, source and type. Any other request
becomes the data of an event:

    type     `type` of the options, else github.<X-GitHub-Event>, else oncue.webhook.<name>
    source   oncue:///hooks/<name>
    id       webhook-id, X-GitHub-Delivery or Idempotency-Key: a repeated request is the same event.
             Without one, each request is a new event, or by `identity: body` each different body
    data     JSON, else text or bytes
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import quote

import msgspec

from oncue import ids
from oncue.clocks.process import now_us
from oncue.errors import Forbidden, Invalid, NotFound, OncueError, TooLarge, TriggerFailed
from oncue.protocol.cloudevents import time_text
from oncue.protocol.cloudevents_http import check_containers, events_from_http
from oncue.protocol.codec import DECODE_ERRORS, build_decoders
from oncue.protocol.records import EVENT_BYTES, NAME_CHARS, Event
from oncue.quantities import duration_ms
from oncue.triggers.activity import ActivityLog
from oncue.triggers.base import Decision, HttpTrigger, Rights, Status, TriggerContext
from oncue.triggers.webhook import signatures

CHECK_S = 5.0  # between looks at the secrets; requests look by themselves
_REFERENCE = re.compile(r"\$\{(secret|env):([^{}]+)\}")
_ID_HEADERS = ("webhook-id", "x-github-delivery", "idempotency-key")
_ANSWER = {"content-type": "application/json"}
_NAMES = {"secret": re.compile(r"[A-Za-z0-9._-]+"), "env": re.compile(r"[A-Za-z_][A-Za-z0-9_]*")}
_REMEDY = 'write verify: {bearer: "${secret:NAME}"}, or github or standard-webhooks there; or, openly, verify: none'

Secret = str | tuple[str, ...]


class VerifyOptions(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"standard_webhooks": "standard-webhooks"},
):
    """Authentication of the senders; exactly one method.

    A list holds the new and the old secret while a secret is being changed.
    """

    standard_webhooks: Secret = ()
    github: Secret = ()
    bearer: Secret = ()
    tolerance: str | int | float = "5m"  # greatest age of a request of standard-webhooks


class WebhookOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of `kind: webhook` in a rule file.

    Secrets are texts, or better "${secret:name}" (kept by the server) or "${env:NAME}".
    """

    verify: Annotated[VerifyOptions | Literal["none"] | None, msgspec.Meta(extra={"remedy": _REMEDY})] = None
    type: str = ""  # type of the events made of requests that are not CloudEvents
    identity: Literal["request", "body"] = "request"  # of a request that no header identifies

    def __post_init__(self) -> None:
        """Check the options, so that a deploy refuses wrong ones."""
        try:
            read_verify(self.verify, "verify")
        except Invalid as e:
            raise ValueError(f"{e.message} ({e.remedy})") from None


class WebhookTrigger(HttpTrigger):
    """Turns requests into events.

    `run` only checks the secrets: the API calls `receive`.
    """

    kind: ClassVar[str] = "webhook"
    options = WebhookOptions

    def __init__(self, name: str, options: WebhookOptions, context: TriggerContext) -> None:
        super().__init__(name, options, context)
        self._options = options
        self._place = f"trigger {name!r}: verify"
        self._source = f"oncue:///hooks/{quote(name, safe='')}"
        self._activity = ActivityLog()
        self._method, self._secrets, self._tolerance_s = read_verify(options.verify, self._place)

    @classmethod
    def check_rights(cls, options: Any, rights: Rights) -> None:
        if not rights.restricted:
            return
        _, secrets, _ = read_verify(options.verify, "verify")
        for secret in secrets:
            found = _REFERENCE.fullmatch(secret)
            if found is not None and found[1] == "env":
                raise Forbidden(
                    f"{secret}: only a rule file that an admin deploys may name variables of the server",
                    remedy='write "${secret:NAME}"; an admin gives you the secret',
                )

    def status(self) -> Status:
        return self._activity.status()

    def decisions(self) -> list[Decision]:
        return self._activity.decisions()

    async def run(self) -> None:
        self._activity.state = "running"
        while self._method != "none":
            try:
                self._keys()
            except OncueError as e:
                self._activity.state, self._activity.detail = "failed", self._activity.detail or str(e)
            await asyncio.sleep(CHECK_S)
        await asyncio.Event().wait()  # the API calls `receive`

    async def receive(self, headers: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Verify a request and emit its events; return 202 when they are durable.

        Raises TooLarge, Unauthorized, Invalid; TriggerFailed if a secret is missing, so that the
        sender tries again; and the errors of `emit`.
        """
        try:
            events = self._read(headers, body)
        except OncueError as e:
            self._activity.record_skipped("a request", e.message)
            raise
        if events:
            await self.context.emit(events)
        self._activity.emitted += len(events)
        self._activity.last_us = now_us()
        for event in events:
            self._activity.record_fired(event.id, event.type, self._activity.last_us)
        return 202, dict(_ANSWER), msgspec.json.encode({"accepted": len(events)})

    # ------------------------------------------------------------ a request

    def _read(self, headers: Mapping[str, str], body: bytes) -> list[Event]:
        if len(body) > EVENT_BYTES:
            raise TooLarge(
                f"the request has {len(body):,} bytes; an event has at most {EVENT_BYTES:,}",
                remedy="send a link to the data instead of the data",
                limit_bytes=EVENT_BYTES,
            )
        self._verify(headers, body)
        events = events_from_http(headers, body)
        return [self._marked(event) for event in events] if events is not None else [self._wrapped(headers, body)]

    def _marked(self, event: Event) -> Event:
        """Replace extensions that begin with oncue: they are reserved."""
        extensions = {name: value for name, value in event.extensions.items() if not name.startswith("oncue")}
        return msgspec.structs.replace(event, extensions=extensions | self._marks())

    def _marks(self) -> dict[str, str | int | bool]:
        return {"oncuetrigger": self.name, "oncuemarkus": str(now_us())}

    def _wrapped(self, headers: Mapping[str, str], body: bytes) -> Event:
        kind, data = _data(headers.get("content-type", ""), body)
        return Event(
            id=self._id(headers, body),
            source=self._source,
            type=self._type(headers),
            time=time_text(),
            datacontenttype=kind,
            data=data,
            extensions=self._marks(),
        )

    def _type(self, headers: Mapping[str, str]) -> str:
        if self._options.type:
            return self._options.type
        event = headers.get("x-github-event", "")[:NAME_CHARS]
        return f"github.{event}" if event else f"oncue.webhook.{self.name}"

    def _id(self, headers: Mapping[str, str], body: bytes) -> str:
        # GitHub signs the body alone: who sends a request again may choose another delivery id.
        if self._method == "github" and self._options.identity == "body":
            return hashlib.blake2b(body, digest_size=16).hexdigest()
        for name in _ID_HEADERS:
            if headers.get(name):
                return headers[name]
        if self._options.identity == "body":
            return hashlib.blake2b(body, digest_size=16).hexdigest()
        return ids.new_uuid7().hex()

    # ------------------------------------------------------------ secrets

    def _verify(self, headers: Mapping[str, str], body: bytes) -> None:
        if self._method == "none":
            return
        keys = self._keys()
        if self._method == "standard_webhooks":
            now_s = now_us() / 1e6
            signatures.standard_webhooks(headers, body, keys, now_s, self._tolerance_s, time.time())
        elif self._method == "github":
            signatures.github(headers, body, keys)
        else:
            signatures.bearer(headers, keys)

    def _keys(self) -> list[bytes]:
        """Read the secrets anew, so that a changed one is valid at once.

        Raises TriggerFailed.
        """
        keys, missing, remedy = [], "", ""
        for written in self._secrets:
            try:
                secret = self._resolve(written)
                keys.append(signatures.standard_key(secret) if self._method == "standard_webhooks" else secret.encode())
            except (NotFound, Invalid, Forbidden) as e:
                missing = f"{written}: {e.message}" if _REFERENCE.fullmatch(written) else e.message
                remedy = e.remedy
        if (
            missing and self._activity.state != "starting"
        ):  # the remedy has paths of the server: for the owner, not for senders
            self._activity.detail = f"{missing} ({remedy})" if remedy else missing
        if not keys:
            self._activity.state = "failed"
            raise TriggerFailed(f"{self._place}: {missing}", remedy="store the secret on the server; senders try again")
        self._activity.state = "running"
        if not missing:
            self._activity.detail = ""
        return keys

    def _resolve(self, written: str) -> str:
        reference = _REFERENCE.fullmatch(written)
        if reference is None:
            return written
        self.check_rights(self._options, self.context.rights)
        place, name = reference.groups()
        secret = self.context.secrets(name) if place == "secret" else os.environ.get(name, "")
        if not secret.strip():
            what = "secret" if place == "secret" else "environment variable"
            raise NotFound(f"there is no such {what}", remedy=f"set the {what} {name} for the server")
        return secret


def read_verify(verify: VerifyOptions | str | None, place: str) -> tuple[str, tuple[str, ...], float]:
    """Return (method, secrets as written, tolerance in s).

    Raises Invalid, which names the place.
    """
    if verify == "none":
        return "none", (), 0.0
    if not isinstance(verify, VerifyOptions):
        raise Invalid(f"{place} is missing: anybody could send events", remedy=_REMEDY)
    given: dict[str, Any] = {
        method: getattr(verify, method)
        for method in ("standard_webhooks", "github", "bearer")
        if getattr(verify, method)
    }
    if len(given) != 1:
        raise Invalid(f"{place} names {len(given)} methods; it needs one", remedy=_REMEDY)
    ((method, secrets),) = given.items()
    secrets = (secrets,) if isinstance(secrets, str) else secrets
    for secret in secrets:
        if not secret.strip():
            raise Invalid(f"{place}: an empty secret would match any request", remedy=_REMEDY)
        _check_reference(secret, place)
        if method == "standard_webhooks" and not _REFERENCE.fullmatch(secret):
            try:
                signatures.standard_key(secret)
            except Invalid as e:
                raise Invalid(f"{place}: {e.message}", remedy=e.remedy) from None
    try:
        tolerance_s = duration_ms(verify.tolerance) / 1000
    except ValueError as e:
        raise Invalid(f"{place}.tolerance: {e}", remedy="write 5m") from None
    return method, tuple(secrets), tolerance_s


def _check_reference(secret: str, place: str) -> None:
    """Raises Invalid for a malformed reference.

    It would otherwise be used as the secret itself.
    """
    found = _REFERENCE.fullmatch(secret)
    if found is None and secret.startswith("${"):
        raise Invalid(f"{place}: {secret!r} is not a reference", remedy='write "${secret:NAME}" or "${env:NAME}"')
    if found is not None and not _NAMES[found[1]].fullmatch(found[2]):
        what = "a secret: letters, digits, _ . -" if found[1] == "secret" else "a variable: letters, digits, _"
        raise Invalid(f"{place}: {found[2]!r} names no {what[2:].partition(':')[0]}", remedy=f"name {what}")


def _data(content_type: str, body: bytes) -> tuple[str | None, Any]:
    """Return (content type, data) of a body.

    Raises Invalid if it claims to be JSON and is not, TooLarge.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if not body:
        return None, None
    if kind.endswith(("/json", "+json")):
        check_containers(body)
        try:
            return content_type, msgspec.json.decode(body)
        except DECODE_ERRORS as e:
            raise Invalid(
                f"the body is not valid JSON, but its content type says so: {e}", remedy="send JSON in UTF-8"
            ) from e
    textual = kind.startswith("text/") or kind in ("", "application/x-www-form-urlencoded")
    # curl -d '{...}' sends the content type of a form.
    if textual and body.lstrip()[:1] in (b"{", b"["):
        check_containers(body)
        try:
            return "application/json", msgspec.json.decode(body)
        except DECODE_ERRORS:
            pass
    if textual:
        try:
            return content_type or "text/plain", body.decode()
        except UnicodeDecodeError:
            pass
    return content_type or "application/octet-stream", body


build_decoders(globals())
