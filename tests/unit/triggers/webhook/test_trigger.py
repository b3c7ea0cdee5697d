import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from oncue.errors import Invalid, NotFound, NotReady, OncueError, TooLarge, TriggerFailed, Unauthorized
from oncue.protocol.records import EVENT_BYTES, Event
from oncue.triggers.base import TriggerContext
from oncue.triggers.webhook import signatures
from oncue.triggers.webhook.options import WebhookOptions
from oncue.triggers.webhook.trigger import WebhookTrigger

# The example of the Standard Webhooks specification and its reference libraries.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + base64.b64encode(b"another secret of the same sort").decode()
STAMP = 1614265330
VECTOR = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": str(STAMP),
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
BODY = b'{"test": 2432232314}'


def sign(body: bytes, message_id: str = "msg_1", at: float | None = None, secret: str = SECRET) -> dict[str, str]:
    stamp = str(int(time.time() if at is None else at))
    digest = hmac.digest(signatures.standard_key(secret), f"{message_id}.{stamp}.".encode() + body, "sha256")
    signature = "v1," + base64.b64encode(digest).decode()
    return {"webhook-id": message_id, "webhook-timestamp": stamp, "webhook-signature": signature}


class Hook:
    """A trigger with its emitted events."""

    def __init__(self, options: object, name: str = "daq", secrets: Mapping[str, str] | None = None) -> None:
        self.events: list[Event] = []
        self.fails: Exception | None = None
        known = dict(secrets or {})

        async def emit(events: Sequence[Event]) -> None:
            if self.fails:
                raise self.fails
            self.events.extend(events)

        def secret(name: str) -> str:
            if name not in known:
                raise NotFound(f"there is no secret {name!r}")
            return known[name]

        self.known = known
        context = TriggerContext(emit=emit, folder=Path("/nonexistent"), secrets=secret)
        self.trigger = WebhookTrigger(name, msgspec.convert(options, WebhookOptions), context)

    def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
        return asyncio.run(self.trigger.receive(headers or {}, body))


def unsigned(**options: object) -> Hook:
    return Hook({"verify": "none", **options})


# ---------------------------------------------------------------- signatures


def test_the_published_standard_webhooks_vector() -> None:
    keys = [signatures.standard_key(SECRET)]
    signatures.standard_webhooks(VECTOR, BODY, keys, signatures.Clocks(STAMP + 10))
    assert keys == [signatures.standard_key(SECRET.removeprefix("whsec_"))]


def test_githubs_documented_example() -> None:
    digest = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    headers = {"x-hub-signature-256": f"sha256={digest}"}
    signatures.github(headers, b"Hello, World!", [b"It's a Secret to Everybody"])
    with pytest.raises(Unauthorized):
        signatures.github(headers, b"Hello, World", [b"It's a Secret to Everybody"])


def test_one_of_several_signatures_and_of_several_secrets_is_enough() -> None:
    keys = [signatures.standard_key(OTHER), signatures.standard_key(SECRET)]
    several = VECTOR | {"webhook-signature": f"v1a,xx v1,AAAA {VECTOR['webhook-signature']}"}
    signatures.standard_webhooks(several, BODY, keys, signatures.Clocks(STAMP))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"webhook-id": "msg_2"}, "does not match"),
        ({"webhook-id": ""}, "webhook-id is missing"),
        ({"webhook-timestamp": ""}, "webhook-timestamp is missing"),
        ({"webhook-timestamp": str(STAMP + 1)}, "does not match"),
        ({"webhook-timestamp": str(STAMP - 400)}, "405 s old"),
        ({"webhook-timestamp": str(STAMP + 400)}, "in the future"),
        ({"webhook-timestamp": "yesterday"}, "not a time"),
        ({"webhook-timestamp": "9" * 400}, "not a time"),
        ({"webhook-timestamp": "²"}, "not a time"),
        ({"webhook-signature": ""}, "webhook-signature is missing"),
        ({"webhook-signature": "v1,????"}, "does not match"),
        ({"webhook-signature": "v2," + VECTOR["webhook-signature"][3:]}, "does not match"),
        ({"webhook-signature": VECTOR["webhook-signature"][3:]}, "does not match"),
        ({"webhook-signature": "é"}, "does not match"),
    ],
)
def test_bad_standard_webhooks_are_unauthorized(change: dict[str, str], word: str) -> None:
    with pytest.raises(Unauthorized, match=word) as e:
        signatures.standard_webhooks(
            VECTOR | change, BODY, [signatures.standard_key(SECRET)], signatures.Clocks(STAMP + 5)
        )
    assert e.value.remedy


