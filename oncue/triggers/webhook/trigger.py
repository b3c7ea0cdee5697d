"""WebhookTrigger, `kind: webhook`: makes events of POST /hooks/<name>.

    sender ──POST──► API ──receive──► verify ──► make CloudEvents ──► emit (durable) ──► 202

CloudEvents (structured, batched, binary) keep their own id, source and type. Any other request
becomes the data of an event:

    type     `type` of the options, else as the sender says (senders.py), else oncue.webhook.<name>
    source   oncue:///hooks/<name>
    id       the header `id-header`, webhook-id, X-GitHub-Delivery or Idempotency-Key, or an id in
             the body of Stripe or Slack: a repeated request is the same event. Without one, each
             request is a new event, or by `identity: body` each different body
    data     JSON, text, an unpacked form, or bytes (body.py)
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import quote

import msgspec

from oncue import ids
from oncue.clocks.process import now_us
from oncue.errors import Forbidden, Invalid, NotFound, OncueError, TooLarge, TriggerFailed
from oncue.protocol.cloudevents import time_text
from oncue.protocol.cloudevents_http import events_from_http
from oncue.protocol.records import EVENT_BYTES, Event
from oncue.triggers.activity import ActivityLog
from oncue.triggers.base import Decision, HookAnswer, HttpTrigger, Rights, Status, TriggerContext
from oncue.triggers.webhook import signatures
from oncue.triggers.webhook.body import read_body
from oncue.triggers.webhook.options import REFERENCE, WebhookOptions, read_verify
from oncue.triggers.webhook.senders import BODY_IDS, sent_id, sent_type, slack_challenge

CHECK_S = 5.0  # between looks at the secrets; requests look by themselves
LARGE_BYTES = 16 * 1024  # of a body that is read beside the event loop
_ID_HEADERS = ("webhook-id", "x-github-delivery", "idempotency-key")
_JSON = {"content-type": "application/json"}


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
        self._verification = read_verify(options.verify, self._place)
        # GitHub signs the body alone: who sends a request again may choose another delivery id.
        self._by_body_alone = options.identity == "body" and self._verification.signs_body_only

    @classmethod
    def check_rights(cls, options: Any, rights: Rights) -> None:
        if not rights.restricted:
            return
        for secret in read_verify(options.verify, "verify").secrets:
            found = REFERENCE.fullmatch(secret)
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
        while self._verification.method != "none":
            try:
                self._keys()
            except OncueError as e:
                self._activity.state, self._activity.detail = "failed", self._activity.detail or str(e)
            await asyncio.sleep(CHECK_S)
        await asyncio.Event().wait()  # the API calls `receive`

    async def receive(self, headers: Mapping[str, str], body: bytes) -> HookAnswer:
        """Verify a request and emit its events; return 202 when they are durable.

        Raises TooLarge, Unauthorized, Invalid; TriggerFailed if a secret is missing, so that the
        sender tries again; and the errors of `emit`.
        """
        try:
            if len(body) > LARGE_BYTES:
                events = await asyncio.to_thread(self._read, headers, body)
            else:
                events = self._read(headers, body)
        except OncueError as e:
            self._activity.record_skipped("a request", e.message)
            raise
        if isinstance(events, str):
            return 200, {"content-type": "text/plain"}, events.encode()
        if events:
            await self.context.emit(events)
        self._activity.emitted += len(events)
        self._activity.last_us = now_us()
        for event in events:
            self._activity.record_fired(event.id, event.type, self._activity.last_us)
        return 202, dict(_JSON), msgspec.json.encode({"accepted": len(events)})

    def handshake(self, headers: Mapping[str, str]) -> HookAnswer:
        """Answer the handshake of CloudEvents' HTTP 1.1 Web Hooks (section 4)."""
        status, answered, body = super().handshake(headers)
        origin = headers.get("webhook-request-origin", "").strip()
        if not origin:
            return status, answered, body
        if self._options.origins and origin.lower() not in (known.lower() for known in self._options.origins):
            raise Forbidden(
                f"{origin[:200]!r} is not one of the origins of this webhook",
                remedy="its owner adds it to `origins` of the trigger",
            )
        answered["webhook-allowed-origin"] = origin
        if "webhook-request-rate" in headers:
            answered["webhook-allowed-rate"] = "*"
        return status, answered, body

    # ------------------------------------------------------------ a request

    def _read(self, headers: Mapping[str, str], body: bytes) -> list[Event] | str:
        """Return the events of a request, or the answer to a test of the address."""
        if len(body) > EVENT_BYTES:
            raise TooLarge(
                f"the request has {len(body):,} bytes; an event has at most {EVENT_BYTES:,}",
                remedy="send a link to the data instead of the data",
                limit_bytes=EVENT_BYTES,
            )
        self._verify(headers, body)
        # Who sends a request again may add the headers of another event.
        if self._by_body_alone or self._verification.method in BODY_IDS:
            headers = {name: value for name, value in headers.items() if not name.startswith("ce-")}
        events = events_from_http(headers, body)
        if events is not None:
            return [self._marked(event) for event in events]
        method = self._verification.method
        kind, data = read_body(headers.get("content-type", ""), body, unpack_forms=method == "slack")
        if method == "slack" and (challenge := slack_challenge(data)):
            return challenge
        return [self._wrapped(headers, body, kind, data)]

    def _marked(self, event: Event) -> Event:
        """Replace extensions that begin with oncue: they are reserved."""
        extensions = {name: value for name, value in event.extensions.items() if not name.startswith("oncue")}
        return msgspec.structs.replace(event, extensions=extensions | self._marks())

    def _marks(self) -> dict[str, str | int | bool]:
        return {"oncuetrigger": self.name, "oncuemarkus": str(now_us())}

    def _wrapped(self, headers: Mapping[str, str], body: bytes, kind: str | None, data: Any) -> Event:
        return Event(
            id=self._id(headers, body, data),
            source=self._source,
            type=self._type(headers, data),
            time=time_text(),
            datacontenttype=kind,
            data=data,
            extensions=self._marks(),
        )

    def _type(self, headers: Mapping[str, str], data: Any) -> str:
        sent = "" if self._options.type else sent_type(self._verification.method, headers, data)
        return sent or self._options.event_type(self.name)

    def _id(self, headers: Mapping[str, str], body: bytes, data: Any) -> str:
        method = self._verification.method
        if not self._by_body_alone:
            for name in (self._options.id_header.lower(), *(() if method in BODY_IDS else _ID_HEADERS)):
                if headers.get(name):
                    return headers[name]
        if self._options.identity == "body":
            return hashlib.blake2b(body, digest_size=16).hexdigest()
        return sent_id(method, headers, body, data) or ids.new_uuid7().hex()

    # ------------------------------------------------------------ secrets

    def _verify(self, headers: Mapping[str, str], body: bytes) -> None:
        verification = self._verification
        method, tolerance_s = verification.method, verification.tolerance_s
        if method == "none":
            return
        keys, clocks = self._keys(), signatures.Clocks(now_us() / 1e6, time.time())
        if verification.scheme is not None:
            signatures.any_hmac(headers, body, keys, verification.scheme, clocks, tolerance_s)
        elif method == "standard_webhooks":
            signatures.standard_webhooks(headers, body, keys, clocks, tolerance_s)
        elif method == "stripe":
            signatures.stripe(headers, body, keys, clocks, tolerance_s)
        elif method == "github":
            signatures.github(headers, body, keys)
        elif method == "gitlab":
            signatures.gitlab(headers, keys)
        else:
            signatures.bearer(headers, keys)

    def _keys(self) -> list[bytes]:
        """Read the secrets anew, so that a changed one is valid at once.

        Raises TriggerFailed.
        """
        keys, missing, remedy = [], "", ""
        for written in self._verification.secrets:
            try:
                secret = self._resolve(written)
                standard = self._verification.method == "standard_webhooks"
                keys.append(signatures.standard_key(secret) if standard else secret.encode())
            except (NotFound, Invalid, Forbidden) as e:
                missing = f"{written}: {e.message}" if REFERENCE.fullmatch(written) else e.message
                remedy = e.remedy
        if missing and self._activity.state != "starting":
            # The remedy has paths of the server: for the owner, not for senders.
            self._activity.detail = f"{missing} ({remedy})" if remedy else missing
        if not keys:
            self._activity.state = "failed"
            raise TriggerFailed(f"{self._place}: {missing}", remedy="store the secret on the server; senders try again")
        self._activity.state = "running"
        if not missing:
            self._activity.detail = ""
        return keys

    def _resolve(self, written: str) -> str:
        reference = REFERENCE.fullmatch(written)
        if reference is None:
            return written
        self.check_rights(self._options, self.context.rights)
        place, name = reference.groups()
        secret = self.context.secrets(name) if place == "secret" else os.environ.get(name, "")
        if not secret.strip():
            what = "secret" if place == "secret" else "environment variable"
            raise NotFound(f"there is no such {what}", remedy=f"set the {what} {name} for the server")
        return secret
