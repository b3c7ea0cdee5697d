"""CloudEvents over HTTP, as webhooks and POST /v1/events receive them.

    structured   application/cloudevents+json         one event
    batched      application/cloudevents-batch+json   a list of events
    binary       ce-id, ce-source, ce-type ...        the body is the data, content-type its type

Source: the CloudEvents HTTP protocol binding 1.0.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

import msgspec

from oncue.errors import Invalid, TooLarge
from oncue.protocol.charsets import media_type
from oncue.protocol.cloudevents import STRUCTURED, from_json, from_record
from oncue.protocol.codec import DECODE_ERRORS
from oncue.protocol.records import EVENT_BYTES, Event

BATCHED = "application/cloudevents-batch+json"
BATCH_COMMAS = 1 << 19  # 8 for each of 65,536 events
EVENT_CONTAINERS = 1 << 17  # lists and objects in the data of one event: they are decoded several times
_MARKS = ("ce-specversion", "ce-id", "ce-type", "ce-source")
_raw_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_raw_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def events_from_http(headers: Mapping[str, str], body: bytes) -> list[Event] | None:
    """Parse the events of a request; None if it is not in a mode of CloudEvents.

    `headers` have lower-case names. Raises Invalid, which names the attribute (and the index in a
    batch), and TooLarge for an event over EVENT_BYTES.
    """
    kind = media_type(headers.get("content-type", ""))
    if kind == STRUCTURED:
        return [_structured(body)]
    if kind == BATCHED:
        return _batch(body)
    if kind.startswith("application/cloudevents"):
        raise Invalid(f"content-type: {kind} is not a form of events that oncue reads", remedy=f"send {STRUCTURED}")
    if any(mark in headers for mark in _MARKS):
        check_size(body)
        return [_binary(headers, body)]
    return None


def check_no_cloudevent(body: bytes) -> None:
    """Raise Invalid for CloudEvents in a body that is no plain event."""
    if _begins(body, b"["):
        raise Invalid("content-type: it names one event, and the body is a list", remedy=f"send a batch as {BATCHED}")
    try:
        is_event = b'"specversion"' in body and "specversion" in _raw_object(body)
    except DECODE_ERRORS:
        return
    if is_event:
        raise Invalid(
            "content-type: the body is a CloudEvent, and its type does not say so", remedy=f"send {STRUCTURED}"
        )


def _begins(body: bytes, mark: bytes) -> bool:
    return body[:64].lstrip().startswith(mark)


def _structured(body: bytes) -> Event:
    if _begins(body, b"["):
        raise Invalid("an event is a JSON object, not a list", remedy=f"send a list of events as {BATCHED}")
    check_size(body)
    check_containers(body)
    return from_json(body)


def check_size(body: bytes) -> None:
    """Check the size of an event as it was sent. Raises TooLarge."""
    if len(body) > EVENT_BYTES:
        raise TooLarge(
            f"the event has {len(body):,} bytes; at most {EVENT_BYTES:,} are taken",
            remedy="send a link to the data instead of the data (dataref)",
            limit_bytes=EVENT_BYTES,
        )


def check_containers(body: bytes) -> None:
    """Check that an event in JSON is decoded in a short time. Raises TooLarge."""
    if body.count(b"[") + body.count(b"{") > EVENT_CONTAINERS:
        raise TooLarge(
            f"the event has more than {EVENT_CONTAINERS:,} lists and objects",
            remedy="put the data where the function can read it, and its place into the event",
        )


def _batch(body: bytes) -> list[Event]:
    if body.count(b",") > BATCH_COMMAS:  # a list of so many parts would be made in one go
        raise TooLarge(f"the batch has more than {BATCH_COMMAS:,} commas", remedy="send fewer events at once")
    if _begins(body, b"{"):
        raise Invalid("not a batch: it is one object", remedy=f"send one event as {STRUCTURED}")
    try:
        items = _raw_list(body)
    except DECODE_ERRORS as e:
        raise Invalid(f"not a batch: {e}", remedy="a batch is a JSON list of events, in UTF-8") from None
    events = []
    for i, item in enumerate(items):
        try:
            events.append(_structured(bytes(item)))
        except (Invalid, TooLarge) as e:
            raise type(e)(f"event {i} of the batch: {e.message}", remedy=e.remedy, **e.details) from None
    return events


def _binary(headers: Mapping[str, str], body: bytes) -> Event:
    found = [(f"ce_{name[3:]}", _value(text)) for name, text in headers.items() if name.startswith("ce-")]
    if "content-type" in headers:
        found.append(("content-type", headers["content-type"].encode("utf-8", "surrogateescape")))
    return from_record(body, found)


def _value(text: str) -> bytes:
    """Decode a header's value: percent-encoded UTF-8, maybe quoted.

    See section 3.1.3.2 of the HTTP binding.
    """
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return unquote_to_bytes(text.encode("utf-8", "surrogateescape"))
