"""Files become tasks, each once, whichever process is stopped or killed."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

from tests.e2e.running import System

WORK = """
def measure(path):
    with open(path, "rb") as f:
        return {"path": path, "bytes": len(f.read())}

def measured_otherwise(path):
    return path
"""
RULES = """
triggers:
  - {{name: {name}, kind: file, path: {folder}, glob: "*.raw", ready: {{any: [close_write, rename]}}}}
rules:
  - name: {name}-measure
    on: {name}
    match: {{data.size: {{gt: {over}}}}}
    run: {{function: {function}, endpoint: local, args: {{path: "{path}"}}}}
"""


def data_of(info: dict[str, Any]) -> dict[str, str]:
    """Return the data of an event; events of other tests may have none."""
    data = info["event"].get("data")
    return data if isinstance(data, dict) else {}


def rules(name: str, folder: Path, over: int = 0, function: str = "work.py:measure", path: str = "${data.path}") -> str:
    folder.mkdir(exist_ok=True)
    return RULES.format(name=name, folder=folder, over=over, function=function, path=path)


def deploy(system: System, name: str, text: str, code: int = 0) -> str:
    system.write("work.py", WORK)
    system.write(f"{name}.yaml", text)
    done = system.oncue("deploy", f"{name}.yaml", "--yes", code=code)
    return done.stdout + done.stderr


def await_trigger(system: System, name: str) -> None:
    def running() -> bool:
        return any(t["name"] == name and t["state"] == "running" for t in system.http("GET", "/v1/triggers").json)

    system.await_true(running, f"trigger {name} runs")


def renamed(folder: Path, name: str, size: int) -> None:
    """Write under another name, then rename, as a careful writer does."""
    (folder / f"{name}.part").write_bytes(b"x" * size)
    (folder / f"{name}.part").rename(folder / f"{name}.raw")


def fired(system: System, rule: str, count: int) -> list[str]:
    """Return the file names of the rule's `count` tasks, all of which succeeded."""
    found = system.await_tasks(count, rule=rule)
    assert {t["state"] for t in found} == {"succeeded"}, found
    return sorted(Path(t["value"]["path"]).name for t in found)


def test_files_before_up_while_up_while_down_and_after_a_kill(stopped: System) -> None:
    system, folder = stopped, stopped.folder / "incoming"
    system.up("--workers", "1")
    folder.mkdir()
    (folder / "old.raw").write_bytes(b"there before the trigger")
    deploy(system, "det", rules("det", folder))
    await_trigger(system, "det")
    (folder / "a.raw").write_bytes(b"aa")
    renamed(folder, "b", 3)
    (folder / "other.txt").write_bytes(b"not meant")
    (folder / "empty.raw").write_bytes(b"")
    assert fired(system, "det-measure", 2) == ["a.raw", "b.raw"]
    system.down()
    (folder / "c.raw").write_bytes(b"cc")
    renamed(folder, "d", 4)
    system.up("--workers", "1")
    assert fired(system, "det-measure", 4) == ["a.raw", "b.raw", "c.raw", "d.raw"]
    os.kill(system.server.pid, signal.SIGKILL)
    (folder / "e.raw").write_bytes(b"ee")
    system.up("--workers", "1")
    (folder / "f.raw").write_bytes(b"ff")
    assert fired(system, "det-measure", 6) == ["a.raw", "b.raw", "c.raw", "d.raw", "e.raw", "f.raw"]
    (folder / "a.raw").write_bytes(b"changed")  # refire: changed
    assert fired(system, "det-measure", 7).count("a.raw") == 2


def test_a_path_relative_to_the_rule_file(shared: System) -> None:
    """The server starts in another folder, and the deploy runs in a third."""
    place = shared.folder / "elsewhere"
    (place / "arriving").mkdir(parents=True)
    shared.write("elsewhere/work.py", WORK)
    text = rules("relative", place / "arriving").replace(str(place / "arriving"), "arriving")
    shared.write("elsewhere/relative.yaml", text)
    other = shared.folder / "third"
    other.mkdir()
    shared.oncue("deploy", "../elsewhere/relative.yaml", "--yes", cwd=other)
    await_trigger(shared, "relative")
    (place / "arriving" / "x.raw").write_bytes(b"x")
    (task,) = shared.await_tasks(1, rule="relative-measure")
    assert task["value"] == {"path": str(place / "arriving" / "x.raw"), "bytes": 1}
    for path in ("x.raw", "arriving/x.raw", "./arriving/../arriving/x.raw"):
        assert shared.oncue("triggers", "explain", "relative", path, cwd=place).stdout.startswith("x.raw: fired")


def test_explain_says_why_not(shared: System) -> None:
    folder = shared.folder / "explained"
    deploy(shared, "expl", rules("expl", folder, over=100))
    await_trigger(shared, "expl")
    (folder / "small.raw").write_bytes(b"1")
    (folder / "large.raw").write_bytes(b"1" * 101)
    shared.await_tasks(1, rule="expl-measure")
    events = {
        Path(data_of(e)["path"]).name: e
        for e in shared.json("events", "list")
        if str(folder) in data_of(e).get("path", "")
    }
    assert sorted(events) == ["large.raw", "small.raw"]
    no = shared.json("rules", "explain", "expl-measure", str(events["small.raw"]["offset"]))
    assert no["fires"] is False
    assert "data.size" in no["why"]
    assert [s["condition"] for s in no["steps"] if not s["holds"]] != []
    yes = shared.json("rules", "explain", "expl-measure", str(events["large.raw"]["offset"]))
    assert yes["fires"] is True
    assert yes["args"]["path"] == str(folder / "large.raw")
    shown = json.loads(shared.oncue("events", "show", str(events["large.raw"]["offset"])).stdout)
    assert shown["fired"] == ["expl-measure"]
    assert len(shown["tasks"]) == 1


