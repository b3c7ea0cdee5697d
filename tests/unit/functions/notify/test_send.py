"""notify: what receivers get, and what their answers mean."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from oncue.functions.load import load_function
from oncue.functions.notify.pack import pack_notify
from oncue.functions.notify.send import CHAT_CHARS, NotDelivered, Refused, notify


class Hook(http.server.BaseHTTPRequestHandler):
    """Answers with the status that the path names."""

    got: ClassVar[list[tuple[dict[str, str], Any]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append((dict(self.headers), json.loads(body)))
        self.send_response(int(self.path[1:]))
        self.send_header("Location", "/200")
        self.end_headers()
        self.wfile.write(b"no such channel")

    def log_message(self, *_: object) -> None: ...


class Smtp(socketserver.StreamRequestHandler):
    """The part of RFC 5321 that a client needs. It knows nobody at `unknown`."""

    got: ClassVar[list[str]] = []

    def handle(self) -> None:
        self._say("220 here")
        for line in self.rfile:
            word = line[:4].upper()
            if word == b"DATA":
                self._say("354 go on")
                mail = b"".join(iter(self.rfile.readline, b".\r\n"))
                self.got.append(mail.decode())
            if word == b"RCPT" and b"unknown" in line:
                self._say("550 nobody of that name")
            elif word == b"MAIL" and b"busy" in line:
                self._say("451 come back later")
            else:
                self._say("221 bye" if word == b"QUIT" else "250 ok")
            if word == b"QUIT":
                return

    def _say(self, text: str) -> None:
        self.wfile.write(text.encode() + b"\r\n")


@pytest.fixture
def hook() -> Iterator[str]:
    Hook.got.clear()
    yield from _serve(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook), "http")


@pytest.fixture
def smtp() -> Iterator[str]:
    Smtp.got.clear()
    yield from _serve(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Smtp), "smtp")


def _serve(server: socketserver.TCPServer, scheme: str) -> Iterator[str]:
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"{scheme}://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_webhook_gets_text_data_and_headers(hook: str) -> None:
    answered = notify("webhook", f"{hook}/200", "done", data={"n": [1, "é"]}, headers={"X-Token": "abc"})
    assert answered == {"status": 200}
    ((headers, body),) = Hook.got
    assert body == {"text": "done", "data": {"n": [1, "é"]}}
    assert (headers["X-Token"], headers["Content-Type"]) == ("abc", "application/json")


def test_a_chat_gets_a_text_that_it_takes(hook: str) -> None:
    notify("slack", f"{hook}/200", "x" * (CHAT_CHARS + 1))
    ((_, body),) = Hook.got
    assert body == {"text": "x" * CHAT_CHARS}


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, Refused), (403, Refused), (302, Refused), (429, NotDelivered), (500, NotDelivered), (503, NotDelivered)],
)
def test_an_answer_says_if_it_is_of_use_to_try_again(hook: str, status: int, error: type[Exception]) -> None:
    with pytest.raises(NotDelivered, match=rf"127.0.0.1 answered {status} .*: no such channel") as caught:
        notify("webhook", f"{hook}/{status}", "done")
    assert type(caught.value) is error
    assert len(Hook.got) == 1  # a redirect is not followed


def test_a_receiver_that_is_away_may_come_back(hook: str) -> None:
    with pytest.raises(NotDelivered, match=r"127.0.0.1 was not reached") as caught:
        notify("webhook", "http://127.0.0.1:1/a", "done")
    assert type(caught.value) is NotDelivered


def test_a_mail_has_its_receivers_and_one_line_of_subject(smtp: str) -> None:
    answered = notify(
        "mail", ["ann@a.example", "Bob <bob@a.example>"], "first\nsecond é", sender="o@a.example", server=smtp
    )
    assert answered == {"refused": {}}
    (mail,) = Smtp.got
    assert "To: ann@a.example, Bob <bob@a.example>" in mail
    assert "Subject: first\r\n" in mail
    notify("mail", ["ann@a.example"], "text", subject="a\r\nBcc: x@b.example", sender="o@a.example", server=smtp)
    assert "Subject: a Bcc: x@b.example" in Smtp.got[1]


def test_a_mail_to_some_who_are_unknown_says_so(smtp: str) -> None:
    both = ["ann@a.example", "unknown@a.example"]
    answered = notify("mail", both, "text", sender="o@a.example", server=smtp)
    assert answered == {"refused": {"unknown@a.example": [550, "nobody of that name"]}}
    with pytest.raises(Refused, match=r"127.0.0.1 answered 550: nobody of that name"):
        notify("mail", ["unknown@a.example"], "text", sender="o@a.example", server=smtp)
    with pytest.raises(NotDelivered, match=r"answered 451: come back later") as caught:
        notify("mail", ["ann@a.example"], "text", sender="busy@a.example", server=smtp)
    assert type(caught.value) is NotDelivered


@pytest.mark.parametrize("to", ["a@a.example, b@b.example", "", "a@a.example\nBcc: b@b.example"])
def test_a_value_of_an_event_is_one_address_at_most(smtp: str, to: str) -> None:
    with pytest.raises((Refused, ValueError)):
        notify("mail", [to], "text", sender="o@a.example", server=smtp)
    assert Smtp.got == []


def test_a_worker_runs_it_from_its_source(hook: str) -> None:
    packed = pack_notify("tell.notify")
    assert packed.id == pack_notify("tell.notify").id
    assert load_function(packed.body)(kind="webhook", to=f"{hook}/200", text="done") == {"status": 200}