@pytest.mark.parametrize("given", ["", "sha256=", "sha1=abc", "757107ea", "sha256=é"])
def test_bad_github_signatures_are_unauthorized(given: str) -> None:
    with pytest.raises(Unauthorized):
        signatures.github({"x-hub-signature-256": given}, b"Hello, World!", [b"It's a Secret to Everybody"])


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer ", "Basic s3cret", "Bearer other", "Bearer s3cre", "Bearer é"])
def test_bad_bearer_tokens_are_unauthorized(given: str) -> None:
    with pytest.raises(Unauthorized):
        signatures.bearer({"authorization": given}, [b"s3cret", b"older"])


def test_a_bearer_token() -> None:
    signatures.bearer({"authorization": "bearer older"}, [b"s3cret", b"older"])


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"verify": {}},
        {"verify": None},
        {"verify": {"tolerance": "5m"}},
        {"verify": {"github": "a", "bearer": "b"}},
        {"verify": {"github": ["a", " "]}},
        {"verify": {"github": "${secret:a/../b}"}},
        {"verify": {"bearer": "${secrets:daq}"}},
        {"verify": {"bearer": ["${env:A B}", "older"]}},
        {"verify": {"standard-webhooks": "not base64!"}},
        {"verify": {"standard-webhooks": SECRET, "tolerance": "soon"}},
    ],
)
def test_options_that_let_in_anybody_or_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError, match="verify"):  # a deploy
        Hook(options)


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        Hook({"verify": {"gitea": "a"}})


def test_secrets_are_looked_up_for_each_request() -> None:
    hook = Hook({"verify": {"standard-webhooks": "${secret:daq}"}})
    with pytest.raises(TriggerFailed, match="no secret 'daq'"):
        hook.post(BODY, sign(BODY))
    assert hook.trigger.status().state == "failed"
    hook.known["daq"] = SECRET
    assert hook.post(BODY, sign(BODY))[0] == 202
    assert hook.trigger.status().state == "running"
    hook.known["daq"] = OTHER
    with pytest.raises(Unauthorized):
        hook.post(BODY, sign(BODY))


def test_a_secret_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = Hook({"verify": {"bearer": ["${env:ONCUE_TEST_TOKEN}", "older"]}})
    assert hook.post(b"x", {"authorization": "Bearer older"})[0] == 202  # one of two is there
    with pytest.raises(Unauthorized):
        hook.post(b"x", {"authorization": "Bearer s3cret"})
    monkeypatch.setenv("ONCUE_TEST_TOKEN", "s3cret")
    assert hook.post(b"x", {"authorization": "Bearer s3cret"})[0] == 202


# ---------------------------------------------------------------- requests


def test_a_signed_request_becomes_an_event_with_its_id() -> None:
    hook = Hook({"verify": {"standard-webhooks": SECRET}})
    headers = sign(BODY) | {"content-type": "application/json"}
    status, _, answer = hook.post(BODY, headers)
    assert (status, json.loads(answer)) == (202, {"accepted": 1})
    hook.post(BODY, headers)
    first, again = hook.events
    assert (first.id, first.source) == (again.id, again.source) == ("msg_1", "oncue:///hooks/daq")
    assert (first.type, first.data) == ("oncue.webhook.daq", {"test": 2432232314})
    assert first.extensions["oncuetrigger"] == "daq"
    assert hook.trigger.status().emitted == 2


def test_a_replayed_old_request_is_unauthorized_and_told() -> None:
    hook = Hook({"verify": {"standard-webhooks": SECRET, "tolerance": "1m"}})
    with pytest.raises(Unauthorized, match="old"):
        hook.post(BODY, sign(BODY, at=time.time() - 90))
    assert hook.events == []
    assert "old" in hook.trigger.status().last_skip
    assert not hook.trigger.decisions()[-1].fired


def test_github() -> None:
    hook = Hook({"verify": {"github": "s"}})
    body = b'{"action": "opened"}'
    headers = {
        "x-hub-signature-256": "sha256=" + hmac.new(b"s", body, hashlib.sha256).hexdigest(),
        "x-github-event": "pull_request",
        "x-github-delivery": "72d3162e",
        "content-type": "application/json",
    }
    hook.post(body, headers)
    (event,) = hook.events
    assert (event.type, event.id, event.data) == ("github.pull_request", "72d3162e", {"action": "opened"})


