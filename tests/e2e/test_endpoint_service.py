"""An endpoint's agent as a service: set up, start, drain, cancel, restart, watch, second agents."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.running import System, has_ended

pytestmark = pytest.mark.embedded

WORK = """
import os, time

def add(a, b=2):
    return a + b

def env(name):
    return os.environ.get(name)

def hold(started, release):
    open(started, "w").close()
    while not os.path.exists(release):
        time.sleep(0.02)
    return "done"
"""


class Lab:
    """An endpoint of its own at the shared server."""

    def __init__(self, system: System, name: str, folder: Path) -> None:
        self.system, self.name, self.folder = system, name, folder
        self.place = (name, "--dir", str(folder))
        system.write("work.py", WORK)

    def oncue(self, command: str, *words: str, code: int | None = 0) -> str:
        done = self.system.oncue("endpoint", command, *self.place, *words, code=code)
        return done.stdout + done.stderr

    def init(self, *words: str) -> None:
        self.oncue("register", "--workers", "1", *words)

    def start(self) -> None:
        self.oncue("start", "--detach")

    def pid(self) -> int:
        return int((self.folder / "lock").read_text())

    def processes(self) -> list[psutil.Process]:
        agent = psutil.Process(self.pid())
        return [agent, *agent.children(recursive=True)]

    def invoke(self, function: str, **arguments: str) -> str:
        words = [word for k, v in arguments.items() for word in ("--arg", f"{k}={v}")]
        return str(
            self.system.json("invoke", f"work.py:{function}", "--endpoint", self.name, *words, "--no-wait")["id"]
        )

    def state(self, task: str) -> str:
        return str(self.system.json("tasks", "show", task)["task"]["state"])

    def hold(self, tmp_path: Path) -> tuple[str, Path]:
        """Start a task that runs until the file exists; return it once it runs."""
        started, release = tmp_path / "started", tmp_path / "release"
        task = self.invoke("hold", started=str(started), release=str(release))
        self.system.await_true(started.exists, "the task runs")
        return task, release

    def end(self) -> None:
        for folder in (self.folder, *self.folder.parent.glob("copy*")):
            try:
                agent = psutil.Process(int((folder / "lock").read_text()))
                if "oncue.endpoint.run" in agent.cmdline():
                    for process in (*agent.children(recursive=True), agent):
                        process.kill()
            except (OSError, ValueError, psutil.Error):
                continue
        self.system.oncue("endpoints", "revoke", self.name, "--yes", code=None)


@pytest.fixture
def lab(shared: System, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    found = Lab(shared, f"lab-{abs(hash(request.node.name)) % 10**8}", tmp_path / "lab")
    try:
        yield found
    finally:
        found.end()


# ------------------------------------------------------------ endpoint.yaml


def test_configure_writes_a_file_that_check_explains(lab: Lab) -> None:
    written = json.loads(lab.oncue("configure", "--preset", "perlmutter", "--json"))
    path = lab.folder / "endpoint.yaml"
    (line,) = written["to_complete"]
    assert (written["preset"], written["file"]) == ("perlmutter", str(path))
    assert path.stat().st_mode & 0o077 == 0 or lab.folder.stat().st_mode & 0o077 == 0

    said = lab.oncue("configure", "--check", code=2)
    assert f"endpoint.yaml:{line}:" in said
    assert "account is still CHANGE-ME" in said

    path.write_text(path.read_text().replace("CHANGE-ME", "m1234"))
    checked = json.loads(lab.oncue("configure", "--check", "--json"))
    assert checked["options"]["provider"]["account"] == "m1234"
    assert checked["options"]["provider"]["kind"] == "slurm"
    said = lab.oncue("configure", "--check")
    assert "account: m1234" in said
    assert "walltime: 30m" in said, "in the words of the file"
    assert "submits: 6/min" not in said, "defaults are left out"

    assert "exists" in lab.oncue("configure", "--preset", "local", code=1)
    lab.oncue("configure", "--preset", "local", "--force")
    assert "m1234" in (lab.folder / "endpoint.yaml.old").read_text()
    assert "there is no preset" in lab.oncue("configure", "--preset", "slrum", "--force", code=2)
    assert "slurm" in [p["preset"] for p in lab.system.json("endpoint", "configure", "--presets")]


def test_a_wrong_file_stops_start_and_is_in_status(lab: Lab) -> None:
    lab.init()
    (lab.folder / "endpoint.yaml").write_text("workers: {per_nod: 2}\nmax_task: 1\n")

    for command in (("start", "--detach"), ("start",), ("restart",)):
        said = lab.oncue(*command, code=2)
        assert "endpoint.yaml:1:11: workers has no key 'per_nod' (did you mean 'per_node'?)" in said.replace(
            "\n  → did you mean 'per_node'?", ""
        ) or ("workers has no key 'per_nod'" in said and "did you mean 'per_node'?" in said)
        assert "endpoint.yaml:2:1: the file has no key 'max_task'" in said
    assert "has no key 'per_nod'" in lab.oncue("status")


def test_init_registers_and_configures_and_the_file_wins(lab: Lab) -> None:
    made = json.loads(lab.oncue("init", "--preset", "local", "--workers", "1", "--max-tasks", "7", "--json"))
    assert made["name"] == lab.name
    settings = json.loads((lab.folder / "agent.json").read_text())
    assert (settings["workers"], settings["max_tasks"]) == (1, 7)
    file = Path(made["file"])
    file.write_text(file.read_text() + "workers: {per_node: 2}\nenvironment: {LAB_MODE: fast, LAB_TOKEN: 5}\n")

    started = json.loads(lab.oncue("start", "--detach", "--json"))

    assert (started["state"], started["pid"]) == ("connected", lab.pid())
    assert json.loads(lab.oncue("status", "--json"))["status"]["workers"] == 2
    for name, value in (("LAB_MODE", "fast"), ("LAB_TOKEN", "5")):  # what is named is no secret
        done = lab.system.oncue("invoke", "work.py:env", "--endpoint", lab.name, "--arg", f"name={name}")
        assert done.stdout.strip().strip("'") == value
    assert "stays as it is" in lab.oncue("init")


# ------------------------------------------------------------ start and stop


def test_a_detached_start_succeeds_only_when_the_server_has_seen_the_agent(lab: Lab) -> None:
    lab.init("--bridge", "tcp://127.0.0.1:9")

    said = lab.oncue("start", "--detach", "--wait", "500ms", code=3)

    lock = lab.folder / "lock"  # on a busy machine the agent gets there later
    lab.system.await_true(lambda: lock.exists() and lock.read_text(), "the agent has its lock")
    assert f"the agent runs (pid {lab.pid()}), but no server has seen it" in said
    assert "it keeps trying" in said
    processes = lab.processes()
    lab.oncue("stop")
    assert all(has_ended(p) for p in processes)


def test_stop_leaves_no_process(lab: Lab) -> None:
    lab.init()
    lab.start()
    assert lab.system.oncue("invoke", "work.py:add", "--endpoint", lab.name, "--arg", "a:=1").stdout.strip() == "3"
    processes = lab.processes()
    assert len(processes) > 1

    assert f"pid {processes[0].pid}" in lab.oncue("stop")

    assert all(has_ended(p) for p in processes)
    assert "no agent runs" in lab.oncue("stop", code=4)


def test_stop_with_drain_lets_running_tasks_end(lab: Lab, tmp_path: Path) -> None:
    lab.init()
    lab.start()
    task, release = lab.hold(tmp_path)
    waiting = lab.invoke("add", a="x", b="y")
    processes = lab.processes()

    assert "still drains" in lab.oncue("stop", "--drain", "--timeout", "100ms", code=1)
    lab.system.await_true(
        lambda: json.loads(lab.oncue("status", "--json"))["status"]["state"] == "draining", "it drains"
    )
    stopping = lab.system.start("endpoint", "stop", *lab.place, "--drain")
    assert stopping.stderr is not None
    assert stopping.stderr.readline().startswith("draining: 1 worker busy")  # it has found the agent
    assert lab.state(task) == "running"
    release.touch()

    assert stopping.communicate(timeout=60)[0].strip().endswith("has stopped")
    assert stopping.returncode == 0
    assert all(has_ended(p) for p in processes)
    lab.system.await_true(lambda: lab.state(task) == "succeeded", "the drained task has its result")
    assert lab.state(waiting) == "waiting"
    lab.start()  # what was asked of the former agent is forgotten
    lab.system.await_true(lambda: lab.state(waiting) == "succeeded", "the waiting task runs at the next start")


def test_stop_with_cancel_ends_a_drain_at_once(lab: Lab, tmp_path: Path) -> None:
    lab.init()
    lab.start()
    task, _ = lab.hold(tmp_path)
    processes = lab.processes()

    lab.oncue("stop", "--drain", "--timeout", "100ms", code=1)
    lab.oncue("stop", "--cancel")

    assert all(has_ended(p) for p in processes)
    lab.start()
    lab.system.await_true(lambda: lab.state(task) in ("lost", "retrying"), "the task was ended")
    lab.oncue("stop", "--drain", "--cancel", code=2)


def test_restart_brings_a_new_agent_with_the_present_settings(lab: Lab) -> None:
    lab.init()
    first = json.loads(lab.oncue("restart", "--json"))  # it was not running
    (lab.folder / "endpoint.yaml").write_text("workers: {per_node: 2}\n")

    second = json.loads(lab.oncue("restart", "--json"))

    assert second["pid"] != first["pid"]
    assert second["state"] == "connected"
    assert has_ended(psutil.Process(first["pid"])) if psutil.pid_exists(first["pid"]) else True
    assert json.loads(lab.oncue("status", "--json"))["status"]["workers"] == 2


def test_restart_of_the_local_endpoint_leaves_it_to_the_server(stopped: System) -> None:
    stopped.up("--workers", "1")
    stopped.await_connected()
    (agent,) = [p for p in stopped.server.children() if "oncue.endpoint.run" in p.cmdline()]

    restarted = stopped.json("endpoint", "restart", "local")

    stopped.note()
    (child,) = [p for p in stopped.server.children() if "oncue.endpoint.run" in p.cmdline()]
    assert restarted["pid"] == child.pid != agent.pid


def test_logs_prints_and_follows_the_agents_log(lab: Lab) -> None:
    lab.init()
    assert "does not exist" in lab.oncue("logs", code=4)
    lab.start()
    assert "connected to" in lab.oncue("logs")
    assert "connected to" not in lab.oncue("logs", "--lines", "0")

    follower = lab.system.start("endpoint", "logs", *lab.place, "-f", "-n", "1")
    assert follower.stdout is not None
    assert "connected to" in follower.stdout.readline()
    with (lab.folder / "agent.log").open("a") as f:
        f.write("half \x1b[31m")
        f.flush()
        f.write("a line\n")
    assert follower.stdout.readline() == "half \\x1b[31ma line\n"
    follower.send_signal(signal.SIGINT)
    follower.communicate(timeout=60)
    assert follower.returncode == 130


def test_reset_needs_an_agent_that_answers(lab: Lab) -> None:
    lab.init()

    assert "no agent runs" in lab.oncue("reset", code=4)


# ------------------------------------------------------------ one agent per endpoint


def test_a_second_agent_of_an_endpoint_is_refused_and_says_so(lab: Lab) -> None:
    """Its folder was copied, or two login nodes have it."""
    lab.init()
    lab.start()
    first = lab.pid()
    shutil.copytree(lab.folder, lab.folder.parent / "copy", ignore=shutil.ignore_patterns("lock", "status.json"))

    copy = str(lab.folder.parent / "copy")
    done = lab.system.oncue("endpoint", "start", lab.name, "--dir", copy, "--detach", "--wait", "60s", code=1)

    assert f"another agent of this endpoint runs (host {os.uname().nodename}, pid {first})" in done.stderr
    assert "stop that one first" in done.stderr
    assert lab.pid() == first
    assert lab.system.oncue("invoke", "work.py:add", "--endpoint", lab.name, "--arg", "a:=1").stdout.strip() == "3"
    shown = lab.system.json("endpoints", "show", lab.name)
    assert shown["state"] == "connected"


def test_another_machines_agent_takes_over_from_one_that_was_killed(lab: Lab) -> None:
    lab.init()
    lab.start()
    shutil.copytree(lab.folder, lab.folder.parent / "copy", ignore=shutil.ignore_patterns("lock", "status.json"))
    for process in reversed(lab.processes()):
        process.kill()

    copy = str(lab.folder.parent / "copy")
    lab.system.oncue("endpoint", "start", lab.name, "--dir", copy, "--detach", "--wait", "60s")

    assert lab.system.oncue("invoke", "work.py:add", "--endpoint", lab.name, "--arg", "a:=1").stdout.strip() == "3"


def test_a_second_login_node_is_fenced_where_locks_do_not_reach_it(lab: Lab) -> None:
    """The folder is shared by file servers without locks between machines: the lock file is another one there."""
    named = ["unshare", "--uts", "sh", "-c", 'hostname login2 && exec "$@"', "sh"]
    if subprocess.run([*named, "true"], capture_output=True, check=False).returncode:
        pytest.skip("another host name needs root, and Linux' unshare")
    lab.init()
    lab.start()
    first = lab.pid()
    (lab.folder / "lock").unlink()

    command = [sys.executable, "-P", "-m", "oncue.endpoint.run", "--dir", str(lab.folder), "--by-hand"]
    done = subprocess.run([*named, *command], capture_output=True, text=True, timeout=60, check=False)

    assert f"on another machine: {os.uname().nodename}, pid {first}" in done.stderr
    assert done.returncode == 1
    (lab.folder / "lock").write_text(str(first))  # for the end of this test
    assert lab.system.oncue("invoke", "work.py:add", "--endpoint", lab.name, "--arg", "a:=1").stdout.strip() == "3"


def test_a_killed_agent_starts_again_in_its_folder(lab: Lab) -> None:
    lab.init()
    lab.start()
    for process in reversed(lab.processes()):
        process.kill()
    lab.system.await_true(lambda: not json.loads(lab.oncue("status", "--json"))["running"], "it is gone")

    lab.start()

    assert "another agent" not in lab.oncue("logs")
    said = lab.oncue("start", "--detach", code=1)
    assert f"runs already (pid {lab.pid()})" in said


# ------------------------------------------------------------ the service


def stand_in(folder: Path, name: str, script: str) -> None:
    """Write a command that stands in for the machine's: no CI machine has a user's service manager."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_install_service_by_cron_starts_the_agent_and_keeps_other_lines(lab: Lab, tmp_path: Path) -> None:
    lab.init()
    bin_, table = tmp_path / "bin", tmp_path / "crontab"
    table.write_text("0 4 * * * backup\n")
    stand_in(
        bin_, "crontab", f'if [ "$1" = -l ]; then cat {table}; else cat > {table}.new && mv {table}.new {table}; fi'
    )
    env = {"PATH": f"{bin_}:{os.environ['PATH']}"}

    def install(*words: str) -> str:
        return lab.system.oncue("endpoint", "install-service", *lab.place, "--cron", *words, env=env).stdout

    assert "agent: runs (pid" in install()
    install()  # again is harmless
    lines = table.read_text().splitlines()
    assert lines[0] == "0 4 * * * backup"
    (line,) = lines[1:]
    assert line == install("--print").strip()
    lab.oncue("stop")
    command = line.removeprefix("@reboot ").split(" # ")[0]
    assert os.system(f"env -i HOME={tmp_path} sh -c {json.dumps(command)}") == 0  # as cron runs it
    assert json.loads(lab.oncue("status", "--json"))["running"]

    install("--remove")
    assert table.read_text() == "0 4 * * * backup\n"


