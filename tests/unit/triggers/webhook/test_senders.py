"""Webhooks of known senders, and any HMAC: published examples, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from urllib.parse import quote_plus

import msgspec
import pytest

from oncue.errors import Forbidden, TooLarge, Unauthorized
from oncue.protocol import cloudevents
from oncue.protocol.records import EVENT_BYTES
from oncue.triggers.webhook import signatures
from oncue.triggers.webhook.signatures import SLACK, Clocks, HmacScheme
from tests.unit.triggers.webhook.test_trigger import Hook, unsigned

# Slack's documentation, "Verifying requests from Slack".
SLACK_SECRET = b"8f742231b10e8888abcd99yyyzzz85a5"
SLACK_STAMP = 1531420618
SLACK_BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V"
    b"&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text="
    b"&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
    b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
)
SLACK_HEADERS = {
    "x-slack-request-timestamp": str(SLACK_STAMP),
    "x-slack-signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
}
# Made by Stripe's own library 16.1.0, stripe.WebhookSignature.
STRIPE_SECRET, STRIPE_STAMP = b"whsec_test_secret", 1614265330
STRIPE_BODY = b'{"id":"evt_1","type":"charge.succeeded"}'
STRIPE_V1 = "a77f58ed88dac6c2cb9d24f149d7424c41f234b3beb04e25d9492b330816350e"
STRIPE_HEADERS = {"stripe-signature": f"t={STRIPE_STAMP},v1={'0' * 64},v1={STRIPE_V1},v0=old"}


def hex_of(secret: str, message: bytes, algorithm: str = "sha256") -> str:
    return hmac.new(secret.encode(), message, algorithm).hexdigest()


# ---------------------------------------------------------------- Slack and Stripe


def test_slacks_documented_example() -> None:
    for late_s in (0, 299, -299):
        signatures.any_hmac(SLACK_HEADERS, SLACK_BODY, [b"old", SLACK_SECRET], SLACK, Clocks(SLACK_STAMP + late_s))


@pytest.mark.parametrize(
    ("change", "body", "now_s", "word"),
    [
        ({}, SLACK_BODY, SLACK_STAMP + 301, "301 s old"),
        ({}, SLACK_BODY, SLACK_STAMP - 301, "in the future"),
        ({}, SLACK_BODY + b"&", SLACK_STAMP, "does not match"),
        ({"x-slack-request-timestamp": str(SLACK_STAMP + 1)}, SLACK_BODY, SLACK_STAMP, "does not match"),
        ({"x-slack-request-timestamp": "now"}, SLACK_BODY, SLACK_STAMP, "not a time"),
        ({"x-slack-request-timestamp": ""}, SLACK_BODY, SLACK_STAMP, "timestamp is missing"),
        ({"x-slack-signature": ""}, SLACK_BODY, SLACK_STAMP, "signature is missing"),
        ({"x-slack-signature": SLACK_HEADERS["x-slack-signature"][3:]}, SLACK_BODY, SLACK_STAMP, "does not match"),
        ({"x-slack-signature": "v0=é"}, SLACK_BODY, SLACK_STAMP, "does not match"),
    ],
)
def test_bad_requests_of_slack(change: dict[str, str], body: bytes, now_s: float, word: str) -> None:
    with pytest.raises(Unauthorized, match=word) as e:
        signatures.any_hmac(SLACK_HEADERS | change, body, [SLACK_SECRET], SLACK, Clocks(now_s))
    assert e.value.remedy


def test_a_request_as_stripes_library_signs_it() -> None:
    signatures.stripe(STRIPE_HEADERS, STRIPE_BODY, [b"new", STRIPE_SECRET], Clocks(STRIPE_STAMP + 200))
    # After a step of the clock, the sender may agree with the system's time.
    signatures.stripe(STRIPE_HEADERS, STRIPE_BODY, [STRIPE_SECRET], Clocks(0.0, STRIPE_STAMP))


@pytest.mark.parametrize(
    ("given", "body", "now_s", "word"),
    [
        (STRIPE_HEADERS["stripe-signature"], STRIPE_BODY, STRIPE_STAMP + 301, "old"),
        (STRIPE_HEADERS["stripe-signature"], STRIPE_BODY + b" ", STRIPE_STAMP, "does not match"),
        (f"t={STRIPE_STAMP},v0={STRIPE_V1}", STRIPE_BODY, STRIPE_STAMP, "does not match"),
        (f"t={STRIPE_STAMP + 1},v1={STRIPE_V1}", STRIPE_BODY, STRIPE_STAMP, "does not match"),
        (f"v1={STRIPE_V1}", STRIPE_BODY, STRIPE_STAMP, "not a time"),
        ("t=,v1=", STRIPE_BODY, STRIPE_STAMP, "not a time"),
        ("", STRIPE_BODY, STRIPE_STAMP, "missing"),
    ],
)
def test_bad_requests_of_stripe(given: str, body: bytes, now_s: float, word: str) -> None:
    with pytest.raises(Unauthorized, match=word):
        signatures.stripe({"stripe-signature": given}, body, [STRIPE_SECRET], Clocks(now_s))


def slack_headers(secret: str, body: bytes) -> dict[str, str]:
    stamp = str(int(time.time()))
    return {
        "x-slack-request-timestamp": stamp,
        "x-slack-signature": "v0=" + hex_of(secret, f"v0:{stamp}:".encode() + body),
    }


def test_events_commands_interactions_and_the_test_of_slack() -> None:
    hook = Hook({"verify": {"slack": "s"}})
    event = b'{"type": "event_callback", "event_id": "Ev1", "event": {"type": "app_mention", "text": "go"}}'
    for _ in range(2):  # Slack sends it again after 3 s
        hook.post(event, slack_headers("s", event) | {"content-type": "application/json"})
    form = {"content-type": "application/x-www-form-urlencoded"}
    command = b"command=%2Fscan&text=sample+7&a=1&a=2&empty="
    hook.post(command, slack_headers("s", command) | form)
    interaction = b"payload=" + quote_plus(json.dumps({"type": "block_actions", "n": 1})).encode()
    hook.post(interaction, slack_headers("s", interaction) | form)
    test = b'{"type": "url_verification", "challenge": "3eZbrw1aB"}'
    answer = hook.post(test, slack_headers("s", test) | {"content-type": "application/json"})

    first, again, commanded, interacted = hook.events
    assert (first.type, first.id, again.id) == ("slack.app_mention", "Ev1", "Ev1")
    assert commanded.type == "slack.command"
    assert commanded.data == {"command": "/scan", "text": "sample 7", "a": ["1", "2"], "empty": ""}
    assert (interacted.type, interacted.data) == ("slack.block_actions", {"type": "block_actions", "n": 1})
    assert answer == (200, {"content-type": "text/plain"}, b"3eZbrw1aB")
    with pytest.raises(Unauthorized):
        hook.post(test, {"content-type": "application/json"})


def test_an_event_of_stripe_sent_again_is_the_same() -> None:
    hook = Hook({"verify": {"stripe": "whsec_s"}})
    for age in (0, 5):
        stamp = int(time.time()) - age
        signature = hex_of("whsec_s", f"{stamp}.".encode() + STRIPE_BODY)
        hook.post(STRIPE_BODY, {"stripe-signature": f"t={stamp},v1={signature}", "content-type": "application/json"})
    assert [(e.type, e.id) for e in hook.events] == [("stripe.charge.succeeded", "evt_1")] * 2


# ---------------------------------------------------------------- GitHub and GitLab


@pytest.mark.parametrize("method", ["stripe", "slack"])
def test_a_replay_with_other_headers_is_the_same_event(method: str) -> None:
    body = b'{"type": "event_callback", "id": "evt_1", "event_id": "Ev1"}'
    stamp = str(int(time.time()))
    stripe = {"stripe-signature": f"t={stamp},v1={hex_of('s', f'{stamp}.'.encode() + body)}"}
    signed = (stripe if method == "stripe" else slack_headers("s", body)) | {"content-type": "application/json"}
    hook = Hook({"verify": {method: "s"}})
    for more in (
        {},
        {"idempotency-key": "2"},
        {"ce-specversion": "1.0", "ce-id": "3", "ce-source": "s", "ce-type": "t"},
    ):
        hook.post(body, signed | more)
    assert len({(event.source, event.id, event.type) for event in hook.events}) == 1


def test_githubs_form_is_unpacked() -> None:
    hook = Hook({"verify": {"github": "s"}})
    payload = json.dumps({"ref": "refs/heads/main", "message": "a+b & ü"})
    body = b"payload=" + quote_plus(payload).encode()
    headers = {
        "x-hub-signature-256": "sha256=" + hex_of("s", body),
        "x-github-event": "push",
        "content-type": "application/x-www-form-urlencoded",
    }
    hook.post(body, headers)
    (event,) = hook.events
    assert (event.type, event.data) == ("github.push", {"ref": "refs/heads/main", "message": "a+b & ü"})
    assert event.datacontenttype == "application/json"


def test_gitlab() -> None:
    hook = Hook({"verify": {"gitlab": ["new", "old"]}})
    headers = {"x-gitlab-event": "Merge Request Hook", "content-type": "application/json", "idempotency-key": "k1"}
    hook.post(b'{"object_kind": "merge_request"}', headers | {"x-gitlab-token": "old"})
    (event,) = hook.events
    assert (event.type, event.id) == ("gitlab.merge_request", "k1")
    for token in ("", "other", "ol", "olé"):
        with pytest.raises(Unauthorized):
            hook.post(b"{}", headers | {"x-gitlab-token": token})


# ---------------------------------------------------------------- any HMAC

BODY = b'{"order": 1}'


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha384", "sha512"])
@pytest.mark.parametrize("encoding", ["hex", "base64", "base64url"])
def test_any_hmac(algorithm: str, encoding: str) -> None:
    hook = Hook(
        {
            "verify": {
                f"hmac-{algorithm}": ["s3cret", "older"],
                "header": "X-Shop-Sig",
                "prefix": "v=",
                "encoding": encoding,
            },
            "id-header": "X-Shop-Id",
        }
    )
    digest = hmac.digest(b"older", BODY, algorithm)
    value = {
        "hex": digest.hex().upper(),
        "base64": base64.b64encode(digest).decode(),
        "base64url": base64.urlsafe_b64encode(digest).decode().rstrip("="),
    }[encoding]
    headers = {"x-shop-sig": f"v={value}", "x-shop-id": "order-1", "content-type": "application/json"}
    hook.post(BODY, headers)
    (event,) = hook.events
    assert (event.id, event.data) == ("order-1", {"order": 1})
    for wrong in (value, f"v={value[:-4]}", "v=", f"w={value}", "v=é", f"v={value}x"):
        with pytest.raises(Unauthorized):
            hook.post(BODY, headers | {"x-shop-sig": wrong})
    with pytest.raises(Unauthorized):
        hook.post(BODY + b" ", headers)
    with pytest.raises(Unauthorized, match="x-shop-sig is missing"):
        hook.post(BODY, {})


def test_one_of_several_signatures_in_a_header() -> None:
    scheme = HmacScheme("sha256", "x-sig", "sha256=")
    given = {"x-sig": f"sha256={'0' * 64}, sha256={hex_of('s', BODY)}"}
    signatures.any_hmac(given, BODY, [b"s"], scheme, Clocks(0.0))


@pytest.mark.parametrize("milliseconds", [False, True])
def test_an_hmac_with_a_signed_time(milliseconds: bool) -> None:
    """As Zoom signs: v0:time:body."""
    verify = {"hmac-sha256": "s", "header": "x-zm-signature", "prefix": "v0=", "tolerance": "1m"}
    hook = Hook({"verify": verify | {"timestamp": "x-zm-request-timestamp", "signed": "v0:{timestamp}:{body}"}})

    def headers(age_s: float) -> Mapping[str, str]:
        stamp = str(int((time.time() - age_s) * (1000 if milliseconds else 1)))
        signature = hex_of("s", f"v0:{stamp}:".encode() + BODY)
        return {"x-zm-request-timestamp": stamp, "x-zm-signature": f"v0={signature}"}

    assert hook.post(BODY, headers(10))[0] == 202
    with pytest.raises(Unauthorized, match="old"):
        hook.post(BODY, headers(90))


def test_identity_by_body_counts_where_the_sender_signs_the_body_alone() -> None:
    hook = Hook({"verify": {"hmac-sha256": "s", "header": "x-sig"}, "identity": "body", "id-header": "x-id"})
    for delivery in ("genuine", "replayed"):
        hook.post(BODY, {"x-sig": hex_of("s", BODY), "x-id": delivery})
    assert hook.events[0].id == hook.events[1].id == hashlib.blake2b(BODY, digest_size=16).hexdigest()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"verify": {"hmac-sha256": "s"}}, "lacks `header`"),
        ({"verify": {"hmac-sha256": "s", "header": "X Sig"}}, "not the name of a header"),
        ({"verify": {"hmac-sha256": "s", "header": "x", "encoding": "hexa"}}, "encoding"),
        ({"verify": {"hmac-sha256": "s", "header": "x", "signed": "{timestamp}.{body}"}}, "go together"),
        ({"verify": {"hmac-sha256": "s", "header": "x", "timestamp": "t", "signed": "{body}"}}, "go together"),
        ({"verify": {"hmac-sha256": "s", "header": "x", "signed": "body"}}, "needs {body} once"),
        ({"verify": {"hmac-md5": "s", "header": "x"}}, "hmac-md5"),
        ({"verify": {"github": "s", "header": "x"}}, "is for hmac-sha256"),
        ({"verify": {"gitlab": " "}}, "empty secret"),
        ({"verify": {"slack": "s", "stripe": "s"}}, "2 methods"),
        ({"verify": "none", "id-header": "a b"}, "not the name of a header"),
        ({"verify": "none", "origins": [""]}, "origins"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], word: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=word.replace("{", r"\{")):
        Hook(options)


# ---------------------------------------------------------------- handshake and sizes


def test_the_handshake_of_cloudevents() -> None:
    hook = unsigned()
    asked = {"webhook-request-origin": "eventemitter.example.com", "webhook-request-rate": "120"}
    status, headers, _ = hook.trigger.handshake(asked)
    assert status == 200
    assert headers == {
        "allow": "OPTIONS, POST",
        "webhook-allowed-origin": "eventemitter.example.com",
        "webhook-allowed-rate": "*",
    }
    assert hook.trigger.handshake({}) == (200, {"allow": "OPTIONS, POST"}, b"")


def test_the_handshake_admits_named_origins_only() -> None:
    hook = unsigned(origins=["Eventgrid.azure.net"])
    _, headers, _ = hook.trigger.handshake({"webhook-request-origin": "eventgrid.azure.net"})
    assert headers["webhook-allowed-origin"] == "eventgrid.azure.net"
    with pytest.raises(Forbidden, match=r"evil\.example"):
        hook.trigger.handshake({"webhook-request-origin": "evil.example"})


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/octet-stream", b"\xff" * EVENT_BYTES),
        ("text/plain", b"x" * EVENT_BYTES),
        ("text/plain", b'"' * EVENT_BYTES),
        ("text/plain", b"\x00" * EVENT_BYTES),
        ("text/plain; charset=latin-1", b"\xe9" * EVENT_BYTES),
        ("text/plain; charset=cp1252", b"\x80" * EVENT_BYTES),
        ("application/json", b'"' + b"x" * (EVENT_BYTES - 2) + b'"'),
        ("application/json", b"[" + b"0," * (EVENT_BYTES // 2 - 2) + b"0 ]"),
        ("application/x-www-form-urlencoded", b"payload=[%22" + b"x" * (EVENT_BYTES - 16) + b"%22]"),
    ],
)
def test_a_body_of_exactly_the_documented_size_passes(content_type: str, body: bytes) -> None:
    hook = unsigned()
    assert len(body) == EVENT_BYTES
    hook.post(body, {"content-type": content_type, "idempotency-key": "k" * 8_000})
    (event,) = hook.events
    for binary in (False, True):
        cloudevents.to_record(event, binary=binary)
    with pytest.raises(TooLarge):
        hook.post(body + b" ", {"content-type": content_type})


def test_a_form_of_escapes_is_decoded_soon() -> None:
    body = b"payload=" + b"%5B" + b"%30" * (EVENT_BYTES // 3 - 20) + b"%5D"
    start = time.process_time()
    with_text = unsigned()
    with_text.post(body, {"content-type": "application/x-www-form-urlencoded"})
    assert time.process_time() - start < 2  # with Python's own decoder: several times as long
    assert len(with_text.events) == 1


@pytest.mark.parametrize("body", [b"payload=%7B%7", b"payload=%zz", b"payload=%FF%FE", b"payload", b"a&payload=%7B%7D"])
def test_what_is_no_form_remains_as_it_is(body: bytes) -> None:
    hook = Hook({"verify": {"slack": "s"}})
    hook.post(body, slack_headers("s", body) | {"content-type": "application/x-www-form-urlencoded"})
    assert hook.events[0].data == body.decode()
