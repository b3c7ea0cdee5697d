"""A rule that sends a message: a task like others, whose function oncue has itself."""

from __future__ import annotations

import http.server
import json
import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.running import PATIENCE_S, System

RULES = """
triggers:
  - {name: bell, kind: webhook, verify: none, type: org.example.bell}
rules:
  - name: bell-rings
    on: bell
    retry: {max: 3, base: 10ms, on: NotDelivered, never: Refused}
    run: {notify: {webhook: "%(url)s/hook", text: "bell ${data.n}", data: {n: "${data.n}"}}}
  - {name: bell-is-gone, on: bell, run: {notify: {slack: "%(url)s/gone", text: "${data.n}"}}}
"""


@pytest.fixture
def receiver() -> Iterator[tuple[str, queue.Queue[Any]]]:
    """Yield a service that is overloaded at first, and what it got."""
    got: queue.Queue[Any] = queue.Queue()
    first = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = 410 if self.path == "/gone" else 200 if first.is_set() else 503
            if self.path == "/hook":
                first.set()
                if status == 200:
                    got.put(body)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", got
        server.shutdown()


@pytest.mark.embedded
def test_a_message_is_a_task_with_an_outcome(shared: System, receiver: tuple[str, queue.Queue[Any]]) -> None:
    url, got = receiver
    shared.write("bell.yaml", RULES % {"url": url})
    shared.oncue("deploy", "bell.yaml", "--yes")

    assert shared.http("POST", "/hooks/bell", {"n": 7}, {"webhook-id": "7"}, token=None).status == 202

    assert got.get(timeout=PATIENCE_S) == {"text": "bell 7", "data": {"n": 7}}
    (told,) = shared.await_true(lambda: shared.tasks(rule="bell-rings", state="succeeded"), "it has been sent")
    assert (told["name"], told["value"]) == ("bell-rings.notify", {"status": 200})
    assert [a["status"] for a in shared.http("GET", f"/v1/tasks/{told['id']}").json["attempts"]] == ["error", "ok"]
    (lost,) = shared.await_true(lambda: shared.tasks(rule="bell-is-gone", state="failed"), "it was refused")
    assert "Refused: 127.0.0.1 answered 410" in lost["why"]
