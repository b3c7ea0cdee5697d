"""`oncue endpoint install-service`: the agent starts with the machine.

By a systemd user unit, or where the user has no service manager, by a line of the crontab.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click

from oncue.cli.endpoint.folder import LOG, dir_option, name_argument, registered
from oncue.cli.endpoint.start import CONNECT_S, not_seen, start_detached
from oncue.cli.output import as_json, json_option, say
from oncue.errors import Invalid, NotFound, OncueError

COMMAND_S = 30.0  # longest run of systemctl or crontab
STOP_S = 30  # on top of the grace of running tasks
_UNIT = re.compile(r"/(oncue-endpoint[^/]*\.service)$", re.MULTILINE)
UNIT = """# Written by `oncue endpoint install-service {name}`; --remove removes it.
[Unit]
Description=oncue endpoint {name}
StartLimitIntervalSec=0

[Service]
Type=exec
Environment={path}
ExecStart={command}
StandardOutput=append:{log}
StandardError=append:{log}
# SIGTERM ends the agent in order (exit code 0). 2: its settings are wrong; 5: the server refuses it.
Restart=on-failure
RestartSec=2
RestartPreventExitStatus=2 5
TimeoutStopSec={stop_s}
KillMode=mixed
OOMPolicy=continue

[Install]
WantedBy=default.target
"""


@click.command("install-service")
@name_argument
@dir_option
@click.option("--systemd", "kind", flag_value="systemd", help="A systemd user unit (the default where there is one).")
@click.option("--cron", "kind", flag_value="cron", help="A line of your crontab, run at each start of the machine.")
@click.option("--remove", is_flag=True, help="Remove the unit or line. A running agent goes on.")
@click.option("--print", "only_print", is_flag=True, help="Print the unit or line and change nothing.")
@json_option
def install_service(
    name: str, folder: str | None, kind: str | None, remove: bool, only_print: bool, json_: bool
) -> None:
    """Let an endpoint's agent start with the machine, and again if it dies.

    A systemd user unit where the user has a service manager, else a line of the crontab (@reboot),
    which does not restart an agent that dies. The agent is started now, unless it runs already.

    \b
    Example:
      oncue endpoint install-service polaris
    """
    from oncue.endpoint.options.file import load_options
    from oncue.endpoint.settings import load

    place = registered(folder, name)
    load(place)
    load_options(place)
    kind = kind or ("systemd" if has_user_manager() else "cron")
    if only_print:
        click.echo(unit_text(place, name) if kind == "systemd" else cron_line(place, name))
        return
    if remove:
        answer = _remove_unit(name) if kind == "systemd" else _write_cron(name, "")
    else:
        answer = _install_unit(place, name) if kind == "systemd" else _install_cron(place, name)
    if json_:
        as_json({"name": name, "kind": kind} | answer)
        return
    for key, value in answer.items():
        say(f"{key}: {value}")


def unit_text(place: Path, name: str) -> str:
    """Return the systemd unit of this endpoint."""
    from oncue.cli.agent_process import agent_command
    from oncue.endpoint.options.apply import effective
    from oncue.endpoint.options.file import load_options
    from oncue.endpoint.settings import load

    grace_s = effective(load(place), load_options(place)).grace_s
    return UNIT.format(
        name=name,
        path=_quoted(f"PATH={os.environ.get('PATH', os.defpath)}"),
        command=" ".join(map(_quoted, agent_command(place, by_hand=True))),
        log=str(place / LOG).replace("%", "%%"),
        stop_s=STOP_S + round(grace_s),
    )


def cron_line(place: Path, name: str) -> str:
    """Return the crontab's line of this endpoint.

    cron has a PATH of its own, without the site's modules.
    """
    import sys

    words = ["env", f"PATH={os.environ.get('PATH', os.defpath)}", sys.executable, "-P", "-m", "oncue"]
    words += ["endpoint", "start", name, "--dir", str(place), "--detach"]
    return f"@reboot {shlex.join(words)} >/dev/null 2>&1 {_mark(name)}".replace("%", r"\%")


def has_user_manager() -> bool:
    """Return True if this user has a systemd that can be reached."""
    return shutil.which("systemctl") is not None and _run("systemctl", "--user", "show-environment").returncode == 0


def unit_of(pid: int) -> str:
    """Return the systemd unit of an endpoint that this process belongs to; "" if none."""
    try:
        found = _UNIT.search(Path(f"/proc/{pid}/cgroup").read_text())
    except OSError:
        return ""
    return found[1] if found and has_user_manager() else ""


def restart_unit(unit: str) -> None:
    """Restart a user unit. Raises OncueError."""
    _checked("systemctl", "--user", "restart", unit)


def stop_unit(unit: str) -> None:
    """Keep systemd from starting a user unit again whose process has just ended."""
    _checked("systemctl", "--user", "stop", unit)


def unit_path(name: str) -> Path:
    """Return the path of the endpoint's unit."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "systemd" / "user" / f"oncue-endpoint-{name}.service"


