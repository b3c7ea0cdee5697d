"""An older server on the log of a newer one, and its upgrade.

The older server skips and remembers unknown records; the upgraded one applies them.
"""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from oncue.config import Settings
from oncue.dispatcher.auth.tokens import new_token
from oncue.log import Record, open_log
from oncue.protocol.codec import encode
from oncue.protocol.records import VERSION, RuleSwitch, TokenRecord
from oncue.protocol.topics import REGISTRY, RESULTS
from tests.e2e.running import PATIENCE_S, System, on_kafka
from tests.e2e.test_files import await_trigger, deploy, renamed, rules

ROOT = Path(__file__).parents[2]
RULE = "files-measure"


@pytest.fixture(params=["sqlite", "kafka"])
def system(request: pytest.FixtureRequest, stopped: System) -> System:
    if request.param == "kafka":
        stopped.env["ONCUE_LOG"] = on_kafka(request.getfixturevalue("kafka")[0], stopped.data)
    stopped.env |= {"PYTHONPATH": str(ROOT), "ONCUE_PORT": "0", "ONCUE_WORKERS": "1"}
    return stopped


def start_older(system: System) -> subprocess.Popen[bytes]:
    with (system.folder / "older.log").open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.older_server", "up"], env=system.env, stdout=out, stderr=out
        )

    def ready() -> bool:
        assert process.poll() is None, (system.folder / "older.log").read_text()
        return system.local["pid"] == process.pid and system.http("GET", "/health/ready").status == 200

    system.await_true(ready, "the older server is ready")
    system.await_connected()
    system.note()
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0


def of_a_newer_server(url: str, token_hash: str) -> None:
    """Write records of a newer server.

    It pauses the rule, creates a token with one more field, and uses another form of outcomes.
    """
    token = TokenRecord(VERSION, "tok_new", token_hash, "somebody", ("read",))
    grown = [*msgspec.msgpack.decode(encode(token)), "a field that was added"]

    async def write() -> None:
        log = await open_log(url)
        switch = RuleSwitch(VERSION, RULE, False, "somebody", "by the newer server")
        await log.append(REGISTRY, [Record(encode(switch), key=b"switch:" + RULE.encode())])
        await log.append(REGISTRY, [Record(encode(grown), key=b"token:tok_new")])
        await log.append(RESULTS, [Record(encode([VERSION + 1, {"another": "form"}]))])
        await log.close()

    asyncio.run(write())


def skipped(system: System) -> list[tuple[str, str]]:
    """Return the (topic, kind) pairs that a stopped server has skipped."""
    db = sqlite3.connect(system.data / "view.db")
    try:
        return sorted(db.execute("SELECT topic, kind FROM skipped"))
    finally:
        db.close()


def test_an_older_server_beside_a_newer_one_and_its_upgrade(system: System) -> None:
    older = start_older(system)
    folder = system.folder / "in"
    deploy(system, "files", rules("files", folder))
    await_trigger(system, "files")
    token, hashed = new_token()
    url = system.env.get("ONCUE_LOG")
    if url is None:  # an embedded log is one process's at a time
        stop(older)
        of_a_newer_server(Settings(data=str(system.data)).log_url, hashed)
        older = start_older(system)
        await_trigger(system, "files")
    else:
        of_a_newer_server(url, hashed)
    system.await_true(
        lambda: system.http("GET", "/v1/me", token=token).status == 200, "the token with a field more is good"
    )
    renamed(folder, "a", 10)
    system.await_tasks(1, rule=RULE)  # it skips the unknown pause record and applies all others
    assert system.json("dead", "list") == []
    stop(older)
    assert skipped(system) == [(REGISTRY, "switch"), (RESULTS, f"frame v{VERSION + 1}")]

    system.up()
    (rule,) = [r for r in system.json("rules", "list") if r["name"] == RULE]
    assert not rule["enabled"]
    assert system.http("GET", "/v1/me", token=token).status == 200
    system.await_tasks(1, rule=RULE)
    system.down()
    assert skipped(system) == [(RESULTS, f"frame v{VERSION + 1}")], "kept for a version that can decode it"
