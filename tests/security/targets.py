"""What is read from outsiders, as functions of bytes: any bytes are read or refused with an error of oncue's own.

test_random_input.py tries them with Hypothesis, in CI; fuzz.py with Atheris, as long as you like (`make fuzz`).
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from oncue import functions, globs, quantities
from oncue.config import load_settings
from oncue.dispatcher.bridge.channel import EndpointChannel
from oncue.endpoint.agent.journal import Journal
from oncue.errors import OncueError
from oncue.protocol import bridge, cloudevents, payload
from oncue.protocol.cloudevents_http import events_from_http
from oncue.protocol.codec import decode
from oncue.protocol.exceptions import from_data
from oncue.protocol.records import Control, DeadLetter, Event, Fence, Registry, ResultFrame, TaskFrame
from oncue.protocol.reports import Report
from oncue.rules.matching.cel import compile_cel
from oncue.rules.matching.template import split
from oncue.rules.parsing.rule_file import parse
from oncue.triggers.catalog import OptionStructs
from oncue.triggers.webhook import signatures
from oncue.triggers.webhook.body import read_body

Target = Callable[[bytes], None]
EVENT = Event(id="1", source="/s", type="t", data={"n": 1, "l": [1, 2, 3], "s": "text"})


class MemoryFile:
    """A journal's file in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)

    def read(self) -> bytes:
        return bytes(self.content)

    def append(self, data: bytes | bytearray) -> int:
        self.content += data
        return len(data)

    def truncate(self, size: int) -> None:
        del self.content[size:]

    def replace(self, data: bytes) -> None:
        self.content[:] = data


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _headers(data: bytes) -> tuple[dict[str, str], bytes]:
    """Take `name: value` lines, then a body, from the data."""
    head, _, body = data.partition(b"\n\n")
    lines = (line.partition(b":") for line in head.split(b"\n"))
    return {
        k.decode("latin-1").strip().lower(): v.decode("utf-8", "surrogateescape").strip() for k, _, v in lines
    }, body


def rule_file(data: bytes) -> None:
    parse(data, "fuzz.yaml", OptionStructs(), triggers=None)


def cloudevent_structured(data: bytes) -> None:
    cloudevents.check(cloudevents.from_json(data))


def cloudevent_http(data: bytes) -> None:
    headers, body = _headers(data)
    for event in events_from_http(headers, body) or ():
        cloudevents.from_record(*cloudevents.to_record(event))


def cloudevent_kafka(data: bytes) -> None:
    headers, body = _headers(data)
    event = cloudevents.from_record(body, [(k, v.encode("utf-8", "surrogateescape")) for k, v in headers.items()])
    cloudevents.to_json(event)


def frame_from_agent(data: bytes) -> None:
    bridge.decode_from_agent([data])
    bridge.decode_from_bridge([data])


def channel(data: bytes) -> None:
    """A session of an agent: a good hello, then whatever it says."""
    found = EndpointChannel("ep", 1, "server", "0.1.0")
    hello = bridge.Hello(bridge.PROTOCOL, "0.1.0", "3.11", "h", 1, b"b" * 8, b"j" * 8, 1, 0)
    found.on_frame([bridge.encode(bridge.AgentEnvelope(1, 0, 1, hello))], time.time_ns() // 1000)
    for n, part in enumerate(data.split(b"\0\0"), 1):
        head, _, body = part.partition(b"\1\1")
        with contextlib.suppress(msgspec.MsgspecError, RecursionError):
            message = msgspec.msgpack.decode(
                head, type=bridge.FromAgent
            )  # most are none: then the frame itself is tried
            head = bridge.encode(bridge.AgentEnvelope(1, n, 1, message))
        found.on_frame([head, body], time.time_ns() // 1000)
        found.drain()


def journal(data: bytes) -> None:
    """Whatever the file holds, an agent starts: what can be read is recovered, the rest reported."""
    file = MemoryFile(data)
    opened = Journal(file, b"i" * 8)
    opened.received(b"call", 1, 1, b"\x90")
    assert opened.write()
    again = Journal(file, b"k" * 8)
    assert again.identity == opened.identity


def stored_records(data: bytes) -> None:
    for kind in (TaskFrame, ResultFrame, DeadLetter, Fence, Control, Registry, Report):
        with contextlib.suppress(OncueError):
            decode(kind, data)  # type: ignore[arg-type]


def payloads(data: bytes) -> None:
    """What a server looks at: it unpickles nothing."""
    payload.ref_of(data)
    payload.peek(data)
    payload.needs_blob(data)


def exceptions_of_others(data: bytes) -> None:
    """What a client makes of a failure: it unpickles nothing of an endpoint without trust."""
    loaded: list[bytes] = []
    from_data(data, loaded.append, lambda: False)
    if loaded:
        raise AssertionError("a pickle was loaded")


def function_body(data: bytes) -> None:
    functions.describe(data)


def webhook(data: bytes) -> None:
    headers, body = _headers(data)
    for verify in (
        lambda: signatures.standard_webhooks(headers, body, [b"key"], signatures.Clocks(1_700_000_000.0)),
        lambda: signatures.github(headers, body, [b"key"]),
        lambda: signatures.bearer(headers, [b"key"]),
        lambda: signatures.standard_key(_text(data)),
        lambda: read_body(headers.get("content-type", ""), body),
    ):
        with contextlib.suppress(OncueError):
            verify()


def cel(data: bytes) -> None:
    found = compile_cel(_text(data[:2_000]))
    found.test(EVENT)


def texts(data: bytes) -> None:
    """Globs, durations, sizes and templates."""
    text = _text(data[:2_000])
    calls: tuple[Callable[[str], Any], ...] = (
        lambda t: globs.compiled(t).match("a/b.raw"),
        globs.never_relative,
        globs.max_depth,
        quantities.duration_ms,
        quantities.size_bytes,
        split,
    )
    for call in calls:
        with contextlib.suppress(OncueError, ValueError):  # of quantities: their callers name the place
            call(text)


def settings(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "oncue.toml"
        path.write_bytes(data)
        load_settings({"data": folder}, {"ONCUE_PORT": _text(data[:20]).replace("\0", "")}, path)


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        rule_file,
        cloudevent_structured,
        cloudevent_http,
        cloudevent_kafka,
        frame_from_agent,
        channel,
        journal,
        stored_records,
        payloads,
        exceptions_of_others,
        function_body,
        webhook,
        cel,
        texts,
        settings,
    )
}


def attempt(target: Target, data: bytes) -> None:
    """Try the input. Raises what is not an error of oncue's own."""
    with contextlib.suppress(OncueError):
        target(data)