def test_install_service_by_systemd_writes_a_unit_and_starts_it(lab: Lab, tmp_path: Path) -> None:
    lab.init()
    bin_, said = tmp_path / "bin", tmp_path / "said"
    start = (
        f"nohup {sys.executable} -P -m oncue.endpoint.run --dir {lab.folder} --by-hand >>{lab.folder}/agent.log 2>&1 &"
    )
    stand_in(bin_, "systemctl", f'echo "$@" >> {said}\ncase "$2" in start) {start} ;; esac')
    stand_in(bin_, "loginctl", "exit 1")
    env = {"PATH": f"{bin_}:{os.environ['PATH']}", "XDG_CONFIG_HOME": str(tmp_path / "config")}

    def install(*words: str) -> str:
        return lab.system.oncue("endpoint", "install-service", *lab.place, *words, env=env).stdout

    output = install()

    unit = tmp_path / "config" / "systemd" / "user" / f"oncue-endpoint-{lab.name}.service"
    assert unit.read_text().strip() == install("--print").strip()
    assert f'"{lab.folder}"' in unit.read_text()
    assert "enable-linger" in output
    assert f"agent: runs (pid {lab.pid()})" in output
    calls = said.read_text().splitlines()
    assert calls[1:4] == ["--user daemon-reload", f"--user enable {unit.name}", f"--user start {unit.name}"]
    if shutil.which("systemd-analyze"):
        assert os.system(f"systemd-analyze verify --man=no {unit}") == 0
    install("--remove")
    assert not unit.exists()
