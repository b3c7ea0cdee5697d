"""The CloudEvents Kafka binding, both modes, with kcat (librdkafka) as client."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.e2e.running import System, on_kafka, system_in
from tests.services import missing

WORK = "def saw(id, subject, run, pressure):\n    return [id, subject, run, pressure]\n"
RULES = """
rules:
  - name: vacuum
    on: {type: org.example.vacuum, source: "/beamline/*"}
    match: {data.pressure_mbar: {gt: 0.001}}
    run: {function: work.py:saw, endpoint: local, args: {id: "${event.id}", subject: "${event.subject}",
          run: "${event.run}", pressure: "${data.pressure_mbar}"}}
"""
DATA = {"pressure_mbar": 0.5}


def kcat(system: System, *words: str, given: bytes = b"") -> bytes:
    program = shutil.which("kcat")
    if program is None:
        missing("no kcat: make services, or apt install kcat")
    url = urlsplit(system.env["ONCUE_LOG"])
    topic = parse_qs(url.query)["prefix"][0] + "oncue.events"
    done = subprocess.run(
        [program, "-q", "-b", url.netloc, "-t", topic, *words], input=given, capture_output=True, timeout=60, check=True
    )
    return done.stdout


def write(system: System, value: bytes, **headers: str) -> None:
    """Produce one record."""
    words = [
        w for name, text in headers.items() for w in ("-H", f"{name.replace('content_type', 'content-type')}={text}")
    ]
    file = system.folder / "record"
    file.write_bytes(value)
    kcat(system, "-P", *words, str(file))


def newest(system: System) -> tuple[dict[str, str], bytes]:
    """Return (headers, value) of the last record."""
    found = json.loads(kcat(system, "-C", "-o", "-1", "-e", "-J").splitlines()[-1])
    names = found.get("headers", [])
    return dict(zip(names[::2], names[1::2], strict=True)), found["payload"].encode()


@pytest.fixture(params=["structured", "binary"])
def system(kafka: tuple[str, str], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[System]:
    data = tmp_path / "data"
    mode = {"ONCUE_EVENTS_MODE": request.param}
    with system_in(tmp_path, "--workers", "1", data=data, ONCUE_LOG=on_kafka(kafka[0], data), **mode) as found:
        found.await_connected()
        found.write("work.py", WORK)
        found.write("rules.yaml", RULES)
        found.oncue("deploy", "rules.yaml", "--yes")
        yield found


def test_a_foreign_client_writes_and_reads(system: System) -> None:
    whole: dict[str, Any] = {
        "specversion": "1.0", "id": "s1", "source": "/beamline/7", "type": "org.example.vacuum",
        "subject": "gauge 3", "run": 17, "data": DATA,
    }  # fmt: skip
    write(system, json.dumps(whole).encode(), content_type="application/cloudevents+json; charset=UTF-8")
    write(
        system, json.dumps(DATA).encode(), content_type="application/json",
        ce_specversion="1.0", ce_id="b1", ce_source="/beamline/7", ce_type="org.example.vacuum",
        ce_subject="gauge 4", ce_run="18",
    )  # fmt: skip
    write(  # as the official JavaScript SDK does, with the content type in two headers
        system, json.dumps(DATA).encode(), content_type="application/json", ce_datacontenttype="application/json",
        ce_specversion="1.0", ce_id="b2", ce_source="/beamline/7", ce_type="org.example.vacuum",
        ce_subject="gauge 4", ce_run="18",
    )  # fmt: skip
    write(system, b"\x00\x01 no event", content_type="text/plain")
    tasks = system.await_tasks(3, rule="vacuum")
    assert sorted(t["value"] for t in tasks) == [
        ["b1", "gauge 4", "18", 0.5],
        ["b2", "gauge 4", "18", 0.5],
        ["s1", "gauge 3", 17, 0.5],
    ]

    def dead() -> list[str]:
        letters = json.loads(system.oncue("dead", "list", "--json").stdout)
        return [letter["reason"] for letter in letters if "no CloudEvent" in letter["reason"]]

    system.await_true(lambda: len(dead()) == 1, "the invalid event is a dead letter")

    with system.client() as client:
        client.emit(
            type="org.example.vacuum", source="/beamline/8", id="o1", subject="gauge 5", data=DATA, extensions={"run": 19}
        )  # fmt: skip
    system.await_tasks(4, rule="vacuum")
    headers, value = newest(system)
    if system.env["ONCUE_EVENTS_MODE"] == "structured":
        assert headers["content-type"].startswith("application/cloudevents+json")
        written = json.loads(value)
        assert (written["id"], written["specversion"], written["run"], written["data"]) == ("o1", "1.0", 19, DATA)
    else:
        assert headers["content-type"] == "application/json"
        assert {k: headers[f"ce_{k}"] for k in ("id", "specversion", "source", "type", "subject", "run")} == {
            "id": "o1", "specversion": "1.0", "source": "/beamline/8", "type": "org.example.vacuum",
            "subject": "gauge 5", "run": "19",
        }  # fmt: skip
        assert json.loads(value) == DATA
