"""Deploys through any of several servers, wherever the trigger runs.

Each server gives the same answers about it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oncue.protocol.api import TriggerInfo
from oncue.triggers.file.baseline import TICK_S
from tests.e2e.deploying import deploy, fired, place, registered, rules
from tests.e2e.many import Many, many_servers
from tests.e2e.running import System


@pytest.fixture
def two(kafka: tuple[str, str], tmp_path: Path) -> Iterator[Many]:
    with many_servers(tmp_path, kafka[0], 2) as found:
        found.endpoint("local", found.servers[1])
        registered(found.servers[0])
        yield found


def deployed_and_moved_in(server: System, name: str, old: int) -> tuple[TriggerInfo, Path]:
    """Move in a tree with old modification times right after the answer."""
    folder = place(server, name, files=old)
    tree = server.folder / f"{name}-staged"
    tree.mkdir()
    (tree / "tree.raw").write_bytes(b"1")
    os.utime(tree / "tree.raw", (1, 1))
    threading.Event().wait(2 * TICK_S)  # another server classifies files by their times; doubtful ones fire
    (trigger,) = deploy(server, name, rules((name, folder))).triggers
    tree.rename(folder / "run_1")
    return trigger, folder


def test_a_deploy_waits_for_the_initial_scan_on_any_server(two: Many) -> None:
    a, b = two.servers
    found = {f"there-{n}": deployed_and_moved_in(a, f"there-{n}", 1 + 300 * n) for n in range(6)}
    assert {(t.state, t.looked) for t, _ in found.values()} == {("running", True)}
    assert {t.server for t, _ in found.values()} == {"", b.local["url"]}
    for name, (_, folder) in found.items():
        assert fired(a, name, folder, 1) == ["tree.raw"]

    # Each server gives the same answers.
    def answers(server: System, *words: str) -> list[dict[str, Any]]:
        answer = server.json(*words)
        items = answer if isinstance(answer, list) else [answer]
        return [i | {"server": i["server"] or server.local["url"]} if "server" in i else i for i in items]

    for words in (
        ("triggers", "list"),
        ("rules", "list"),
        *(("triggers", "show", name) for name in found),
        *(("triggers", "explain", name, "run_1/tree.raw") for name in found),
    ):
        assert answers(a, *words) == answers(b, *words), words
    assert {r["fired"] for r in answers(a, "rules", "list")} == {2}
    assert {i["state"] for name in found for i in answers(b, "triggers", "explain", name, "run_1/tree.raw")} == {
        "fired"
    }
    away = next(t for t, _ in found.values() if t.server)
    assert f"on {b.local['url']}" in a.oncue("triggers", "list").stdout
    assert b.local["url"] in a.oncue("triggers", "show", away.name).stdout

    # Without the server that runs the trigger, the answer is from the view.
    b.server.kill()
    (row,) = [t for t in a.json("triggers", "list") if t["name"] == away.name]
    assert row["state"] in ("elsewhere", "running", "looking", "starting")


BATCH = """
rules:
  - name: many
    on: {type: frame}
    batch: {count: 100}
    run: {function: name_of, endpoint: local, args: {path: a/b}}
"""


def test_each_server_shows_open_windows_and_why_a_rule_does_not_fire(two: Many) -> None:
    a, b = two.servers
    deploy(a, "batch", BATCH)
    with b.client() as client:
        for n in range(3):
            client.emit(type="frame", source="/test", data={"n": n})
    names = [f"no-folder-{n}" for n in range(6)]
    no_folder = a.write("a-file", "not a folder")
    for name in names:
        deploy(a, name, rules((name, no_folder)))

    def answers(server: System) -> tuple[int, int, list[bool]]:
        infos = {rule["name"]: rule for rule in server.json("rules", "list")}
        ill = ["not a folder" in infos[f"{name}-name"]["why"] for name in names]
        return infos["many"]["windows"], infos["many"]["waiting"], ill

    for server in two.servers:
        server.await_true(lambda server=server: answers(server) == (1, 3, [True] * 6), "it shows all of them")


def test_a_deploy_before_any_server_runs_the_trigger(two: Many) -> None:
    """The trigger's server was killed and the others have not noticed yet."""
    a, b = two.servers
    b.server.kill()
    a.server.kill()
    a.up("--no-endpoint")
    trigger, folder = deployed_and_moved_in(a, "early", 3)
    assert (trigger.state, trigger.looked, trigger.server) == ("running", True, "")
    assert fired(a, "early", folder, 1) == ["tree.raw"]


