"""The command line as habits have it: fix and run again, short ids, lists, tail, status, quiet ends."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import PATIENCE_S, System, has_ended, system_in

pytestmark = pytest.mark.embedded

CALLS = """
import time
def work(n):
    if n % 2:
        raise ValueError(f"no odd number: {n}")
    return n

def slow(s):
    print("begun")
    time.sleep(s)
"""
RULES = """
rules:
  - name: habits
    on: {type: habits.done}
    run: {function: calls.py:work, endpoint: local, args: {n: "${data.n}"}}
"""
NO_COLOR_CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with system_in(tmp_path_factory.mktemp("habits"), "--workers", "2") as found:
        found.write("calls.py", CALLS)
        found.write("rules.yaml", RULES)
        found.await_connected()
        yield found


class Terminal:
    """A command in a terminal of so many columns."""

    def __init__(self, system: System, *words: str, columns: int = 80, **env: str) -> None:
        self._own, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "oncue", *words],
            cwd=system.folder,
            env=system.env | {"COLUMNS": str(columns), "LINES": "40", "TERM": "xterm"} | env,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.said = ""

    def read_until(self, text: str) -> str:
        """Read until the text was printed, or to the end."""
        until = time.monotonic() + PATIENCE_S
        while text not in NO_COLOR_CODES.sub("", self.said) and time.monotonic() < until:
            if not select.select([self._own], [], [], 0.2)[0]:
                continue
            try:
                part = os.read(self._own, 65536)
            except OSError:  # its end
                break
            if not part:
                break
            self.said += part.decode().replace("\r\n", "\n")
        return NO_COLOR_CODES.sub("", self.said)

    def type(self, text: str) -> None:
        os.write(self._own, text.encode())

    def end(self) -> tuple[str, int]:
        """Return the text and the exit code."""
        said = self.read_until("\0")
        code = self.process.wait(PATIENCE_S)
        os.close(self._own)
        return said, code

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)
        self.end()


def fail(system: System, *numbers: int) -> list[str]:
    """Run `work` for these numbers; return the tasks, which have ended."""
    system.oncue("functions", "register", "calls.py:work")
    body = {"function": "work", "calls": [[[n], {}] for n in numbers]}
    answer = system.http("POST", "/v1/tasks/batch", body).json
    first = int(answer["first"], 16)
    tasks = [f"{first + i:032x}" for i in range(answer["count"])]
    system.await_true(lambda: ended(system, tasks), "the tasks have ended")
    return tasks


def ended(system: System, tasks: list[str]) -> bool:
    return len(system.http("POST", "/v1/tasks/outcomes", {"ids": tasks}).json) == len(tasks)


def shown(system: System, task: str) -> dict[str, Any]:
    return dict(system.json("tasks", "show", task)["task"])


# ---------------------------------------------------------------- fix and run again


def test_a_retry_runs_the_version_in_force_and_says_which(system: System) -> None:
    """A broken function is mended, and its failed tasks run again."""
    system.write("calls.py", CALLS)
    system.oncue("deploy", "rules.yaml", "--yes")
    system.oncue("events", "emit", "--type", "habits.done", "--source", "/a", "--data", '{"n": 3}')
    system.await_true(lambda: system.json("tasks", "list", "--rule", "habits", "--state", "failed"), "it has failed")
    (failed,) = system.json("tasks", "list", "--rule", "habits", "--state", "failed")
    system.write("calls.py", CALLS.replace("n % 2", "n % 2 and n > 5"))
    system.oncue("deploy", "rules.yaml", "--yes")

    done = system.oncue("tasks", "retry", failed["id"][:12])
    again = system.oncue("tasks", "retry", failed["id"], "--same-version")

    new, same = done.stdout.strip(), again.stdout.strip()
    assert re.fullmatch("[0-9a-f]{32}", new)
    assert "work version 2 runs on local, as rule habits has it now (the old task ran version 1)" in done.stderr
    assert "work version 1 runs again" in again.stderr
    system.await_true(lambda: ended(system, [new, same]), "the retries have ended")
    assert (shown(system, new)["state"], shown(system, new)["value"]) == ("succeeded", 3)
    assert shown(system, same)["state"] == "failed"
    assert shown(system, failed["id"])["replaced_by"] == same
    assert "retried as: " + same in re.sub(" +", " ", system.oncue("tasks", "show", failed["id"]).stdout)
    listed = system.oncue("tasks", "list", "--rule", "habits").stdout
    assert f"retried as {same[:12]}" in next(line for line in listed.splitlines() if line.startswith(failed["id"]))


def test_many_are_retried_by_what_they_share(system: System) -> None:
    before = str(time.time())
    failed = fail(system, 101, 103, 105, 106)[:3]
    chosen = ("--function", "work", "--state", "fail", "--since", f"@{before}")

    dry = system.oncue("tasks", "retry", *chosen, "--dry-run")
    unasked = system.oncue("tasks", "retry", *chosen, code=2)
    done = system.oncue("tasks", "retry", *chosen, "--yes")

    assert all(task in dry.stdout for task in failed)
    assert "3 would be retried; nothing was done" in dry.stderr
    assert "3 tasks would be retried" in unasked.stderr
    assert "--yes" in unasked.stderr
    assert len(done.stdout.split()) == 3
    assert {shown(system, task)["retry_of"] for task in done.stdout.split()} == set(failed)
    system.await_true(lambda: ended(system, done.stdout.split()), "the retries have ended")
    again = system.oncue("tasks", "retry", *chosen, "--yes").stdout.split()  # those have failed, too
    assert {shown(system, task)["retry_of"] for task in again} == set(done.stdout.split())


def test_a_retry_that_is_killed_goes_on_when_it_is_repeated(system: System) -> None:
    before = str(time.time())
    failed = fail(system, *range(2001, 6001, 2))
    command = ("tasks", "retry", "--function", "work", "--state", "failed", "--since", f"@{before}", "--yes")
    first = system.start(*command)
    assert first.stdout is not None
    first.stdout.readline()  # a page was retried
    first.kill()
    first.communicate()

    system.oncue(*command)

    system.await_true(
        lambda: not system.json("tasks", "list", "--function", "work", "--state", "open", "--since", f"@{before}"),
        "nothing is open",
    )
    every = list(system.client().tasks.list(function="work", since_us=int(float(before) * 1e6), limit=None))
    named = [t.retry_of for t in every if t.retry_of in set(failed)]
    assert sorted(named) == sorted(failed)  # each once


def test_a_terminal_is_asked_and_shown_how_far_it_is(system: System) -> None:
    before = str(time.time())
    failed = fail(system, 301, 303)
    words = ("tasks", "retry", "--function", "work", "--state", "failed", "--since", f"@{before}")
    no = Terminal(system, *words)
    assert "Retry 2 tasks? [y/N]" in no.read_until("[y/N]")
    no.type("n\n")
    assert no.end()[1] == 130
    yes = Terminal(system, *words)
    yes.read_until("[y/N]")
    yes.type("y\n")
    said, code = yes.end()
    assert code == 0
    assert {shown(system, task)["retry_of"] for task in re.findall(r"^[0-9a-f]{32}$", said, re.M)} == set(failed)


def test_a_backfill_of_many_files_asks_in_a_terminal(system: System) -> None:
    folder = system.folder / "many"
    folder.mkdir()
    for n in range(1_001):
        (folder / f"{n}.old").touch()
    (folder / "one.few").touch()
    system.write("many.yaml", f"triggers:\n  - {{name: many, kind: file, path: {folder}}}\n")
    system.oncue("deploy", "many.yaml", "--yes")
    few = Terminal(system, "triggers", "backfill", "many", "--glob", "*.few")
    assert few.end()[1] == 0
    no = Terminal(system, "triggers", "backfill", "many", "--glob", "*.old")
    assert "Let 1,001 old files (0 B) fire, of trigger many? [y/N]" in " ".join(no.read_until("[y/N]").split())
    no.type("n\n")
    assert no.end()[1] == 130
    assert "1,001 old files" in system.oncue("triggers", "backfill", "many", "--glob", "*.old", "--dry-run").stdout
    said, code = Terminal(system, "triggers", "backfill", "many", "--glob", "*.old", "--yes").end()
    assert (code, "1,001 old files (0 B) will fire" in said) == (0, True)
    system.oncue("rules", "remove", "many", "--yes")


def test_open_tasks_are_cancelled_by_what_they_share(system: System) -> None:
    system.oncue("functions", "register", "calls.py:slow")
    body = {"function": "slow", "calls": [[[600], {}]] * 20}
    tasks = system.http("POST", "/v1/tasks/batch", body).json
    first = f"{int(tasks['first'], 16):032x}"

    dry = system.oncue("tasks", "cancel", "--function", "slow", "--dry-run")
    done = system.oncue("tasks", "cancel", "--function", "slow", "-y")

    assert "20 would be cancelled" in dry.stderr
    assert "cancel requested of 20 tasks" in done.stdout
    system.await_true(lambda: shown(system, first)["state"] == "cancelled", "it is cancelled")
    assert "no task to cancel" in system.oncue("tasks", "cancel", "--function", "slow", "--yes").stderr
    for words in ([], ["--dry-run"], [first, "--rule", "r"]):
        assert "→" in system.oncue("tasks", "cancel", *words, code=2).stderr


# ---------------------------------------------------------------- short ids and lists


def test_what_a_list_shows_in_a_terminal_is_taken_as_an_id(system: System) -> None:
    batch = fail(system, *range(400, 412))
    said, _ = Terminal(system, "tasks", "list", "--limit", "15", columns=100).end()
    shorts = [line.split()[0] for line in said.splitlines()[1:] if re.match("[0-9a-f]{12}", line)]
    assert len(shorts) >= 12
    for short in shorts:
        assert len(short) < 24
        assert shown(system, short)["id"].startswith(short.partition("..")[0])
    assert shown(system, batch[3][:12] + ".." + batch[3][-4:])["id"] == batch[3]
    several = system.oncue("tasks", "show", batch[0][:12], code=2).stderr
    assert "means several tasks" in several
    assert f"..{batch[-1][-4:]}" in several
    for words in (["logs"], ["cancel"], ["retry"]):
        assert "means several tasks" in system.oncue("tasks", *words, batch[0][:12], code=2).stderr
    assert "no task" in system.oncue("tasks", "show", "ffffffff", code=4).stderr
    newest = system.json("tasks", "show")["task"]["id"]
    assert newest == system.json("tasks", "list", "--limit", "1")[0]["id"]


def test_lists_tell_that_there_is_more_and_go_on(system: System) -> None:
    before = f"@{int(time.time())}"
    fail(system, *range(500, 507))
    first = system.oncue("tasks", "list", "--function", "work", "--since", "today", "--limit", "3")
    assert re.search(r"3 of [0-9,]+ tasks\. The next: oncue tasks list .*--cursor ", first.stderr)
    following = first.stderr.partition("oncue ")[2].split()
    second = system.oncue(*following)
    ids_ = [line.split()[0] for text in (first.stdout, second.stdout) for line in text.splitlines()[1:]]
    wanted = [t["id"] for t in system.json("tasks", "list", "--function", "work", "--limit", "6")]
    assert ids_ == wanted
    assert system.oncue("tasks", "list", "--until", "yesterday").stderr.strip() == "no tasks"
    assert system.oncue("tasks", "list", "--function", "work", "--since", before, "--limit", "1000").stderr == ""


def test_an_event_is_found_by_its_id_and_by_its_tasks(system: System) -> None:
    system.oncue("deploy", "rules.yaml", "--yes")
    emit = ("events", "emit", "--type", "habits.done", "--source", "/found", "--data", '{"n": 7}')
    event = system.oncue(*emit).stdout.strip()
    assert system.json("events", "show", event)["event"]["id"] == event
    assert system.json("events", "show", event[:10])["event"]["id"] == event

    def caused() -> Any:
        words = ("events", "list", "--rule", "habits", "--state", "failed,succeeded", "--since", "10m")
        return [e for e in system.json(*words) if e["event"]["id"] == event]

    system.await_true(caused, "the event is found by its rule")
    assert system.json("events", "list", "--rule", "nobody") == []
    assert "no event" in system.oncue("events", "show", "zzz", code=4).stderr


def test_a_function_and_an_endpoint_are_found_by_what_a_list_shows(system: System) -> None:
    fail(system, 571)
    row = next(line for line in system.oncue("functions", "list").stdout.splitlines() if line.startswith("work@"))
    shown_hash = row.split()[1]
    assert system.json("functions", "show", shown_hash)["id"].startswith(shown_hash)
    assert system.json("functions", "show", shown_hash[:8])["name"] == "work"
    assert system.oncue("invoke", shown_hash, "--arg", "n:=2").stdout == "2\n"
    endpoint = system.json("endpoints", "show", "local")["id"]
    assert system.json("endpoints", "show", endpoint[:9])["name"] == "local"


def test_tail_is_read_by_people(system: System) -> None:
    earlier = fail(system, 601)[0]
    tail = Terminal(system, "tasks", "tail", "-n", "1", columns=140)
    try:
        first = tail.read_until(earlier)
        assert re.search(rf"\d\d:\d\d:\d\d  failed      {earlier}  work +local .*no odd number", first)
        seen: list[str] = []

        def followed() -> bool:
            seen.append(fail(system, 602)[0])
            return seen[0] in tail.read_until(seen[0])

        system.await_true(followed, "tail shows the next task")
        said = tail.read_until(seen[0])
        assert said.index(earlier) < said.index(seen[0])
        assert "\x1b[31mfailed" in tail.said
    finally:
        tail.stop()


def test_status_says_what_runs_waits_and_failed_and_what_to_do(system: System) -> None:
    fail(system, 701, 703)
    said = system.oncue("status").stdout
    assert "1 of 1 connected" in said
    assert re.search(r"\d+ failed \(and not retried\)", said)
    assert "ValueError: no odd number" in said
    assert "oncue tasks retry --state failed" in said
    report = system.json("status")
    assert report["tasks"]["failed"]["count"] >= 2
    narrow, code = Terminal(system, "status", columns=40).end()
    assert (code, "connected" in narrow) == (0, True)


# ---------------------------------------------------------------- habits


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["task"], "tasks"),
        (["tasks", "lst"], "list"),
        (["tasks", "ls"], "list"),
        (["events", "send"], "emit"),
        (["tokens", "rm"], "revoke"),
        (["statsu"], "status"),
    ],
)
def test_a_misspelt_command_names_the_nearest(system: System, words: list[str], meant: str) -> None:
    done = system.oncue(*words, code=2)
    assert f"Did you mean {meant!r}?" in done.stderr


def test_words_of_other_tools_get_a_useful_answer(system: System) -> None:
    assert "--arg n=1 (a text)" in system.oncue("invoke", "calls.py:work", "n=1", code=2).stderr
    assert "--arg NAME=7" in system.oncue("invoke", "calls.py:work", "7", code=2).stderr
    assert "-h, before or after" in system.oncue("help", code=2).stderr
    assert system.oncue("-V").stdout == system.oncue("--version").stdout
    for noun in ("tasks", "events", "functions", "dead"):
        system.oncue(noun, "list", "-n", "1")


def test_colors_are_left_out_where_nobody_wants_them(system: System) -> None:
    fail(system, 801)
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        terminal = Terminal(system, "tasks", "list", **env)
        terminal.end()
        assert "\x1b[" not in terminal.said
    colored = Terminal(system, "tasks", "list")
    colored.end()
    assert "\x1b[31mfailed" in colored.said


def test_a_token_is_of_the_person_who_is_named(system: System) -> None:
    made = system.oncue("tokens", "create", "alice", "--expires", "30d")
    assert system.http("GET", "/v1/me", token=made.stdout.strip()).json["subject"] == "alice"
    assert re.search(r"is of alice, with the scope user, valid until \d{4}-", made.stderr)
    own = system.oncue("tokens", "create", "--name", "laptop")
    assert system.http("GET", "/v1/me", token=own.stdout.strip()).json["subject"] == system.client().me.subject
    assert "valid for ever" in own.stderr
    for token in (made.stdout.strip(), own.stdout.strip()):
        stranger = system.oncue("tokens", "create", "bob", code=5, env=remote(system, token))
        assert "oncue tokens create --name bob" in stranger.stderr
    token = next(t for t in system.json("tokens", "list") if t["subject"] == "alice")
    system.oncue("tokens", "revoke", token["id"][4:10])
    assert system.http("GET", "/v1/me", token=made.stdout.strip()).status == 401
    named = system.oncue("tokens", "create", "dora").stdout.strip()
    system.oncue("tokens", "revoke", "dora")
    assert system.http("GET", "/v1/me", token=named).status == 401
    for _ in range(2):
        system.oncue("tokens", "create", "emil")
    assert "of emil" in system.oncue("tokens", "revoke", "emil", code=2).stderr  # which of the two?


def remote(system: System, token: str, **more: str) -> dict[str, str]:
    return {"ONCUE_DATA": str(system.folder / "nothing"), "ONCUE_URL": system.local["url"], "ONCUE_TOKEN": token} | more


def test_doctor_of_a_user_looks_at_url_token_and_endpoint(system: System) -> None:
    def found(env: dict[str, str], code: int | None = 0) -> dict[str, Any]:
        done = system.oncue("doctor", "--json", code=code, env=env)
        return {f["check"]: f for f in json.loads(done.stdout)}

    token = system.json("tokens", "create", "carol", "--expires", "12h")["token"]
    mine = found(remote(system, token), code=None)
    assert "ONCUE_URL" in mine["url"]["found"]
    assert "carol, scopes user, until" in mine["token"]["found"]
    assert not mine["token"]["ok"]  # it expires within a day
    assert "none yet" in mine["endpoints"]["found"]
    wrong = found(remote(system, token, ONCUE_URL="http://127.0.0.1:9"), code=1)
    assert not wrong["url"]["ok"]
    assert "server" not in wrong  # one fault, one line
    nowhere = found(remote(system, token, ONCUE_URL="http://no-such-host.invalid:80"), code=1)
    assert "no address" in nowhere["url"]["found"]
    unset = remote(system, "")
    unset.pop("ONCUE_URL")
    assert "ONCUE_URL" in found(unset, code=1)["url"]["remedy"]


def run(system: System, shell: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = shell.replace("oncue", f"{sys.executable} -m oncue")
    return subprocess.run(
        ["bash", "-c", command],
        cwd=system.folder,
        env=system.env | env,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * 2,
        check=False,
    )


@pytest.mark.parametrize(
    "shell",
    [
        "oncue tasks list >&-",
        "oncue tasks list --json >&-",
        "oncue status >&- 2>&-",
        "oncue --help >&-",
        "oncue tasks list <&-",
        "oncue tasks list <&- >&- 2>&-",
        "oncue tasks list --limit 1 2>&-",
        "oncue tasks show ffffffff 2>&- || test $? = 4",
        "set -o pipefail; oncue tasks list --json | head -c 1 >/dev/null || test $? = 141",
        "oncue --help | true",
        "oncue nonsense 2>&1 | true",
        "oncue events emit --type a.b --source /a >&-",
    ],
)
def test_closed_streams_are_quiet(system: System, shell: str) -> None:
    done = run(system, shell)
    assert done.returncode == 0, done
    assert "Traceback" not in done.stderr + done.stdout
    assert "Exception ignored" not in done.stderr
    assert "rror" not in done.stderr


@pytest.mark.parametrize("words", [("tasks", "tail"), ("events", "tail"), ("tasks", "watch")])
def test_a_closed_terminal_ends_a_follower_quietly(system: System, words: tuple[str, ...]) -> None:
    terminal = Terminal(system, *words)
    terminal.read_until("ID" if words[1] == "watch" else ":")
    terminal.process.send_signal(signal.SIGHUP)
    said, code = terminal.end()
    assert code in (-signal.SIGHUP, 129, 130)
    assert "Traceback" not in said


def test_a_hangup_stops_a_server_in_order(tmp_path: Path) -> None:
    system = System(tmp_path)
    server = system.start("up", "--port", "0", "--workers", "1")
    try:
        system.await_true(lambda: (system.data / "local.json").exists(), "the server has started")
        system.await_connected()
        below = system.note()
        server.send_signal(signal.SIGHUP)
        _, said = server.communicate(timeout=PATIENCE_S)
        assert server.returncode == 0, said
        assert "Traceback" not in said
        system.await_true(lambda: all(has_ended(p) for p in below), "its processes have ended")
    finally:
        system.end()
        server.kill()
        server.communicate()