@pytest.mark.parametrize(
    ("content_type", "body", "kind", "data"),
    [
        ("application/json; charset=utf-8", b"[1]", "application/json; charset=utf-8", [1]),
        ("application/problem+json", b"{}", "application/problem+json", {}),
        ("text/plain", b"done", "text/plain", "done"),
        ("application/x-www-form-urlencoded", b'{"scan": 5}', "application/json", {"scan": 5}),
        ("application/x-www-form-urlencoded", b"scan=5", "application/x-www-form-urlencoded", "scan=5"),
        ("", b"{no json", "text/plain", "{no json"),
        ("", b"\xff\x00", "application/octet-stream", b"\xff\x00"),
        ("image/png", b"\x89PNG", "image/png", b"\x89PNG"),
        ("", b"", None, None),
        ("application/x-www-form-urlencoded", b"payload=%7B%22a%22%3A+%22%C3%A9%22%7D", "application/json", {"a": "é"}),
        ("application/x-www-form-urlencoded", b"payload=3", "application/x-www-form-urlencoded", "payload=3"),
        (
            "application/x-www-form-urlencoded",
            b"payload=%7B&a=1",
            "application/x-www-form-urlencoded",
            "payload=%7B&a=1",
        ),
        ("text/plain; charset=ISO-8859-1", b"caf\xe9", "text/plain; charset=utf-8", "café"),
        ('text/csv; header=present; charset="windows-1252"', b"\x80", "text/csv; header=present; charset=utf-8", "€"),
        ("text/plain; charset=Shift_JIS", "スキャン".encode("shift_jis"), "text/plain; charset=utf-8", "スキャン"),
        ("text/plain; charset=utf-16", "scan".encode("utf-16"), "text/plain; charset=utf-8", "scan"),
        ("text/plain; charset=utf-16le", "scan".encode("utf-16-le"), "text/plain; charset=utf-8", "scan"),
        ("text/plain", "scan".encode("utf-16"), "text/plain", "scan"),
        ("text/plain", b"\xef\xbb\xbfscan", "text/plain", "scan"),
        ("text/plain", b"caf\xe9", "text/plain; charset=utf-8", "café"),  # HTTP's former default
        ("text/plain; charset=klingon", b"\xe9", "text/plain; charset=klingon", b"\xe9"),
        ("text/plain; charset=idna", b"xn--a", "text/plain; charset=idna", b"xn--a"),  # takes quadratic time
        ("text/plain; charset=utf-8", b"\xe9", "text/plain; charset=utf-8", b"\xe9"),
        ("application/xml", b"<a/>", "application/xml", "<a/>"),
        (
            "application/xml",
            b'<?xml version="1.0" encoding="iso-8859-1"?><a>\xe9</a>',
            "application/xml",
            '<?xml version="1.0" encoding="utf-8"?><a>é</a>',
        ),
        ("application/yaml; charset=utf-8", b"a: 1", "application/yaml; charset=utf-8", "a: 1"),
        ("application/json; charset=utf-16", '{"a": 1}'.encode("utf-16"), "application/json; charset=utf-8", {"a": 1}),
        ("application/json", b'\xef\xbb\xbf{"a": 1}', "application/json", {"a": 1}),
        ("application/json; charset=latin-1", b'{"a": "\xe9"}', "application/json; charset=utf-8", {"a": "é"}),
    ],
)
def test_what_becomes_data(content_type: str, body: bytes, kind: str | None, data: object) -> None:
    hook = unsigned()
    hook.post(body, {"content-type": content_type} if content_type else {})
    (event,) = hook.events
    assert (event.datacontenttype, event.data) == (kind, data)


def test_a_replay_of_github_with_another_delivery_id_is_the_same_event_by_body() -> None:
    body = b'{"action": "published"}'
    signed = {
        "x-hub-signature-256": "sha256=" + hmac.new(b"s", body, "sha256").hexdigest(),
        "x-github-event": "release",
    }
    for identity, events in (("body", 1), ("request", 3)):
        hook = Hook({"verify": {"github": "s"}, "identity": identity})
        for delivery in ("genuine", "replayed", "replayed again"):
            hook.post(body, signed | {"x-github-delivery": delivery})
        assert len({event.id for event in hook.events}) == events


def test_a_replay_with_the_headers_of_a_cloudevent_is_the_same_event_by_body() -> None:
    body = b'{"action": "published"}'
    signed = {"x-hub-signature-256": "sha256=" + hmac.new(b"s", body, "sha256").hexdigest()}
    hook = Hook({"verify": {"github": "s"}, "identity": "body"})
    hook.post(body, signed)
    forged = {"ce-specversion": "1.0", "ce-id": "2", "ce-source": "/other", "ce-type": "org.example.paid"}
    hook.post(body, signed | forged)
    assert len({(event.source, event.id, event.type) for event in hook.events}) == 1


def test_without_a_name_each_request_is_an_event_and_with_identity_body_each_body() -> None:
    hook = unsigned()
    hook.post(b"x")
    hook.post(b"x")
    hook.post(b"x", {"idempotency-key": "k"})
    assert len({event.id for event in hook.events}) == 3
    assert hook.events[-1].id == "k"
    hook = unsigned(identity="body", type="scan.done")
    for body in (b"x", b"x", b"y"):
        hook.post(body)
    assert [e.id for e in hook.events].count(hook.events[0].id) == 2
    assert hook.events[0].type == "scan.done"