def test_a_template_that_cannot_be_filled_is_a_dead_letter(shared: System) -> None:
    folder = shared.folder / "templated"
    deploy(shared, "templ", rules("templ", folder, path="${data.no_such}"))
    await_trigger(shared, "templ")
    (folder / "x.raw").write_bytes(b"x")

    def letters() -> list[dict[str, object]]:
        return [d for d in shared.http("GET", "/v1/dead").json["items"] if d["rule"] == "templ-measure"]

    (letter,) = shared.await_true(letters, "a dead letter")
    assert "data.no_such" in str(letter["reason"])
    assert letter["remedy"]
    shown = shared.oncue("dead", "show", str(letter["id"])).stdout
    assert "data.no_such" in shown
    assert "remedy" in shown
    # Once the rule is right, the letter can be sent again.
    deploy(shared, "templ", rules("templ", folder))
    assert shared.json("dead", "retry", str(letter["id"]))["retried"]
    assert fired(shared, "templ-measure", 1) == ["x.raw"]


def test_disable_and_enable(shared: System) -> None:
    folder = shared.folder / "switched"
    deploy(shared, "swi", rules("swi", folder))
    await_trigger(shared, "swi")
    shared.oncue("rules", "disable", "swi-measure", "--why", "alignment")
    (folder / "unseen.raw").write_bytes(b"x")

    def seen() -> bool:
        events = shared.http("GET", "/v1/events?limit=200").json["items"]
        return any("unseen.raw" in data_of(e).get("path", "") for e in events)

    shared.await_true(seen, "the event of unseen.raw")
    assert shared.json("rules", "show", "swi-measure")["why"].endswith(": alignment")
    shared.oncue("rules", "enable", "swi-measure")
    (folder / "seen.raw").write_bytes(b"x")
    assert fired(shared, "swi-measure", 1) == ["seen.raw"]


def test_redeploy_history_diff_and_rollback(shared: System) -> None:
    folder = shared.folder / "versions"
    first = rules("vers", folder)
    assert "vers@1 is in force" in deploy(shared, "vers", first)
    await_trigger(shared, "vers")
    (folder / "one.raw").write_bytes(b"x")
    fired(shared, "vers-measure", 1)
    second = first.replace("work.py:measure", "work.py:measured_otherwise")
    shared.write("vers.yaml", second)
    shown = shared.oncue("rules", "diff", "vers.yaml", code=1).stdout
    assert "-" in shown
    assert "+    run: {function: work.py:measured_otherwise" in shown
    assert "changed: vers-measure" in deploy(shared, "vers", second)
    (folder / "two.raw").write_bytes(b"x")
    found = shared.await_tasks(2, rule="vers-measure")
    assert [t["name"] for t in found] == ["measured_otherwise", "measure"]  # newest first
    assert [t["rule_version"] for t in found] == [2, 1]
    assert "--yes" in shared.oncue("rules", "rollback", "vers", "1", code=2).stderr  # nobody can be asked
    assert "changed: vers-measure" in shared.oncue("rules", "rollback", "vers", "1", "--yes").stdout
    assert [d["version"] for d in shared.json("rules", "history", "vers")] == [3, 2, 1]
    (folder / "three.raw").write_bytes(b"x")
    found = shared.await_tasks(3, rule="vers-measure")
    assert [t["name"] for t in found] == ["measure", "measured_otherwise", "measure"]
    assert [Path(str(t["value"]["path"])).name for t in found if t["name"] == "measure"] == [
        "three.raw",
        "one.raw",
    ]
    # A changed function is deployed too, with an unchanged rule file.
    shared.write("vers.yaml", first)
    shared.write("work.py", WORK.replace('"bytes"', '"size_in_bytes"'))
    before = shared.json("functions", "list")
    assert "function work.py:measure: version 1 (" in shared.oncue("rules", "diff", "vers.yaml", code=1).stdout
    (differs,) = shared.json("rules", "diff", "vers.yaml", code=1)["functions"]
    assert (differs["function"], differs["old_version"], differs.get("new_version", 0)) == ("work.py:measure", 1, 0)
    assert shared.json("functions", "list") == before  # diff changes nothing
    output = shared.oncue("deploy", "vers.yaml", "--yes").stdout
    assert "vers@4 is in force" in output
    change = f"function work.py:measure: version 1 ({differs['old'][:12]}) → version 2 ({differs['new'][:12]})"
    assert change in output
    shared.oncue("rules", "diff", "vers.yaml")
    assert shared.json("rules", "diff", "vers.yaml")["changed"] is False
    (folder / "four.raw").write_bytes(b"xyz")
    assert shared.await_tasks(4, rule="vers-measure")[0]["value"]["size_in_bytes"] == 3


def test_a_deploy_with_an_error_changes_nothing(shared: System) -> None:
    folder = shared.folder / "atomic"
    shared.write("work.py", WORK)
    shared.write("good.yaml", rules("good", folder))
    shared.write("bad.yaml", rules("bad", folder).replace("endpoint: local", "endpoint: nowhere"))
    output = shared.oncue("deploy", "good.yaml", "bad.yaml", "--yes", code=2).stderr
    assert re.search(r"bad\.yaml:\d+:\d+: there is no endpoint 'nowhere'", output)
    names = {r["name"] for r in shared.json("rules", "list")}
    assert not names & {"good-measure", "bad-measure"}
    assert "good" not in {t["name"] for t in shared.json("triggers", "list")}
    shared.write("bad.yaml", rules("bad", folder))
    shared.oncue("deploy", "good.yaml", "bad.yaml", "--yes")
    assert {r["name"] for r in shared.json("rules", "list")} >= {"good-measure", "bad-measure"}
