"""Parts of the command line; tests/e2e/test_command_line.py has the whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from oncue.cli import main
from oncue.cli.agent_process import running_agent
from oncue.cli.client import arguments, seconds
from oncue.cli.commands.doctor import triggers
from oncue.cli.live_view import view
from oncue.cli.local_server import local_server
from oncue.cli.output import safe, show_error, table, took
from oncue.endpoint import settings
from oncue.errors import Invalid, OncueError
from oncue.log.folder_lock import lock_folder
from oncue.protocol.api import TaskInfo, TriggerInfo


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [/scan]", "plain [/scan]"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb\tc", "a\\x0ab\\x09c"),
        ("\u202eexe.h5", "\\u202eexe.h5"),
        ("\ud800", "\\ud800"),
    ],
)
def test_hostile_strings(text: str, shown: str) -> None:
    assert safe(text) == shown


def test_line_breaks_are_kept_only_in_multiline_text() -> None:
    assert safe("a\nb\r\x07", lines=True) == "a\nb\\x0d\\x07"


def test_the_base_error_has_no_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(OncueError("127.0.0.1:80 is in use", remedy="choose another port"))
    assert capsys.readouterr().err == "error: 127.0.0.1:80 is in use\n  → choose another port\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_long_cells_are_cut_in_terminals_only(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "/data/" + "x" * 250 + "_scan.h5"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    table(("NAME", "STATE", "WHY"), [(name, "ok", name)], "nothing")
    (_, row) = capsys.readouterr().out.splitlines()
    shown, state, why = row.split()
    assert (state, why) == ("ok", name)
    assert shown == name if not terminal else len(shown) == 70 and shown[:6] == "/data/" and shown[-8:] == "_scan.h5"


def test_doctor_reports_triggers_that_do_not_run() -> None:
    good = TriggerInfo(name="a", kind="file", label="x", state="running")
    assert [(f.check, f.ok) for f in triggers([good])] == [("triggers", True)]
    assert list(triggers([])) == []
    waits = TriggerInfo(name="b", kind="file", label="x", state="waiting", detail="there is no folder /data/b")
    fails = TriggerInfo(name="c", kind="webhook", label="x", state="failed", detail="there is no secret 'daq'")
    found = list(triggers([good, waits, fails]))
    assert [(f.check, f.ok, f.found) for f in found] == [
        ("trigger b", False, "waiting: there is no folder /data/b"),
        ("trigger c", False, "failed: there is no secret 'daq'"),
    ]
    assert all("oncue triggers show" in f.remedy for f in found)


def test_arguments() -> None:
    assert arguments(("a=1", "b:=1", "c=x=y", 'd:={"k": [1]}', "e=")) == {
        "a": "1",
        "b": 1,
        "c": "x=y",
        "d": {"k": [1]},
        "e": "",
    }


@pytest.mark.parametrize("bad", [("x",), ("x:=nope",), ("a=1", "a=2"), ("1a=2",)])
def test_wrong_arguments(bad: tuple[str, ...]) -> None:
    with pytest.raises(Invalid) as caught:
        arguments(bad)
    assert caught.value.remedy


def test_durations() -> None:
    assert (seconds("5m"), seconds("1.5"), seconds(None)) == (300.0, 1.5, None)
    with pytest.raises(Invalid):
        seconds("soon")
    assert took(1_000_000, 1_500_000) == "500.0 ms"


def test_a_task_named_like_markup_is_shown_as_it_is() -> None:
    task = TaskInfo(
        id="0" * 32, state="failed", function="f", name="[/scan]", endpoint="[bold]", owner="o", why="\x1b[2J"
    )
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(view([task], 200))
        text = console.export_text()
    assert "[/scan]" in text
    assert "[bold]" in text
    assert "\\x1b[2J" in text


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_the_watched_tasks_fit_the_terminal(width: int) -> None:
    why = "endpoint 'polaris' is away for 20 s; start it: oncue endpoint start polaris"
    tasks = [
        TaskInfo(id=f"{i:032x}", state=state, function="f", name=name, endpoint=endpoint, owner="o", why=why)
        for i, (state, name, endpoint) in enumerate(
            [("waiting", "reconstruct_the_whole_volume_of_a_scan", "polaris"), ("cancelling", "f", "a" * 40)]
        )
    ]
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(view(tasks, width))
        head, *lines = console.export_text().splitlines()
    assert head.split()[0] == ("ID" if width >= 80 else "STATE")
    for name in ("STATE", "FUNCTION", "ENDPOINT"):
        assert name in head
    assert len(lines) == 2
    assert all(len(line) <= width for line in (head, *lines))
    for word in ("waiting", "reconstruct", "polaris", *(["endpoint 'p"] if width >= 60 else [])):
        assert word in lines[0]
    assert "cancelling" in lines[1]
    assert ("0" * 32 in lines[0]) == (width >= 120)
    assert ("WHY" in head) == (width >= 60)


def test_exit_codes(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONCUE_DATA", str(tmp_path))
    monkeypatch.delenv("ONCUE_URL", raising=False)
    for words, code in ((["--version"], 0), (["nonsense"], 2), (["tasks", "list"], 3), (["down"], 4)):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == code, words
    assert "oncue up" in capsys.readouterr().err


def test_help_imports_no_command() -> None:
    code = (
        "import sys\nfrom oncue.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in sys.modules if m in ('aiohttp', 'rich', 'zmq', 'asyncio', 'oncue.client')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_stale_file_of_a_killed_server_is_ignored(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "local.json").write_text(f'{{"url": "http://127.0.0.1:9", "token": "t", "pid": {gone.pid}}}')
    assert local_server(tmp_path) is None


def test_the_file_of_a_copied_folder_names_no_server_of_it(tmp_path: Path) -> None:
    """Its pid runs, its URL answers: both are the server's of the first folder."""
    with HTTPServer(("127.0.0.1", 0), Live) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{http.server_port}"
            for name in ("first", "copy"):
                (tmp_path / name).mkdir()
                (tmp_path / name / "local.json").write_text(json.dumps({"url": url, "token": "t", "pid": os.getpid()}))
            lock = lock_folder(tmp_path / "first")
            (tmp_path / "copy" / "lock").write_text(str(os.getpid()))
            assert local_server(tmp_path / "first") is not None
            assert local_server(tmp_path / "copy") is None
            lock.release()
        finally:
            http.shutdown()


