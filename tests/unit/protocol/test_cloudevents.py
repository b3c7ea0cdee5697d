"""CloudEvents as JSON and as Kafka records: round trips, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncue.errors import Invalid, TooLarge
from oncue.protocol import cloudevents
from oncue.protocol.records import EVENT_BYTES, STORED_EVENT_BYTES, Event

_text = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters=[chr(c) for c in range(0x7F, 0xA0)]),
    min_size=1,
    max_size=20,
)
_json = st.recursive(
    st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_names = st.from_regex(r"[a-z0-9]{1,12}", fullmatch=True).filter(lambda n: n not in Event.STANDARD)
_extensions = st.dictionaries(_names, _text | st.booleans() | st.integers(-(2**31), 2**31 - 1), max_size=3)
_events = st.builds(
    Event,
    id=_text,
    source=_text,
    type=_text,
    subject=st.none() | _text,
    time=st.none()
    | st.sampled_from(("2026-11-23T20:59:29Z", "2026-11-23t20:59:29.123456789+05:30", "2016-12-31T23:59:60Z")),
    datacontenttype=st.none() | st.sampled_from(("application/json", "text/plain; charset=utf-8", "image/png")),
    dataschema=st.none() | _text,
    data=st.none() | st.binary(max_size=20) | _json,
    extensions=_extensions,
)


@given(_events)
def test_structured_round_trip(event: Event) -> None:
    value, headers = cloudevents.to_record(event)
    assert cloudevents.from_record(value, headers) == event
    assert cloudevents.from_record(value, list(headers)) == event
    assert cloudevents.from_record(value) == event
    assert cloudevents.from_json(cloudevents.to_json(event)) == event
    assert cloudevents.from_builtins(msgspec.json.decode(value)) == event


def _text_of(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@given(_events, _json)
def test_binary_round_trip_of_json(event: Event, data: Any) -> None:
    """Extensions come back as text, as the binding has it."""
    event = msgspec.structs.replace(event, data=data, datacontenttype="application/vnd.x+json")
    value, headers = cloudevents.to_record(event, binary=True)
    texts = {name: _text_of(v) for name, v in event.extensions.items()}
    assert cloudevents.from_record(value, headers) == msgspec.structs.replace(event, extensions=texts)


@pytest.mark.parametrize(
    ("data", "kind", "value", "back", "back_kind"),
    [
        ({"a": 1}, None, b'{"a":1}', {"a": 1}, "application/json"),
        (b"\xff\x00", "image/png", b"\xff\x00", b"\xff\x00", "image/png"),
        ("h\u00e9", "text/plain", "h\u00e9".encode(), "h\u00e9", "text/plain"),
        ("<a/>", "application/xml", b"<a/>", "<a/>", "application/xml"),
        (b"\xe9", "text/plain; charset=latin-1", b"\xe9", "\xe9", "text/plain; charset=utf-8"),
        (b"\x82\xa0", "text/csv;charset=Shift_JIS", b"\x82\xa0", "\u3042", "text/csv; charset=utf-8"),
        (b"\xe9", "text/plain", b"\xe9", b"\xe9", "text/plain"),
        (b"\xe9", "text/plain; charset=x-unknown", b"\xe9", b"\xe9", "text/plain; charset=x-unknown"),
        (b"\xff\xfe1\0", "application/json", b"\xff\xfe1\0", 1, "application/json"),
        (None, None, b"", None, None),
        (b"raw", None, b"raw", b"raw", None),
    ],
)
def test_binary_data(data: Any, kind: str | None, value: bytes, back: Any, back_kind: str | None) -> None:
    event = Event(id="1", source="/s", type="t", data=data, datacontenttype=kind)
    got, headers = cloudevents.to_record(event, binary=True)
    assert got == value
    assert dict(headers)["ce_specversion"] == b"1.0"
    found = cloudevents.from_record(got, headers)
    assert (found.data, found.datacontenttype) == (back, back_kind)


def test_a_record_as_another_client_writes_it() -> None:
    """The example of the Kafka binding (section 3.2.3)."""
    headers = (
        ("ce_specversion", b"1.0"),
        ("ce_type", b"com.example.someevent"),
        ("ce_source", b"/mycontext/subcontext"),
        ("ce_id", b"1234-1234-1234"),
        ("ce_time", b"2018-04-05T03:56:24Z"),
        ("Content-Type", b"application/avro"),
        ("unrelated", b"\xff"),
    )
    found = cloudevents.from_record(b"avro", headers)
    assert found == Event(
        id="1234-1234-1234",
        source="/mycontext/subcontext",
        type="com.example.someevent",
        time="2018-04-05T03:56:24Z",
        datacontenttype="application/avro",
        data=b"avro",
    )


GOOD = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": None}, "id: is missing"),
        ({"source": ""}, "source: must not be empty"),
        ({"type": 3}, "type: must be a string, not a number"),
        ({"specversion": None}, "specversion: is missing"),
        ({"specversion": "0.3"}, "specversion: '0.3'"),
        ({"subject": ""}, "subject: must not be empty"),
        ({"subject": "a\nb"}, "subject: 'a\\nb' has control characters"),
        ({"time": "yesterday"}, "time: 'yesterday' is not a time"),
        ({"time": "2026-13-01T00:00:00Z"}, "time: "),
        ({"time": "2026-11-23T20:59:29"}, "time: "),
        ({"datacontenttype": "json"}, "datacontenttype: 'json' is not a media type"),
        ({"myExtension": "x"}, "myExtension: is no name of an extension"),
        ({"nested": {"a": 1}}, "nested: an extension is a string, an integer or a boolean, not an object"),
        ({"ratio": 0.5}, "ratio: an extension is"),
        ({"big": 2**31}, "big: 2147483648 does not fit into 32 bits"),
        ({"data_base64": "a", "data": 1}, "data_base64: there is data as well"),
        ({"data_base64": "???"}, "data_base64: not Base64"),
        ({"data_base64": 5}, "data_base64: must be a string"),
    ],
)
def test_what_json_must_not_be(change: dict[str, Any], says: str) -> None:
    with pytest.raises(Invalid) as e:
        cloudevents.from_json(msgspec.json.encode(GOOD | change))
    assert e.value.message.startswith(says)


@pytest.mark.parametrize("value", [b"", b"[]", b"3", b"{", b"\xff", b'"x"', b"[" * 100_000])
def test_what_is_no_event_at_all(value: bytes) -> None:
    with pytest.raises(Invalid):
        cloudevents.from_json(value)


@pytest.mark.parametrize(
    ("value", "headers", "says"),
    [
        (b"[]", (("content-type", b"application/cloudevents-batch+json"),), "content-type"),
        (b"x", (("content-type", b"text/plain"),), "the record is no CloudEvent"),
        (b"x", (("ce_id", b"1"),), "specversion: is missing"),
        (b"x", (("ce_specversion", b"1.0"), ("ce_id", b"\xff")), "id: its header is not UTF-8"),
        (b"x", (("ce_specversion", b"1.0"), ("ce_data", b"a/b")), "data: cannot be a header"),
        (
            b"x",
            (("ce_specversion", b"1.0"), ("ce_datacontenttype", b"a/b"), ("content-type", b"a/c")),
            "datacontenttype: is 'a/b', and content-type says 'a/c'",
        ),
        (
            b"{",
            (
                ("ce_specversion", b"1.0"),
                ("ce_id", b"1"),
                ("ce_source", b"s"),
                ("ce_type", b"t"),
                ("content-type", b"application/json"),
            ),
            "data: not the JSON",
        ),
    ],
)
def test_what_a_record_must_not_be(value: bytes, headers: tuple[tuple[str, bytes], ...], says: str) -> None:
    with pytest.raises(Invalid) as e:
        cloudevents.from_record(value, headers)
    assert e.value.message.startswith(says)


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (Event(id="", source="s", type="t"), "id: must not be empty"),
        (Event(id="1", source="s\x00", type="t"), "source: "),
        (Event(id="1", source="s", type="t", subject="\udcff"), "subject: "),
        (Event(id="1", source="s", type="t", extensions={"data": "x"}), "data: is no name"),
        (Event(id="1", source="s", type="t", extensions={"id": "x"}), "id: is no name"),
        (Event(id="1", source="s", type="t", data={"a": object()}), "data: cannot be written as JSON"),
        (Event(id="1", source="s", type="t", data="\udcff"), "data: cannot be written as JSON"),
    ],
)
def test_what_must_not_be_written(event: Event, says: str) -> None:
    for binary in (False, True):
        with pytest.raises(Invalid) as e:
            cloudevents.to_record(event, binary=binary)
        assert e.value.message.startswith(says)


def test_too_large() -> None:
    event = Event(id="1", source="s", type="t", data=b"x" * STORED_EVENT_BYTES)
    with pytest.raises(TooLarge):
        cloudevents.to_record(event)
    assert len(cloudevents.to_record(event, binary=True)[0]) == STORED_EVENT_BYTES
    with pytest.raises(TooLarge):
        cloudevents.from_json(b" " * (STORED_EVENT_BYTES + 1))
    with pytest.raises(TooLarge):
        cloudevents.from_record(b"x" * (STORED_EVENT_BYTES + 1), (("ce_specversion", b"1.0"),))


@pytest.mark.parametrize(
    "data", [b"x" * EVENT_BYTES, "x" * EVENT_BYTES, '"' * EVENT_BYTES, "\u00e9" * (EVENT_BYTES // 2)]
)
def test_data_of_the_size_that_may_be_sent_fits_into_a_record(data: Any) -> None:
    event = Event(id="1", source="s", type="t", data=data, datacontenttype="text/plain", extensions={"a": "x" * 60_000})
    for binary in (False, True):
        value, headers = cloudevents.to_record(event, binary=binary)
        back = cloudevents.from_record(value, headers).data
        assert back == data or back.encode() == data


@pytest.mark.parametrize("attribute", ["application/json", "Application/JSON", "application/json; charset=UTF-8"])
def test_both_headers_of_the_content_type_may_agree(attribute: str) -> None:
    """The official JavaScript SDK writes both to Kafka."""
    headers = (
        ("ce_specversion", b"1.0"),
        ("ce_id", b"1"),
        ("ce_source", b"s"),
        ("ce_type", b"t"),
        ("ce_datacontenttype", attribute.encode()),
    )
    for sent in (headers, (*headers, ("content-type", b"application/json"))):
        assert cloudevents.from_record(b'{"a":1}', sent).data == {"a": 1}


def test_null_attributes_count_as_absent() -> None:
    found = cloudevents.from_builtins(GOOD | {"subject": None, "data": None, "ext": None})
    assert found == Event(id="1", source="/s", type="t")


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (float("inf"), "data: inf"),
        ({"a": [1, float("nan")]}, r"data\.a\[1\]: nan"),
        ({"a": {1, 2}}, r"data\.a: set"),
        ([b"x"], r"data\[0\]: bytes"),
        ({"a": object()}, r"data\.a: object"),
        ({1: 2}, "data: the key 1"),
    ],
)
def test_data_that_json_cannot_hold(data: Any, path: str) -> None:
    with pytest.raises(Invalid, match=path) as caught:
        cloudevents.check_data(data)
    assert caught.value.remedy


def test_data_that_json_holds() -> None:
    cloudevents.check_data({"a": [1, 2.5, None, True, "x", (1, {"b": {}})]})


def nested(depth: int) -> Any:
    """Return lists and objects in one another, whose texts have brackets and quotes."""
    data: Any = 1
    for n in range(depth):
        data = {'\\"]}[': data, "]": '"'} if n % 2 else [data, "\\", '"]']
    return data


@pytest.mark.parametrize("binary", [False, True])
def test_data_is_nested_to_a_bound(binary: bool) -> None:
    deepest = Event(id="1", source="/s", type="t", data=nested(cloudevents.MAX_DEPTH))
    value, headers = cloudevents.to_record(deepest, binary=binary)
    assert cloudevents.from_record(value, headers).data == deepest.data
    with pytest.raises(Invalid, match="nested over 128 deep"):
        cloudevents.to_record(msgspec.structs.replace(deepest, data=nested(131)), binary=binary)
    for depth in (131, 900, 100_000):  # the last one cannot even be decoded
        deep = b"[" * depth + b"]" * depth
        head = b"" if binary else b'{"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": '
        with pytest.raises(Invalid):
            cloudevents.from_record(head + deep + b"}" * (not binary), headers)