def deploy_triggers(two: Many, count: int = 6) -> dict[str, tuple[System, Path]]:
    """Deploy `count` triggers; return each one's server and folder by its name.

    Each folder holds one old file.
    """
    a, b = two.servers
    found = {}
    for n in range(count):
        name = f"mine-{n}"
        folder = place(a, name, files=1)
        threading.Event().wait(2 * TICK_S)
        (trigger,) = deploy(a, name, rules((name, folder))).triggers
        found[name] = (b if trigger.server else a, folder)
    return found


def staged(server: System, name: str) -> Path:
    """Make a tree in which all times are older than the trigger."""
    tree = server.folder / f"{name}-staged"
    tree.mkdir()
    (tree / "tree.raw").write_bytes(b"1")
    return tree


def test_files_that_arrive_while_a_trigger_moves_fire_once_and_existing_ones_do_not(two: Many) -> None:
    """The other server has never run the triggers; their state is in the log."""
    a, b = two.servers
    trees = {f"mine-{n}": staged(a, f"mine-{n}") for n in range(6)}
    triggers = deploy_triggers(two)
    away = {name: folder for name, (server, folder) in triggers.items() if server is b}
    assert away
    for name, folder in away.items():
        (folder / "before.raw").write_bytes(b"1")
        a.await_true(lambda name=name: a.tasks(rule=f"{name}-name"), f"{name} fired")
    b.server.kill()
    for name, folder in away.items():
        trees[name].rename(folder / "run_1")
        (folder / "meanwhile.raw").write_bytes(b"1")
    for name, folder in away.items():
        assert fired(a, name, folder, 3) == ["before.raw", "meanwhile.raw", "tree.raw"]
        explained = {
            path: a.json("triggers", "explain", name, path)["state"]
            for path in ("deep/old0.raw", "before.raw", "meanwhile.raw", "run_1/tree.raw")
        }
        assert explained == {
            "deep/old0.raw": "old", "before.raw": "fired", "meanwhile.raw": "fired", "run_1/tree.raw": "fired",
        }  # fmt: skip
    shown = {t["name"]: t["existing"] for t in a.json("triggers", "list")}
    assert {shown[name] for name in away} == {1}

    # And back: the first server has what the second recorded.
    endpoints = {t["id"] for name in away for t in a.tasks(rule=f"{name}-name")}
    a.server.kill()
    for folder in away.values():
        (folder / "again.raw").write_bytes(b"1")
    b.up("--no-endpoint")
    for name, folder in away.items():
        assert fired(b, name, folder, 4) == ["again.raw", "before.raw", "meanwhile.raw", "tree.raw"]
        assert b.json("triggers", "explain", name, "meanwhile.raw")["state"] == "fired"
        assert b.json("triggers", "explain", name, "deep/old0.raw")["state"] == "old"
    assert endpoints <= {t["id"] for name in away for t in b.tasks(rule=f"{name}-name")}


def test_all_servers_down_and_another_one_starts_first(two: Many) -> None:
    a, b = two.servers
    tree = staged(a, "mine-0")
    triggers = deploy_triggers(two, 4)
    for server in two.servers:
        server.server.kill()
    name, (server, folder) = next((n, t) for n, t in triggers.items() if t[0] is b)
    tree.rename(folder / "run_1")
    (folder / "meanwhile.raw").write_bytes(b"1")
    a.up("--no-endpoint")
    assert fired(a, name, folder, 2) == ["meanwhile.raw", "tree.raw"]