def _install_unit(place: Path, name: str) -> dict[str, str]:
    from oncue.cli.agent_process import running_agent
    from oncue.cli.endpoint.folder import read_status, set_aside_large_log
    from oncue.cli.local_server import await_true

    path = unit_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(unit_text(place, name))
    _checked("systemctl", "--user", "daemon-reload")
    _checked("systemctl", "--user", "enable", path.name)
    answer = {"unit": str(path), "log": f"oncue endpoint logs {name}"}
    if _run("loginctl", "enable-linger").returncode:
        answer["hint"] = "it ends when you log out: ask an administrator for `loginctl enable-linger` for you"
    if pid := running_agent(place):
        answer["agent"] = f"runs already (pid {pid}); the unit starts it from the next start of the machine on"
        return answer
    set_aside_large_log(place)
    _checked("systemctl", "--user", "start", path.name)

    def connected() -> bool:
        now = read_status(place) or {}
        return bool(running_agent(place)) and now.get("pid") == running_agent(place) and now["state"] == "connected"

    if not await_true(connected, CONNECT_S):
        from oncue.cli.endpoint.folder import last_lines

        raise not_seen(name, running_agent(place), CONNECT_S, last_lines(place / LOG, 10))
    return answer | {"agent": f"runs (pid {running_agent(place)})"}


def _remove_unit(name: str) -> dict[str, str]:
    path = unit_path(name)
    if not path.exists():
        raise NotFound(f"{path} does not exist", remedy="--cron --remove removes a line of the crontab")
    _checked("systemctl", "--user", "disable", path.name)
    path.unlink()
    _checked("systemctl", "--user", "daemon-reload")
    return {"removed": str(path)}


def _install_cron(place: Path, name: str) -> dict[str, str]:
    from oncue.cli.agent_process import running_agent

    answer = _write_cron(name, cron_line(place, name))
    if pid := running_agent(place):
        return answer | {"agent": f"runs already (pid {pid})"}
    return answer | {"agent": f"runs (pid {start_detached(place, name)['pid']})"}


def _write_cron(name: str, line: str) -> dict[str, str]:
    """Replace the endpoint's line of the crontab; "" removes it.

    Raises Invalid, NotFound, OncueError.
    """
    if shutil.which("crontab") is None:
        raise Invalid(
            "this machine has neither a systemd for users nor crontab",
            remedy="start the agent at each start of the machine by other means: oncue endpoint start NAME --detach",
        )
    listed = _run("crontab", "-l")
    before = listed.stdout.splitlines() if listed.returncode == 0 else []
    kept = [text for text in before if not text.rstrip().endswith(_mark(name))]
    if not line and len(kept) == len(before):
        raise NotFound(f"the crontab has no line of the endpoint {name}")
    text = "".join(f"{entry}\n" for entry in [*kept, *([line] if line else [])])
    done = subprocess.run(["crontab", "-"], input=text, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    if done.returncode:
        raise OncueError(f"crontab: {(done.stderr or done.stdout).strip()}", remedy="see `crontab -l`")
    return {"crontab": line} if line else {"removed": _mark(name)}


def _mark(name: str) -> str:
    return f"# oncue endpoint {name}"


def _quoted(word: str) -> str:
    """Return a word as systemd reads it back."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return subprocess.CompletedProcess(words, 1, "", str(e))


def _checked(*words: str) -> None:
    done = _run(*words)
    if done.returncode:
        why = (done.stderr or done.stdout).strip()
        raise OncueError(f"{shlex.join(words)} failed: {why}", remedy="--cron uses the crontab instead of systemd")