@pytest.mark.parametrize(
    ("headers", "body", "error", "word"),
    [
        ({"content-type": "application/json"}, b'{"a": }', Invalid, r"byte 6"),
        ({"content-type": "application/json"}, b"[" * 100_000, Invalid, "JSON"),
        ({"content-type": "application/json"}, b'"\xff"', Invalid, "JSON"),
        ({}, b"x" * (EVENT_BYTES + 1), TooLarge, "1,048,577 bytes"),
        ({"content-type": "application/cloudevents+json"}, b"{}", Invalid, "specversion"),
        ({"content-type": "application/cloudevents-batch+json"}, b"{}", Invalid, "batch"),
        ({"content-type": "application/cloudevents-batch+json"}, b'[{"specversion": "1.0"}]', Invalid, "event 0"),
        ({"content-type": "application/cloudevents+avro"}, b"x", Invalid, "avro"),
        ({"ce-id": "1", "ce-type": "t"}, b"", Invalid, "specversion"),
        ({"ce-id": "1", "ce-specversion": "1.0", "ce-type": "t"}, b"", Invalid, "source"),
        ({"ce-id": "1", "ce-specversion": "0.3", "ce-type": "t", "ce-source": "s"}, b"", Invalid, "0.3"),
    ],
)
def test_bad_requests(headers: dict[str, str], body: bytes, error: type[OncueError], word: str) -> None:
    hook = unsigned()
    with pytest.raises(error, match=word) as e:
        hook.post(body, headers)
    assert e.value.remedy
    assert hook.events == []
    assert hook.trigger.status().skipped == 1


EVENT = {"specversion": "1.0", "id": "7", "source": "/daq", "type": "scan.done", "data": {"n": 1}}
FORGED = {"oncuetrigger": "detector", "oncuetimems": "1", "oncueowner": "root", "run": "a"}


def test_structured_events_keep_their_names_but_cannot_forge_ours() -> None:
    hook = unsigned()
    hook.post(json.dumps(EVENT | FORGED).encode(), {"content-type": "application/cloudevents+json; charset=utf-8"})
    (event,) = hook.events
    assert (event.id, event.source, event.type, event.data) == ("7", "/daq", "scan.done", {"n": 1})
    assert event.extensions["oncuetrigger"] == "daq"
    assert set(event.extensions) == {"run", "oncuetrigger", "oncuemarkus"}


def test_batched_events_and_an_empty_batch() -> None:
    hook = unsigned()
    headers = {"content-type": "application/cloudevents-batch+json"}
    hook.post(json.dumps([EVENT, EVENT | {"id": "8"}]).encode(), headers)
    assert [event.id for event in hook.events] == ["7", "8"]
    assert hook.post(b"[]", headers)[0] == 202


def test_binary_events() -> None:
    hook = unsigned()
    headers = {
        "ce-specversion": "1.0",
        "ce-id": "7",
        "ce-source": "/daq",
        "ce-type": "scan.done",
        "ce-subject": "Euro%20%E2%82%AC",
        "ce-oncuetrigger": "detector",
        "ce-run": "a",
        "content-type": "application/json",
        "host": "example.org",
    }
    hook.post(b'{"n": 1}', headers)
    (event,) = hook.events
    assert (event.id, event.source, event.type, event.subject) == ("7", "/daq", "scan.done", "Euro €")
    assert (event.data, event.datacontenttype) == ({"n": 1}, "application/json")
    assert (event.extensions["oncuetrigger"], event.extensions["run"]) == ("daq", "a")


def test_no_answer_before_it_is_durable() -> None:
    hook = unsigned()
    hook.fails = NotReady("starting")
    with pytest.raises(NotReady):
        hook.post(b"x")
    assert hook.trigger.status().emitted == 0


def test_run_sees_that_a_secret_was_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oncue.triggers.webhook.trigger.CHECK_S", 0.01)

    async def main(hook: Hook) -> None:
        task = asyncio.create_task(hook.trigger.run())
        for state, secret in (("failed", SECRET), ("running", "")):
            async with asyncio.timeout(20):
                while hook.trigger.status().state != state:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            hook.known["daq"] = secret
        assert hook.trigger.status().detail == ""
        task.cancel()

    asyncio.run(main(Hook({"verify": {"standard-webhooks": "${secret:daq}"}})))


def test_run_shows_a_missing_secret() -> None:
    async def main(hook: Hook) -> str:
        task = asyncio.create_task(hook.trigger.run())
        await asyncio.sleep(0)
        state = hook.trigger.status().state
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return state

    assert asyncio.run(main(Hook({"verify": {"github": "${secret:gone}"}}))) == "failed"
    assert asyncio.run(main(unsigned())) == "running"