class Live(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_the_holder_of_an_endpoints_folder_is_found(tmp_path: Path) -> None:
    import os

    assert running_agent(tmp_path) == 0
    lock = settings.lock_folder(tmp_path)
    assert running_agent(tmp_path) == os.getpid()
    lock.release()
    assert running_agent(tmp_path) == 0


@pytest.mark.parametrize(
    ("bridge", "url", "dialled"),
    [
        ("tcp://10.1.2.3:5000", "http://example.org:8765", "tcp://10.1.2.3:5000"),
        ("tcp://0.0.0.0:5000", "http://example.org:8765", "tcp://example.org:5000"),
        ("tcp://[::]:5000", "https://[2001:db8::1]/", "tcp://[2001:db8::1]:5000"),
        ("tcp://:::5000", "https://example.org", "tcp://example.org:5000"),
    ],
)
def test_an_agent_connects_to_a_reachable_host_of_the_server(bridge: str, url: str, dialled: str) -> None:
    from oncue.cli.endpoint.register import reachable

    assert reachable(bridge, url) == dialled


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_cannot_be_written_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "oncue", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize("detach", [[], ["--detach"]])
def test_a_data_folder_that_cannot_be_made(tmp_path: Path, detach: list[str]) -> None:
    (tmp_path / "file").write_text("")
    data = str(tmp_path / "file" / "data")
    words = [sys.executable, "-m", "oncue", "up", "--data", data, "--port", "0", *detach]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "oncue up --data DIR" in done.stderr


def test_an_unknown_command_of_a_group_is_named_whole(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["tasks", "lst"])

    assert ended.value.code == 2
    assert "there is no command 'tasks lst'. Did you mean 'list'?" in capsys.readouterr().err
